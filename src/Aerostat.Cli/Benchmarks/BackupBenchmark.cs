using System.Diagnostics;
using System.Globalization;
using System.Text.Json;
using System.Text.Json.Serialization;
using Aerostat.Backup;
using Aerostat.Hosting;
using Aerostat.Machine;

namespace Aerostat.Cli;

/// <summary>
/// How fast a disk is backed up, in turn with <c>cp --sparse=always</c> and <c>qemu-img convert</c>, each until its copy is durable; and for how long a guest
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
                    output.WriteLine(string.Create(CultureInfo.InvariantCulture, $"  {rate.Name,-32} {rate.MegabytesPerSecond,6:0} MB/s   {rate.Seconds:0.00} s   {rate.CpuSeconds:0.00} s of CPU time   {rate.StoredBytes / 1e6:0} MB on the disk"));
                output.Flush();
            }
            List<FrozenTimes> frozen = [];
            foreach (ulong size in Freezes > 0 ? (ulong[])[4UL << 30, 64UL << 30] : [])
            {
                FrozenTimes times = await MeasureFreezesAsync(folder, size, cancellation).ConfigureAwait(false);
                frozen.Add(times);
                if (!Json)
                    output.WriteLine(string.Create(CultureInfo.InvariantCulture,
                        $"disk of {MemorySize.Format(size)}, {Freezes} backups under load: frozen for {times.Median:0.0} ms (median), {times.Longest:0.0} ms (longest); writes held for {times.HeldMedian:0} us (median), {times.HeldLongest:0} us (longest)"));
                output.Flush();
            }
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
        string format = BackupGuest.FindTool("mkfs.ext4") ?? throw new ConfigurationException("the host has no mkfs.ext4 to make a disk with; install e2fsprogs");
        using (FileStream file = File.Create(disk))
            file.SetLength(4L << 30);
        ChildRun made = await ChildRun.StartAsync(format, ["-q", "-F", "-d", Contents, disk], s_limit, cancellation).ConfigureAwait(false);
        if (made.ExitCode != 0)
            throw new HostException($"mkfs.ext4 failed: {made.Output.Trim().ReplaceLineEndings(" ")}");
        long bytes = OnDisk(disk);
        List<(string Name, Func<Task<TimeSpan>> Run, Func<long> Stored)> ways = [];
        ways.Add(("cp --sparse=always", () => CopyAsync("cp", "--sparse=always", disk, copy), () => OnDisk(copy)));
        if (ChildRun.Find("qemu-img") is not null)
        {
            ways.Add(("qemu-img convert -O raw", () => CopyAsync("qemu-img", "convert", "-O", "raw", disk, copy), () => OnDisk(copy)));
            // The only compression that it shares with us: zstd in qcow2.
            ways.Add(("qemu-img convert -c (qcow2, zstd)", () => CopyAsync("qemu-img", "convert", "-c", "-O", "qcow2", "-o", "compression_type=zstd", disk, copy), () => OnDisk(copy)));
        }
        long stored = 0;
        foreach ((string name, int? level) in ((string, int?)[])[("backup --compress none", null), ("backup --compress -5", -5), ("backup (level 1)", 1)])
            ways.Add((name, () => BackUpAsync(level), () => stored));
        List<double>[] seconds = [.. ways.Select(_ => new List<double>())], cpu = [.. ways.Select(_ => new List<double>())];
        long[] sizes = new long[ways.Count];
        for (int run = 0; run <= Runs; run++)
        {
            for (int i = 0; i < ways.Count; i++)
            {
                cancellation.ThrowIfCancellationRequested();
                long start = Stopwatch.GetTimestamp();
                TimeSpan cost = await ways[i].Run().ConfigureAwait(false);
                // The first round is for the host's page cache.
                if (run > 0)
                {
                    seconds[i].Add(Stopwatch.GetElapsedTime(start).TotalSeconds);
                    cpu[i].Add(cost.TotalSeconds);
                }
                sizes[i] = ways[i].Stored();
                File.Delete(copy);
                if (Directory.Exists(store))
                    Directory.Delete(store, recursive: true);
            }
        }
        return [.. ways.Select((w, i) => new CopyRate(w.Name, Math.Round(Median(seconds[i]), 3), Math.Round(bytes / 1e6 / Median(seconds[i]), 1), Math.Round(Median(cpu[i]), 3), sizes[i]))];

        // A machine for each: while there is one nobody else may open its disk.
        async Task<TimeSpan> BackUpAsync(int? level)
        {
            TimeSpan before = Environment.CpuUsage.TotalTime;
            VirtualMachine machine = Machines.Create(Options with { Name = "bench", MemoryBytes = 4 << 20, Devices = [new DiskOptions(disk)], Boot = new RealModeBootOptions(new byte[] { 0xEB, 0xFE }) });
            await using (machine.ConfigureAwait(false))
                stored = (await new MachineBackups(machine, "bench").SaveAsync(store, new BackupOptions { AllowCrashConsistent = true, Level = level }, cancellation).ConfigureAwait(false)).StoredBytes;
            return Environment.CpuUsage.TotalTime - before;
        }

        async Task<TimeSpan> CopyAsync(string program, params string[] arguments)
        {
            ChildRun run = await ChildRun.StartAsync(ChildRun.Find(program)!, arguments, s_limit, cancellation).ConfigureAwait(false);
            ChildRun sync = await ChildRun.StartAsync(ChildRun.Find("sync")!, [copy], s_limit, cancellation).ConfigureAwait(false);
            if (run.ExitCode != 0 || sync.ExitCode != 0)
                throw new HostException($"{program} failed: {(run.Output + sync.Output).Trim().ReplaceLineEndings(" ")}");
            return run.Cpu + sync.Cpu;
        }
    }

    private async Task<FrozenTimes> MeasureFreezesAsync(string folder, ulong size, CancellationToken cancellation)
    {
        string disk = Path.Combine(folder, $"frozen-{size}.img"), store = Path.Combine(folder, $"store-{size}");
        await BackupGuest.MakeDisksAsync([(disk, size)], cancellation).ConfigureAwait(false);
        List<double> frozen = [], held = [];
        BackupGuest guest = await BackupGuest.StartAsync(Kernel, Busybox, Options, [disk], "", cancellation).ConfigureAwait(false);
        await using (guest.ConfigureAwait(false))
        {
            MachineBackups backups = new(guest.Machine, "bench");
            for (int i = 0; i < Freezes; i++)
            {
                await guest.WriteMoreAsync(2, cancellation).ConfigureAwait(false);
                BackupManifest manifest = (await backups.SaveAsync(store, new BackupOptions { Incremental = true, Keep = 4 }, cancellation).ConfigureAwait(false)).Backup.Manifest;
                frozen.Add(manifest.FrozenMilliseconds!.Value);
                held.Add(manifest.HeldMicroseconds);
            }
        }
        File.Delete(disk);
        Directory.Delete(store, recursive: true);
        return new FrozenTimes(size, Median(frozen), frozen.Max(), Median(held), held.Max());
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
internal sealed record CopyRate(string Name, double Seconds, double MegabytesPerSecond, double CpuSeconds, long StoredBytes);

/// <summary>For how long a guest is frozen, in milliseconds, and its writes held, in microseconds.</summary>
internal sealed record FrozenTimes(ulong DiskBytes, double Median, double Longest, double HeldMedian, double HeldLongest);

/// <summary>All of it.</summary>
internal sealed record BackupFigures(IReadOnlyList<CopyRate> Rates, IReadOnlyList<FrozenTimes> Frozen);

/// <summary>How it is written.</summary>
[JsonSourceGenerationOptions(PropertyNamingPolicy = JsonKnownNamingPolicy.CamelCase, WriteIndented = true)]
[JsonSerializable(typeof(BackupFigures))]
internal sealed partial class BackupFiguresJson : JsonSerializerContext;
