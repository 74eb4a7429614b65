using System.Globalization;
using Aerostat.Backup;
using Aerostat.Machine;

namespace Aerostat.Cli;

/// <summary>
/// A guest with writers on two ext4 disks is backed up again and again, nearly always by what has changed. Each backup is verified and restored, each image
/// checked by e2fsck without a journal replay, and against what the guest had been told was on its disks before it froze.
/// </summary>
internal sealed class BackupSoak
{
    private const int Keep = 8;

    public required string Kernel { get; init; }

    public required string Busybox { get; init; }

    public required MachineOptions Options { get; init; }

    public required ulong DiskBytes { get; init; }

    public required int Rounds { get; init; }

    public async Task<int> RunAsync(TextWriter output, TextWriter error, CancellationToken cancellation)
    {
        string folder = Directory.CreateTempSubdirectory("aerostat-soak-").FullName;
        try
        {
            string[] disks = [Path.Combine(folder, "a.img"), Path.Combine(folder, "b.img")];
            string store = Path.Combine(folder, "store"), copy = Path.Combine(folder, "copy.img");
            await BackupGuest.MakeDisksAsync(disks.Select(d => (d, DiskBytes)), cancellation).ConfigureAwait(false);
            List<double> frozen = [];
            BackupGuest guest = await BackupGuest.StartAsync(Kernel, Busybox, Options, disks, "", cancellation).ConfigureAwait(false);
            await using (guest.ConfigureAwait(false))
            {
                MachineBackups backups = new(guest.Machine, $"aerostat {Program.Version}");
                for (int i = 1; i <= Rounds; i++)
                {
                    await guest.WriteMoreAsync(3, cancellation).ConfigureAwait(false);
                    long before = guest.Written;
                    BackupResult result = await backups.SaveAsync(store, new BackupOptions { Incremental = true, Keep = Keep }, cancellation).ConfigureAwait(false);
                    long after = guest.Written;
                    BackupManifest manifest = result.Backup.Manifest;
                    if (await CheckAsync(store, result.Backup, copy, before, after, cancellation).ConfigureAwait(false) is { } wrong)
                    {
                        error.WriteLine($"aerostat bench: backup {i}: {wrong}");
                        return ExitStatus.Incomplete;
                    }
                    frozen.Add(manifest.FrozenMilliseconds!.Value);
                    output.WriteLine(string.Create(CultureInfo.InvariantCulture,
                        $"backup {i}: {(manifest.Parent is null ? "full" : "incremental")}, {result.ReadBytes / 1e6:0.0} MB read, {result.StoredBytes / 1e6:0.0} MB stored, {result.SavedBlocks} blocks saved; frozen for {manifest.FrozenMilliseconds:0.0} ms; both images clean, line {before} of the log and later ones there"));
                    output.Flush();
                }
            }
            frozen.Sort();
            output.WriteLine(string.Create(CultureInfo.InvariantCulture, $"{Rounds} backups of two disks, all clean and complete; frozen for {frozen[frozen.Count / 2]:0.0} ms (median), {frozen[^1]:0.0} ms (longest)"));
            return ExitStatus.Success;
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
    }

    private static async Task<string?> CheckAsync(string directory, StoredBackup backup, string copy, long before, long after, CancellationToken cancellation)
    {
        BackupStore store = BackupStore.Open(directory);
        if (backup.Manifest.Consistency != BackupConsistency.Guest)
            return $"it is crash-consistent: {backup.Manifest.ConsistencyReason}";
        if (BackupReader.Verify(store, backup.Name, null, cancellation) is [var damage, ..])
            return damage;
        long first = 0;
        for (int i = 0; i < 2; i++)
        {
            BackupReader.Restore(store, backup, $"disk{i}", copy, replace: true, BackupReader.CreateRaw, null, cancellation);
            (long lines, string? wrong) = await BackupGuest.CheckAsync(copy, cancellation).ConfigureAwait(false);
            if (wrong is not null)
                return $"disk{i}: {wrong}";
            // The console may be a line behind; the second disk is written after the first.
            if (lines < before || lines > after + 2)
                return $"disk{i}: the log has {lines} lines; the guest had said {before} before, and {after} after";
            if (i == 0)
                first = lines;
            else if (lines != first && lines != first - 1)
                return $"the logs have {first} and {lines} lines: the disks are not of one moment";
        }
        return null;
    }
}
