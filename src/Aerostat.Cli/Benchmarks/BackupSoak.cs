using System.Globalization;
using Aerostat.Backup;
using Aerostat.Machine;

namespace Aerostat.Cli;

/// <summary>
/// A guest with writers on several disks, of several file systems, and a tmpfs is backed up again and again, nearly always by what has changed. Each backup is
/// verified and restored, each image checked by its file system's own program and, without a journal replay, against what the guest had been told was on its
/// disks before it froze.
/// </summary>
internal sealed class BackupSoak
{
    private const int Keep = 8;

    public required string Kernel { get; init; }

    public required string Busybox { get; init; }

    public required MachineOptions Options { get; init; }

    public required ulong DiskBytes { get; init; }

    /// <summary>One for each disk.</summary>
    public required IReadOnlyList<GuestFileSystem> FileSystems { get; init; }

    /// <summary>Our own agent's program; null: Debian's daemons freeze.</summary>
    public string? Agent { get; init; }

    public required int Rounds { get; init; }

    public async Task<int> RunAsync(TextWriter output, TextWriter error, CancellationToken cancellation)
    {
        string folder = Directory.CreateTempSubdirectory("aerostat-soak-").FullName;
        try
        {
            GuestDisk[] disks = [.. FileSystems.Select((f, i) => new GuestDisk(Path.Combine(folder, $"{i}-{f.Name}.img"), DiskBytes, f))];
            string store = Path.Combine(folder, "store");
            List<double> frozen = [];
            BackupGuest guest = await BackupGuest.StartAsync(Kernel, Busybox, Options, disks, "", Agent, cancellation).ConfigureAwait(false);
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
                    if (await CheckAsync(folder, store, result.Backup, before, after, cancellation).ConfigureAwait(false) is { } wrong)
                    {
                        error.WriteLine($"aerostat bench: backup {i}: {wrong}");
                        return ExitStatus.Incomplete;
                    }
                    frozen.Add(manifest.FrozenMilliseconds!.Value);
                    output.WriteLine(string.Create(CultureInfo.InvariantCulture,
                        $"backup {i}: {(manifest.Parent is null ? "full" : "incremental")}, {result.ReadBytes / 1e6:0.0} MB read, {result.StoredBytes / 1e6:0.0} MB stored, {result.SavedBlocks} blocks saved; frozen for {manifest.FrozenMilliseconds:0.0} ms; all images clean, line {before} of the log and later ones there"));
                    output.Flush();
                }
            }
            frozen.Sort();
            output.WriteLine(string.Create(CultureInfo.InvariantCulture, $"{Rounds} backups of {disks.Length} disks ({string.Join(", ", FileSystems.Select(f => f.Name))}), frozen by {(Agent is null ? "hv_vss_daemon" : "aerostat-agent")}, all clean and complete; frozen for {frozen[frozen.Count / 2]:0.0} ms (median), {frozen[^1]:0.0} ms (longest)"));
            return ExitStatus.Success;
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
    }

    private async Task<string?> CheckAsync(string folder, string directory, StoredBackup backup, long before, long after, CancellationToken cancellation)
    {
        BackupStore store = BackupStore.Open(directory);
        if (backup.Manifest.Consistency != BackupConsistency.Guest)
            return $"it is crash-consistent: {backup.Manifest.ConsistencyReason}";
        if (BackupReader.Verify(store, backup.Name, null, cancellation) is [var damage, ..])
            return damage;
        GuestDisk[] copies = [.. FileSystems.Select((f, i) => new GuestDisk(Path.Combine(folder, $"restored-{i}-{f.Name}.img"), 0, f))];
        for (int i = 0; i < copies.Length; i++)
            BackupReader.Restore(store, backup, $"disk{i}", copies[i].Path, replace: true, BackupReader.CreateRaw, null, cancellation);
        (long[] lines, string? wrong) = await BackupGuest.CheckAsync(Kernel, Busybox, Options, copies, cancellation).ConfigureAwait(false);
        if (wrong is not null)
            return wrong;
        // The console may be a line behind; each disk is written after the one before it.
        if (lines.Any(l => l < before || l > after + 2))
            return $"the logs have {string.Join(", ", lines)} lines; the guest had said {before} before, and {after} after";
        return lines.Zip(lines.Skip(1)).Any(p => p.First < p.Second) || lines[^1] < lines[0] - 1
            ? $"the logs have {string.Join(", ", lines)} lines: the disks are not of one moment"
            : null;
    }
}
