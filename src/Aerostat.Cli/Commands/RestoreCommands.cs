using System.CommandLine;
using System.Globalization;
using System.Text.Json;
using System.Text.Json.Serialization;
using Aerostat.Backup;
using Aerostat.Machine;
using Aerostat.Platform;
using Aerostat.Storage;

namespace Aerostat.Cli;

/// <summary><c>aerostat restore</c> and <c>verify</c>: what <c>aerostat backup</c> has written, read back.</summary>
internal static class RestoreCommands
{
    private static readonly TimeSpan s_interval = TimeSpan.FromMilliseconds(200);

    public static Command Restore()
    {
        Argument<string> from = new("DIR") { Description = "Directory that backups were written to" };
        Option<string?> to = new("--to") { HelpName = "DISK", Description = "The new image; it appears when it is whole" };
        Option<string?> backup = new("--backup") { HelpName = "NAME", Description = "Which backup, by its name or the beginning of it (the latest)" };
        Option<string?> disk = new("--disk") { HelpName = "NAME", Description = "Which disk, such as disk0; needed when there are several" };
        Option<string?> format = new("--format") { HelpName = "raw|qcow2", Description = "What the new image is; by default its name says so: .qcow2, or raw" };
        Option<bool> force = new("--force") { Description = "Replace what is there" };
        Option<bool> json = new("--json") { Description = "Machine-readable output" };
        Command command = new("restore", "Write a disk as it was at a backup into a new image; all that is read is checked.") { from, to, backup, disk, format, force, json };
        command.SetAction(result =>
        {
            if (result.GetValue(to) is not { Length: > 0 } target)
                throw new ConfigurationException("where to? give --to DISK");
            DiskFormat image = result.GetValue(format) switch
            {
                null => DiskImage.FormatOf(target),
                "raw" => DiskFormat.Raw,
                "qcow2" => DiskFormat.Qcow2,
                var other => throw new ConfigurationException($"--format: there is no '{other}'; there are raw and qcow2"),
            };
            BackupStore store = BackupStore.Open(result.GetRequiredValue(from));
            StoredBackup found = store.Find(result.GetValue(backup));
            string[] names = [.. found.Manifest.Disks.Select(d => d.Name)];
            string name = result.GetValue(disk) ?? (names.Length == 1 ? names[0] : throw new ConfigurationException($"backup {found.Name} has several disks; give --disk with one of {string.Join(", ", names)}"));
            if (!names.Contains(name))
                throw new ConfigurationException($"backup {found.Name} has no disk '{name}'; there are {string.Join(", ", names)}");
            BackupProgress progress = new();
            using HostSignals signals = new();
            int status = Run(result, signals, "restoring", progress, () => BackupReader.Restore(store, found, name, target, result.GetValue(force), BackupReader.Creator(image), progress, signals.Stopping));
            if (status != ExitStatus.Success)
                return status;
            BackupDisk restored = found.Manifest.Disks.First(d => d.Name == name);
            Report(result, json, new RestoreReport(found.Name, name, Path.GetFullPath(target), found.Manifest.Consistency == BackupConsistency.Guest ? "guest" : "crash", restored.Length, progress.ReadBytes, Math.Round(progress.Elapsed.TotalSeconds, 3)), BackupReportJson.Default.RestoreReport,
                r => string.Create(CultureInfo.InvariantCulture, $"{target}: {r.Disk} of {r.Backup} ({r.Consistency}-consistent), {r.DataBytes / 1e6:0.0} MB of contents in {r.Seconds:0.00} s, all checked"));
            return ExitStatus.Success;
        });
        return command;
    }

