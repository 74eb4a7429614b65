using System.CommandLine;
using System.Globalization;
using Aerostat.Backup;
using Aerostat.Machine;
using Aerostat.Platform;

namespace Aerostat.Cli;

/// <summary>
/// <c>aerostat demo backup</c>: a stock guest that writes to its ext4 all the time is backed up, in full and by what has changed; what is restored is checked by e2fsck
/// and against the guest's own log.
/// </summary>
internal static class DemoBackupCommand
{
    private const int Backups = 3;

    public static Command Create()
    {
        Option<string> kernel = new("--kernel") { HelpName = "FILE", Description = "A bzImage; default: the stock kernel that ./dev fetched" };
        Option<string> busybox = new("--busybox") { HelpName = "FILE", Description = "A static busybox; default: the one that ./dev fetched" };
        Option<string> size = new("--size") { HelpName = "SIZE", Description = "Of the disk", DefaultValueFactory = _ => "4G" };
        Option<string> data = new("--data") { HelpName = "SIZE", Description = "What the guest writes first", DefaultValueFactory = _ => "256M" };
        Option<string> memory = MachineArguments.Memory();
        Option<string> cpus = MachineArguments.Cpus();
        Option<string> accelerator = MachineArguments.Accelerator();
        Command command = new("backup", "Guest-consistent backups of a stock guest's ext4 under write load, checked by e2fsck.") { kernel, busybox, size, data, memory, cpus, accelerator };
        command.SetAction(async (result, _) =>
        {
            using HostSignals signals = new();
            string folder = Directory.CreateTempSubdirectory("aerostat-demo-").FullName;
            try
            {
                MachineOptions options = new()
                {
                    Name = "demo",
                    MemoryBytes = MachineArguments.ParseMemory(result.GetRequiredValue(memory)),
                    Cpus = MachineArguments.ParseCpus(result.GetRequiredValue(cpus)),
                    Accelerator = result.GetRequiredValue(accelerator),
                };
                return await RunAsync(
                    folder, StockKernel.Kernel(result.GetValue(kernel)), StockKernel.Busybox(result.GetValue(busybox)), options, MemorySize.Parse(result.GetRequiredValue(size), "--size"),
                    MemorySize.Parse(result.GetRequiredValue(data), "--data"), result.InvocationConfiguration.Output, result.InvocationConfiguration.Error, signals.Stopping).ConfigureAwait(false);
            }
            catch (OperationCanceledException) when (signals.Received != 0)
            {
                return signals.ExitStatus;
            }
            finally
            {
                Directory.Delete(folder, recursive: true);
            }
        });
        return command;
    }

    private static async Task<int> RunAsync(string folder, string kernel, string busybox, MachineOptions options, ulong size, ulong data, TextWriter output, TextWriter error, CancellationToken cancellation)
    {
        string disk = Path.Combine(folder, "disk.img"), store = Path.Combine(folder, "store"), copy = Path.Combine(folder, "copy.img");
        output.WriteLine($"A stock guest with an ext4 of {MemorySize.Format(size)} writes {MemorySize.Format(data)} to it, and then goes on writing.");
        output.Flush();
        BackupGuest guest = await BackupGuest.StartAsync(kernel, busybox, options, [new GuestDisk(disk, size, GuestFileSystem.Ext4)], $"dd if=/dev/urandom of=/d0/data bs=1M count={data >> 20} 2> /dev/null; sync", agent: null, cancellation).ConfigureAwait(false);
        List<(BackupResult Result, long Before)> made = [];
        await using (guest.ConfigureAwait(false))
        {
            MachineBackups backups = new(guest.Machine, $"aerostat {Program.Version}");
            for (int i = 0; i < Backups; i++)
            {
                await guest.WriteMoreAsync(20, cancellation).ConfigureAwait(false);
                long before = guest.Written;
                BackupResult result = await backups.SaveAsync(store, new BackupOptions { Incremental = i > 0 }, cancellation).ConfigureAwait(false);
                made.Add((result, before));
                BackupManifest manifest = result.Backup.Manifest;
                output.WriteLine(string.Create(CultureInfo.InvariantCulture,
                    $"{result.Backup.Name}: {(manifest.Parent is null ? "full" : "incremental")}, {manifest.Consistency.ToString().ToLowerInvariant()}-consistent; frozen for {manifest.FrozenMilliseconds:0.0} ms (of those, writes held {manifest.HeldMicroseconds:0} us) after {manifest.FreezeMilliseconds:0.0} ms of freezing"));
                output.WriteLine(string.Create(CultureInfo.InvariantCulture,
                    $"    {result.ReadBytes / 1e6:0.0} MB read, {result.StoredBytes / 1e6:0.0} MB stored in {result.CopyTime.TotalSeconds:0.00} s ({result.ReadBytes / 1e6 / result.CopyTime.TotalSeconds:0} MB/s, forced to the disk); the guest overwrote {result.SavedBlocks} blocks meanwhile"));
                output.Flush();
            }
            if (guest.Machine.IntegrationComponents!.KeyValues.Facts is { Count: > 0 } facts)
                output.WriteLine($"The guest says that it is {facts.GetValueOrDefault("OSName")} {facts.GetValueOrDefault("OSVersion")}.");
        }
        BackupStore opened = BackupStore.Open(store);
        foreach ((BackupResult result, long before) in made)
        {
            IReadOnlyList<string> damage = BackupReader.Verify(opened, result.Backup.Name, null, cancellation);
            BackupProgress progress = new();
            BackupReader.Restore(opened, result.Backup, "disk0", copy, replace: true, BackupReader.CreateRaw, progress, cancellation);
            TimeSpan took = progress.Elapsed;
            (long lines, string? wrong) = await BackupGuest.CheckAsync(copy, cancellation).ConfigureAwait(false);
            wrong ??= damage.Count > 0 ? damage[0] : lines < before ? $"the guest had {before} lines on its disk before it froze, and {lines} are there" : null;
            if (wrong is not null)
            {
                error.WriteLine($"aerostat demo: backup {result.Backup.Name}: {wrong}");
                return ExitStatus.Incomplete;
            }
            output.WriteLine(string.Create(CultureInfo.InvariantCulture,
                $"{result.Backup.Name}: verified; restored {progress.ReadBytes / 1e6:0.0} MB in {took.TotalSeconds:0.00} s; e2fsck -fn finds it clean, no journal to replay; the log has {lines} lines, at least {before} were promised"));
            output.Flush();
        }
        return ExitStatus.Success;
    }
}
