using System.Diagnostics;
using System.Globalization;
using System.Runtime.CompilerServices;

namespace Aerostat.Storage.Tests;

/// <summary>
/// Wherever writing an image ends, QEMU finds no errors in it (clusters that nothing names are allowed), and what was flushed is there.
/// </summary>
public sealed class Qcow2CrashTests
{
    private const string ChildOf = "AEROSTAT_STORAGE_TEST_CHILD";
    private const int Length = 2 << 20, Ready = 40;

    /// <summary>
    /// A host without power: of what was written since the last fdatasync(2) any part may be on the disk, in sectors. Every write of a run is
    /// looked at that way.
    /// </summary>
    [Theory]
    [InlineData(512, 16, ""), InlineData(1024, 64, "snapshot"), InlineData(4096, 1, "under"), InlineData(65536, 16, "snapshot")]
    public void PowerFails(int clusterSize, int refcountBits, string with)
    {
        QemuImage.Require();
        using Tools.Scratch scratch = new();
        string image = Path.Combine(scratch.Path, "disk.qcow2"), crashed = Path.Combine(scratch.Path, "crashed.qcow2");
        byte[] model = new byte[Length];
        if (with == "under")
        {
            new Random(3).NextBytes(model.AsSpan(0, Length / 2));
            scratch.File("under.raw", model);
        }
        Qcow2Disk.Create(image, Length, new Qcow2Options
        {
            ClusterSize = clusterSize,
            RefcountBits = refcountBits,
            BackingFile = with == "under" ? "under.raw" : null,
            BackingFormat = DiskFormat.Raw,
        }).Dispose();
        if (with == "snapshot")
        {
            using (Qcow2Disk disk = Qcow2Disk.Open(image, readOnly: false))
            {
                new Random(4).NextBytes(model.AsSpan(0, 300 << 10));
                Assert.Equal(DiskResult.Done, disk.Write(0, model.AsSpan(0, 300 << 10)));
            }
            QemuImage.Run(scratch, "qemu-img", "snapshot", "-c", "kept", image);
        }
        Random random = new(11);
        PowerCut cut = new(File.ReadAllBytes(image), random, limit: 60);
        byte[] flushed = [.. model];
        HashSet<int> touched = [];
        List<(byte[] Image, byte[] Flushed, HashSet<int> Touched)> states = [];
        cut.Taken = image => states.Add((image, flushed, [.. touched]));
        using (Qcow2Disk disk = Qcow2Disk.Open(image, readOnly: false, [], cut))
        {
            for (int i = 0; i < 160; i++)
            {
                if (random.Next(8) == 0)
                {
                    Assert.Equal(DiskResult.Done, disk.Flush());
                    (flushed, touched) = ([.. model], []);
                    continue;
                }
                Change change = Change.Next(random, clusterSize);
                touched.UnionWith(change.Sectors);
                change.Apply(disk, model);
            }
        }
        Assert.True(states.Count > 30, $"only {states.Count} states");
        foreach ((byte[] bytes, byte[] durable, HashSet<int> unsure) in states)
        {
            File.WriteAllBytes(crashed, bytes);
            QemuImage.Check(scratch, crashed, mayLeak: true);
            using Qcow2Disk disk = Qcow2Disk.Open(crashed, readOnly: false);
            AssertFlushed(disk, durable, unsure);
        }
    }

    /// <summary>A process that is killed while it writes.</summary>
    [Fact]
    public async Task AKilledProcess()
    {
        QemuImage.Require();
        Random random = new(23);
        for (int round = 0; round < 5; round++)
        {
            using Tools.Scratch scratch = new();
            string image = Path.Combine(scratch.Path, "disk.qcow2");
            int clusterSize = 512 << round * 2;
            Qcow2Disk.Create(image, Length, new Qcow2Options { ClusterSize = clusterSize }).Dispose();
            ProcessStartInfo start = new(Environment.ProcessPath!) { RedirectStandardOutput = true, ArgumentList = { "-list", "classes" } };
            start.Environment[ChildOf] = $"{image}\n{clusterSize}\n{round}";
            using Process child = Process.Start(start)!;
            Task<string> output = child.StandardOutput.ReadToEndAsync(TestContext.Current.CancellationToken);
            while (!File.Exists(image + ".ready") && !child.HasExited)
                await Task.Delay(10, TestContext.Current.CancellationToken);
            await Task.Delay(random.Next(50), TestContext.Current.CancellationToken);
            child.Kill();
            await child.WaitForExitAsync(TestContext.Current.CancellationToken);
            int acknowledged = (await output).Split('\n')[..^1].Select(l => int.Parse(l, CultureInfo.InvariantCulture)).Last();
            Assert.True(acknowledged >= Ready);
            QemuImage.Check(scratch, image, mayLeak: true);
            // What the child did after the last flush that it told of is not known: up to the next one, and as much again if it did not get to tell.
            byte[] model = new byte[Length];
            HashSet<int> unsure = [];
            Random same = new(round);
            for (int i = 0; i < acknowledged + 20; i++)
            {
                Change change = Change.Next(same, clusterSize);
                if (i < acknowledged)
                    change.Apply(null, model);
                else
                    unsure.UnionWith(change.Sectors);
            }
            using Qcow2Disk disk = Qcow2Disk.Open(image, readOnly: false);
            AssertFlushed(disk, model, unsure);
        }
    }