    public static Command Verify()
    {
        Argument<string> from = new("DIR") { Description = "Directory that backups were written to" };
        Option<string?> backup = new("--backup") { HelpName = "NAME", Description = "Only this backup and those it builds on" };
        Option<bool> json = new("--json") { Description = "Machine-readable output" };
        Command command = new("verify", "Read all backups in a directory and check every byte of them.") { from, backup, json };
        command.SetAction(result =>
        {
            BackupStore store = BackupStore.Open(result.GetRequiredValue(from));
            IReadOnlyList<string> names = result.GetValue(backup) is { } one ? [.. store.Chain(store.Find(one)).Select(b => b.Name)] : store.Names;
            List<VerifiedBackup> verified = [];
            BackupProgress progress = new();
            using HostSignals signals = new();
            int status = Run(result, signals, "verifying", progress, () =>
            {
                foreach (string name in names)
                {
                    IReadOnlyList<string> wrong = BackupReader.Verify(store, name, progress, signals.Stopping);
                    BackupManifest? manifest = wrong.Count == 0 ? store.Read(name).Manifest : null;
                    verified.Add(new VerifiedBackup(name, manifest?.Consistency.ToString().ToLowerInvariant(), manifest?.Parent?.Name, wrong.Count == 0, wrong));
                }
            });
            if (status != ExitStatus.Success)
                return status;
            bool isGood = verified.TrueForAll(v => v.Good);
            Report(result, json, new VerifyReport(store.Directory, isGood, progress.ReadBytes, Math.Round(progress.Elapsed.TotalSeconds, 3), verified), BackupReportJson.Default.VerifyReport, r =>
                string.Join(Environment.NewLine, r.Backups.Select(b => b.Good
                    ? $"{b.Name}: good, {b.Consistency}-consistent{(b.Parent is null ? "" : $", builds on {b.Parent}")}"
                    : $"{b.Name}: DAMAGED: {string.Join("; ", b.Damage.Take(4))}{(b.Damage.Count > 4 ? $"; and {b.Damage.Count - 4} more" : "")}")
                    .Append(string.Create(CultureInfo.InvariantCulture, $"{r.Backups.Count} backup{(r.Backups.Count == 1 ? "" : "s")}, {r.DataBytes / 1e6:0.0} MB of contents in {r.Seconds:0.00} s"))));
            return isGood ? ExitStatus.Success : ExitStatus.Refused;
        });
        return command;
    }

    // On another thread, so that this one can show how far it is.
    private static int Run(ParseResult result, HostSignals signals, string what, BackupProgress progress, Action work)
    {
        using ProgressLine line = new(result.InvocationConfiguration.Error);
        Task task = Task.Run(work);
        try
        {
            while (!((IAsyncResult)task).AsyncWaitHandle.WaitOne(s_interval))
                line.Show(what, progress.TotalBytes, progress.DoneBytes, progress.ReadBytes);
            task.GetAwaiter().GetResult();
            return ExitStatus.Success;
        }
        catch (OperationCanceledException) when (signals.Received != 0)
        {
            return signals.ExitStatus;
        }
    }

    private static void Report<T>(ParseResult result, Option<bool> json, T report, System.Text.Json.Serialization.Metadata.JsonTypeInfo<T> type, Func<T, string> text) =>
        result.InvocationConfiguration.Output.WriteLine(result.GetValue(json) ? JsonSerializer.Serialize(report, type) : text(report));
}

/// <summary>What <c>restore</c> says.</summary>
internal sealed record RestoreReport(string Backup, string Disk, string Image, string Consistency, ulong DiskBytes, long DataBytes, double Seconds);

/// <summary>What <c>verify</c> says.</summary>
internal sealed record VerifyReport(string Directory, bool Good, long DataBytes, double Seconds, IReadOnlyList<VerifiedBackup> Backups);

/// <summary>One backup in it.</summary>
internal sealed record VerifiedBackup(string Name, string? Consistency, string? Parent, bool Good, IReadOnlyList<string> Damage);

/// <summary>How these are written.</summary>
[JsonSourceGenerationOptions(PropertyNamingPolicy = JsonKnownNamingPolicy.CamelCase, DefaultIgnoreCondition = JsonIgnoreCondition.WhenWritingNull, WriteIndented = true)]
[JsonSerializable(typeof(RestoreReport))]
[JsonSerializable(typeof(VerifyReport))]
internal sealed partial class BackupReportJson : JsonSerializerContext;
