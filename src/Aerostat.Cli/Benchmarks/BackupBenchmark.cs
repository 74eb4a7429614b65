using System.Diagnostics;
using System.Globalization;
using System.Text.Json;
using System.Text.Json.Serialization;
using Aerostat.Backup;
using Aerostat.Hosting;
using Aerostat.Machine;

namespace Aerostat.Cli;

/// <summary>
/// How fast a disk is backed up and restored, in turn with <c>cp --sparse=always</c> and <c>qemu-img convert</c>, each until its copy is durable; and for how long a guest
/// is frozen, by the size of its disk.
/// </summary>
internal sealed class BackupBenchmark
{
    private static readonly TimeSpan s_limit = TimeSpan.FromMinutes(10);

    public required string Kernel { get; init; }

    public required string Busybox { get; init; }

    /// <summary>A folder whose files fill the disk that is copied.</summary>
    public required string Contents { get; init; }

    public required MachineOptions Options { get; init; }

    public required int Runs { get; init; }

    public required int Freezes { get; init; }

    public required bool Json { get; init; }

    public async Task<int> RunAsync(TextWriter output, CancellationToken cancellation)
    {
        string folder = Directory.CreateTempSubdirectory("aerostat-bench-").FullName;
        try
        {
            IReadOnlyList<CopyRate> rates = Runs > 0 ? await MeasureRatesAsync(folder, cancellation).ConfigureAwait(false) : [];
            if (!Json && Runs > 0)
            {
                output.WriteLine("copy of a sparse ext4 of 4 GiB, to its durable end, MB of contents a second (median of runs)");
                foreach (CopyRate rate in rates)
                    output.WriteLine(string.Create(CultureInfo.InvariantCulture, $"  {rate.Name,-32} {rate.MegabytesPerSecond,6:0} MB/s   {rate.PercentOfCp,4:0} % of cp   {rate.Seconds:0.00} s   {rate.CpuSeconds:0.00} s of CPU time   {rate.StoredBytes / 1e6:0} MB on the disk"));
                output.Flush();
            }
            IReadOnlyList<FrozenTimes> frozen = Freezes > 0 ? await MeasureFreezesAsync(folder, [4UL << 30, 64UL << 30], cancellation).ConfigureAwait(false) : [];
            foreach (FrozenTimes times in Json ? [] : frozen)
                output.WriteLine(string.Create(CultureInfo.InvariantCulture,
                    $"disk of {MemorySize.Format(times.DiskBytes)}, {Freezes} backups under load: frozen for {times.Median:0.0} ms (median), {times.Longest:0.0} ms (longest), after {times.FreezeMedian:0.0} ms of freezing (median); writes held for {times.HeldMedian:0} us (median), {times.HeldLongest:0} us (longest)"));
            if (Json)
                output.WriteLine(JsonSerializer.Serialize(new BackupFigures(rates, frozen), BackupFiguresJson.Default.BackupFigures));
            return ExitStatus.Success;
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
    }

    private async Task<IReadOnlyList<CopyRate>> MeasureRatesAsync(string folder, CancellationToken cancellation)
    {
        string disk = Path.Combine(folder, "disk.img"), copy = Path.Combine(folder, "copy.img"), store = Path.Combine(folder, "store");
        string format = GuestFileSystem.FindTool("mkfs.ext4") ?? throw new ConfigurationException("the host has no mkfs.ext4 to make a disk with; install e2fsprogs");
        using (FileStream file = File.Create(disk))
            file.SetLength(4L << 30);
        ChildRun made = await ChildRun.StartAsync(format, ["-q", "-F", "-d", Contents, disk], s_limit, cancellation).ConfigureAwait(false);
        if (made.ExitCode != 0)
            throw new HostException($"mkfs.ext4 failed: {made.Output.Trim().ReplaceLineEndings(" ")}");
        long bytes = OnDisk(disk);
        List<(string Name, Func<Task<(TimeSpan Wall, TimeSpan Cpu)>> Run, Func<long> Stored)> ways = [];
        ways.Add(("cp --sparse=always", () => CopyAsync("cp", "--sparse=always", disk, copy), () => OnDisk(copy)));
        if (ChildRun.Find("qemu-img") is not null)
        {
            ways.Add(("qemu-img convert -O raw", () => CopyAsync("qemu-img", "convert", "-O", "raw", disk, copy), () => OnDisk(copy)));
            // The only compression that it shares with us: zstd in qcow2.
            ways.Add(("qemu-img convert -c (qcow2, zstd)", () => CopyAsync("qemu-img", "convert", "-c", "-O", "qcow2", "-o", "compression_type=zstd", disk, copy), () => OnDisk(copy)));
        }
        long stored = 0;
        foreach ((string name, int? level, BackupHash hash) in ((string, int?, BackupHash)[])[
            ("backup, not compressed", null, BackupHash.XxHash128), ("backup, not compressed, SHA-256", null, BackupHash.Sha256), ("backup, level -5", -5, BackupHash.XxHash128), ("backup, level 1 (default)", 1, BackupHash.XxHash128)])
            ways.Add((name, () => BackUpAsync(store, level, hash), () => stored));
        string plain = Path.Combine(folder, "plain"), small = Path.Combine(folder, "small");
        _ = await BackUpAsync(plain, null, BackupHash.XxHash128).ConfigureAwait(false);
        _ = await BackUpAsync(small, 1, BackupHash.XxHash128).ConfigureAwait(false);
        ways.Add(("restore, not compressed", () => RestoreAsync(plain), () => OnDisk(copy)));
        ways.Add(("restore, level 1", () => RestoreAsync(small), () => OnDisk(copy)));
        List<(TimeSpan Wall, TimeSpan Cpu)>[] costs = [.. ways.Select(_ => new List<(TimeSpan, TimeSpan)>())];
        long[] sizes = new long[ways.Count];
        for (int run = 0; run <= Runs; run++)
        {
            for (int i = 0; i < ways.Count; i++)
            {
                cancellation.ThrowIfCancellationRequested();
                (TimeSpan Wall, TimeSpan Cpu) cost = await ways[i].Run().ConfigureAwait(false);
                // The first round is for the host's page cache.
                if (run > 0)
                    costs[i].Add(cost);
                sizes[i] = ways[i].Stored();
                File.Delete(copy);
                if (Directory.Exists(store))
                    Directory.Delete(store, recursive: true);
            }
        }
        return
        [
            .. ways.Select((w, i) => new CopyRate(
                w.Name, Math.Round(Median(costs[i].Select(c => c.Wall.TotalSeconds)), 3), Math.Round(bytes / 1e6 / Median(costs[i].Select(c => c.Wall.TotalSeconds)), 1),
                // Each run against cp's of the same round: the host's load comes and goes.
                Math.Round(100 * Median(costs[i].Zip(costs[0], (c, cp) => cp.Wall / c.Wall)), 1), Math.Round(Median(costs[i].Select(c => c.Cpu.TotalSeconds)), 3), sizes[i])),
        ];

        // A machine for each: while there is one nobody else may open its disk. It is there before the clock runs, as it is when somebody backs one up.
        async Task<(TimeSpan, TimeSpan)> BackUpAsync(string directory, int? level, BackupHash hash)
        {
            VirtualMachine machine = Machines.Create(Options with { Name = "bench", MemoryBytes = 4 << 20, Devices = [new DiskOptions(disk)], Boot = new RealModeBootOptions(new byte[] { 0xEB, 0xFE }) });
            await using (machine.ConfigureAwait(false))
            {
                return await MeasureAsync(async () =>
                    stored = (await new MachineBackups(machine, "bench").SaveAsync(directory, new BackupOptions { AllowCrashConsistent = true, Level = level, Hash = hash }, cancellation).ConfigureAwait(false)).StoredBytes).ConfigureAwait(false);
            }
        }

        Task<(TimeSpan, TimeSpan)> RestoreAsync(string directory) => MeasureAsync(() =>
        {
            BackupStore from = BackupStore.Open(directory);
            BackupReader.Restore(from, from.Find(null), "disk0", copy, replace: false, BackupReader.CreateRaw, null, cancellation);
            return Task.CompletedTask;
        });

        static async Task<(TimeSpan, TimeSpan)> MeasureAsync(Func<Task> work)
        {
            TimeSpan before = Environment.CpuUsage.TotalTime;
            long start = Stopwatch.GetTimestamp();
            await work().ConfigureAwait(false);
            return (Stopwatch.GetElapsedTime(start), Environment.CpuUsage.TotalTime - before);
        }

        async Task<(TimeSpan, TimeSpan)> CopyAsync(string program, params string[] arguments)
        {
            ChildRun run = await ChildRun.StartAsync(ChildRun.Find(program)!, arguments, s_limit, cancellation).ConfigureAwait(false);
            ChildRun sync = await ChildRun.StartAsync(ChildRun.Find("sync")!, [copy], s_limit, cancellation).ConfigureAwait(false);
            if (run.ExitCode != 0 || sync.ExitCode != 0)
                throw new HostException($"{program} failed: {(run.Output + sync.Output).Trim().ReplaceLineEndings(" ")}");
            return (run.Wall + sync.Wall, run.Cpu + sync.Cpu);
        }
    }

    // A guest for each size, one after the other at work while the others are paused: whatever else the host does comes to all of them.
    private async Task<IReadOnlyList<FrozenTimes>> MeasureFreezesAsync(string folder, IReadOnlyList<ulong> sizes, CancellationToken cancellation)
    {
        List<BackupGuest> guests = [];
        try
        {
            foreach (ulong size in sizes)
            {
                string disk = Path.Combine(folder, $"frozen-{size}.img");
                guests.Add(await BackupGuest.StartAsync(Kernel, Busybox, Options, [new GuestDisk(disk, size, GuestFileSystem.Ext4)], "", agent: null, cancellation).ConfigureAwait(false));
                await guests[^1].Machine.PauseAsync().ConfigureAwait(false);
            }
            MachineBackups[] backups = [.. guests.Select(g => new MachineBackups(g.Machine, "bench"))];
            List<BackupManifest>[] made = [.. guests.Select(_ => new List<BackupManifest>())];
            for (int i = 0; i < Freezes; i++)
            {
                for (int g = 0; g < guests.Count; g++)
                {
                    await guests[g].Machine.ResumeAsync().ConfigureAwait(false);
                    await guests[g].WriteMoreAsync(3, cancellation).ConfigureAwait(false);
                    string store = Path.Combine(folder, $"store-{g}");
                    made[g].Add((await backups[g].SaveAsync(store, new BackupOptions { Incremental = true, Keep = 4 }, cancellation).ConfigureAwait(false)).Backup.Manifest);
                    await guests[g].Machine.PauseAsync().ConfigureAwait(false);
                }
            }
            return
            [
                .. sizes.Select((size, g) => new FrozenTimes(
                    size, Median(made[g].Select(m => m.FrozenMilliseconds!.Value)), made[g].Max(m => m.FrozenMilliseconds!.Value), Median(made[g].Select(m => m.HeldMicroseconds)), made[g].Max(m => m.HeldMicroseconds),
                    Median(made[g].Select(m => m.FreezeMilliseconds!.Value)))),
            ];
        }
        finally
        {
            foreach (BackupGuest guest in guests)
                await guest.DisposeAsync().ConfigureAwait(false);
        }
    }

    // Blocks of 512 bytes, as stat(1) says them: a sparse file takes less than its length.
    private static long OnDisk(string path)
    {
        using Process process = Process.Start(new ProcessStartInfo("stat", ["-c", "%b", path]) { RedirectStandardOutput = true })!;
        string blocks = process.StandardOutput.ReadToEnd();
        process.WaitForExit();
        return long.Parse(blocks, CultureInfo.InvariantCulture) * 512;
    }

    private static double Median(IEnumerable<double> values)
    {
        double[] sorted = [.. values.Order()];
        return sorted[sorted.Length / 2];
    }
}

/// <summary>How fast one way of copying is.</summary>
internal sealed record CopyRate(string Name, double Seconds, double MegabytesPerSecond, double PercentOfCp, double CpuSeconds, long StoredBytes);

/// <summary>For how long a guest is frozen, in milliseconds, and its writes held, in microseconds.</summary>
internal sealed record FrozenTimes(ulong DiskBytes, double Median, double Longest, double HeldMedian, double HeldLongest, double FreezeMedian);

/// <summary>All of it.</summary>
internal sealed record BackupFigures(IReadOnlyList<CopyRate> Rates, IReadOnlyList<FrozenTimes> Frozen);

/// <summary>How it is written.</summary>
[JsonSourceGenerationOptions(PropertyNamingPolicy = JsonKnownNamingPolicy.CamelCase, WriteIndented = true)]
[JsonSerializable(typeof(BackupFigures))]
internal sealed partial class BackupFiguresJson : JsonSerializerContext;