    private static void AssertFlushed(Qcow2Disk disk, byte[] expected, HashSet<int> unsure)
    {
        byte[] seen = disk.Read(0, expected.Length);
        for (int sector = 0; sector < expected.Length / 512; sector++)
            if (!unsure.Contains(sector))
                Assert.True(seen.AsSpan(sector * 512, 512).SequenceEqual(expected.AsSpan(sector * 512, 512)), $"sector {sector} is not what was flushed");
    }

    /// <summary>In the child there are no tests: it changes the disk until it is killed, and says after which changes it has flushed.</summary>
    [ModuleInitializer]
    internal static void BeTheChild()
    {
        if (Environment.GetEnvironmentVariable(ChildOf) is not { } child)
            return;
        string[] words = child.Split('\n');
        using Qcow2Disk disk = Qcow2Disk.Open(words[0], readOnly: false);
        Random random = new(int.Parse(words[2], CultureInfo.InvariantCulture));
        byte[] model = new byte[Length];
        for (int i = 1; ; i++)
        {
            Change.Next(random, int.Parse(words[1], CultureInfo.InvariantCulture)).Apply(disk, model);
            if (i % 10 != 0 || disk.Flush() != DiskResult.Done)
                continue;
            Console.WriteLine(i.ToString(CultureInfo.InvariantCulture));
            Console.Out.Flush();
            if (i == Ready)
                File.WriteAllText(words[0] + ".ready", "");
        }
    }

    /// <summary>A write or a discard.</summary>
    private sealed record Change(int Offset, int Size, int Seed)
    {
        public IEnumerable<int> Sectors => Enumerable.Range(Offset / 512, Size / 512);

        public static Change Next(Random random, int clusterSize)
        {
            int size = random.Next(1, 1 + Math.Min(64, Math.Max(6, clusterSize / 256))) * 512, offset = random.Next((Length - size) / 512 + 1) * 512;
            if (random.Next(3) == 0)
                offset = offset / clusterSize * clusterSize;
            return new Change(offset, size, random.Next());
        }

        public void Apply(Qcow2Disk? disk, byte[] model)
        {
            Span<byte> part = model.AsSpan(Offset, Size);
            if (Seed % 5 == 0)
                part.Clear();
            else
                new Random(Seed).NextBytes(part);
            if (disk is not null)
                Assert.Equal(DiskResult.Done, Seed % 5 == 0 ? disk.Discard((ulong)Offset, (ulong)Size) : disk.Write((ulong)Offset, part));
        }
    }

    /// <summary>Keeps what is durable, and what may be, and now and then the file that a power cut would leave.</summary>
    private sealed class PowerCut(byte[] durable, Random random, int limit) : IFileObserver
    {
        private readonly List<(ulong Offset, byte[] Bytes)> _pending = [];
        private byte[] _durable = durable;
        private int _taken;

        public Action<byte[]>? Taken { get; set; }

        public void Written(ulong offset, ReadOnlySpan<byte> bytes)
        {
            _pending.Add((offset, bytes.ToArray()));
            if (_taken < limit && random.Next(4) == 0)
            {
                _taken++;
                Take();
            }
        }

        // A hole may be there or not; that it is early is the harder case.
        public void Punched(ulong offset, ulong length) => _pending.Add((offset, new byte[length]));

        public void Synced()
        {
            foreach ((ulong offset, byte[] bytes) in _pending)
                Put(ref _durable, offset, bytes);
            _pending.Clear();
        }

        private void Take()
        {
            byte[] image = [.. _durable];
            // All, none, or some of it, in any order.
            int share = random.Next(4);
            foreach ((ulong offset, byte[] bytes) in _pending)
                for (int at = 0; at < bytes.Length; at += 512 - (int)((offset + (ulong)at) % 512))
                    if (share == 3 || (share > 0 && random.Next(2) == 0))
                        Put(ref image, offset + (ulong)at, bytes.AsSpan(at, Math.Min(bytes.Length - at, 512 - (int)((offset + (ulong)at) % 512))));
            Taken!(image);
        }

        private static void Put(ref byte[] image, ulong offset, ReadOnlySpan<byte> bytes)
        {
            if ((int)offset + bytes.Length > image.Length)
                Array.Resize(ref image, (int)offset + bytes.Length);
            bytes.CopyTo(image.AsSpan((int)offset));
        }
    }
}
