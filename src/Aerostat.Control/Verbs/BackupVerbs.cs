using System.Text.Json.Serialization;
using Aerostat.Backup;
using Aerostat.Machine;

namespace Aerostat.Control;

/// <summary>Arguments of <c>backup</c>.</summary>
/// <param name="To">The store's directory, a full path.</param>
/// <param name="Incremental">Only what has changed since the latest backup of this machine there.</param>
/// <param name="CrashConsistent">Whether a guest that cannot be frozen is backed up all the same.</param>
/// <param name="Keep">How many backups of this machine to keep; null: all.</param>
/// <param name="Timeout">Seconds that the guest has to freeze.</param>
/// <param name="Level">Zstandard's level, -7 to 19.</param>
/// <param name="Compress">Whether anything is compressed.</param>
/// <param name="Hash">"xxh128" or "sha256".</param>
public sealed record BackupArguments(
    string? To = null, bool Incremental = false, bool CrashConsistent = false, int? Keep = null, double Timeout = 60, int Level = BackupOptions.DefaultLevel, bool Compress = true, string Hash = "xxh128");

/// <summary>The answer to <c>backup</c>.</summary>
/// <param name="Name">The backup's name in the store.</param>
/// <param name="Directory">Where it is.</param>
/// <param name="Id">Which it is.</param>
/// <param name="Consistency">"guest" or "crash".</param>
/// <param name="ConsistencyReason">Why only crash.</param>
/// <param name="Parent">The backup it builds on.</param>
/// <param name="FreezeSeconds">How long the guest took to freeze.</param>
/// <param name="FrozenSeconds">How long its file systems were frozen.</param>
/// <param name="HeldSeconds">For how long writes to the disks were held up.</param>
/// <param name="Seconds">How long it took altogether.</param>
/// <param name="CopySeconds">How long the copy took, which the guest does not wait for.</param>
/// <param name="DiskBytes">Bytes of the disks.</param>
/// <param name="ReadBytes">Bytes that were read from them.</param>
/// <param name="StoredBytes">Bytes that were written.</param>
/// <param name="SavedBlocks">Blocks of 64 KiB that the guest wrote before they were copied, and that were saved first.</param>
/// <param name="Notes">What whoever reads this should know.</param>
/// <param name="Removed">Backups that were removed.</param>
public sealed record BackupAnswer(
    string Name, string Directory, Guid Id, string Consistency, string? ConsistencyReason, string? Parent, double? FreezeSeconds, double? FrozenSeconds, double HeldSeconds,
    double Seconds, double CopySeconds, ulong DiskBytes, long ReadBytes, long StoredBytes, long SavedBlocks, IReadOnlyList<string> Notes, IReadOnlyList<string> Removed);

/// <summary>The answer to <c>backup-progress</c>.</summary>
/// <param name="Phase">"none", "preparing", "freezing", "copying", "finishing" or "over".</param>
/// <param name="TotalBytes">Bytes of the disks.</param>
/// <param name="DoneBytes">Of those, what is done with.</param>
/// <param name="ReadBytes">Bytes that were read.</param>
/// <param name="StoredBytes">Bytes that were written.</param>
/// <param name="Seconds">Since the beginning.</param>
public sealed record BackupProgressAnswer(string Phase, long TotalBytes, long DoneBytes, long ReadBytes, long StoredBytes, double Seconds);

/// <summary><c>backup</c>: copies the machine's disks as they are at one moment, the guest's file systems frozen.</summary>
internal sealed class BackupVerb() : ControlVerb<BackupArguments, BackupAnswer>(BackupVerbJson.Default.BackupArguments, BackupVerbJson.Default.BackupAnswer)
{
    private const double Longest = 900;

    public override string Name => "backup";

    public override bool EndsWithClient => true;

    protected override async Task<BackupAnswer> AnswerAsync(ControlledMachine machine, BackupArguments arguments, CancellationToken cancellation)
    {
        if (arguments.To is not { Length: > 0 } directory || !Path.IsPathFullyQualified(directory))
            throw new ControlException(ControlErrorKind.Usage, "backup: 'to' is the full path of the directory for backups");
        if (arguments.Timeout is not (> 0 and <= Longest))
            throw new ControlException(ControlErrorKind.Usage, $"backup: a timeout is above 0 and up to {Longest} seconds");
        if (arguments.Keep is < 1)
            throw new ControlException(ControlErrorKind.Usage, "backup: at least one backup is kept");
        if (arguments.Level is < -7 or > 19)
            throw new ControlException(ControlErrorKind.Usage, "backup: a level is -7 to 19");
        if (arguments.Hash is not ("xxh128" or "sha256"))
            throw new ControlException(ControlErrorKind.Usage, "backup: a hash is xxh128 or sha256");
        VirtualMachine vm = machine.Machine;
        if (vm.State == MachineState.Ended)
            throw new ControlException(ControlErrorKind.Refused, "backup: the machine is over");
        try
        {
            BackupResult result = await machine.Backups.SaveAsync(directory, new BackupOptions
            {
                Incremental = arguments.Incremental,
                AllowCrashConsistent = arguments.CrashConsistent,
                Keep = arguments.Keep,
                FreezeDeadline = TimeSpan.FromSeconds(arguments.Timeout),
                Level = arguments.Compress ? arguments.Level : null,
                Hash = arguments.Hash == "sha256" ? BackupHash.Sha256 : BackupHash.XxHash128,
            }, cancellation).ConfigureAwait(false);
            BackupManifest manifest = result.Backup.Manifest;
            bool isGuest = manifest.Consistency == BackupConsistency.Guest;
            vm.Journal.Write("backup", $"was backed up to {ControlRequest.Shorten(result.Backup.Path)}, {(isGuest ? $"guest-consistent, frozen for {manifest.FrozenMilliseconds:0.0} ms" : "crash-consistent")}, {result.StoredBytes >> 20} MiB stored");
            return new BackupAnswer(
                result.Backup.Name, result.Backup.Path, manifest.Id, isGuest ? "guest" : "crash", manifest.ConsistencyReason, manifest.Parent?.Name,
                manifest.FreezeMilliseconds / 1000, manifest.FrozenMilliseconds / 1000, manifest.HeldMicroseconds / 1e6, Math.Round(result.Elapsed.TotalSeconds, 3), Math.Round(result.CopyTime.TotalSeconds, 3),
                manifest.Disks.Aggregate(0UL, (sum, d) => sum + d.Length), result.ReadBytes, result.StoredBytes, result.SavedBlocks, manifest.Notes, result.Removed);
        }
        catch (OperationCanceledException e) when (!cancellation.IsCancellationRequested || vm.State == MachineState.Ended)
        {
            throw new ControlException(ControlErrorKind.Failed, "backup: the machine is over; nothing was kept", e);
        }
        catch (BackupException e)
        {
            vm.Journal.Write("backup", $"was not backed up: {ControlRequest.Shorten(e.Message)}");
            throw new ControlException(e.IsHost ? ControlErrorKind.Failed : ControlErrorKind.Refused, $"backup: {e.Message}", e);
        }
    }
}

/// <summary><c>backup-progress</c>: how far the backup is that somebody else has asked for.</summary>
internal sealed class BackupProgressVerb() : ControlVerb<NoArguments, BackupProgressAnswer>(BackupVerbJson.Default.NoArguments, BackupVerbJson.Default.BackupProgressAnswer)
{
    public override string Name => "backup-progress";

    protected override Task<BackupProgressAnswer> AnswerAsync(ControlledMachine machine, NoArguments arguments, CancellationToken cancellation) =>
        Task.FromResult(machine.Backups.Progress is { } progress
            ? new BackupProgressAnswer(progress.Phase.ToString().ToLowerInvariant(), progress.TotalBytes, progress.DoneBytes, progress.ReadBytes, progress.StoredBytes, Math.Round(progress.Elapsed.TotalSeconds, 3))
            : new BackupProgressAnswer("none", 0, 0, 0, 0, 0));
}

/// <summary>How what these verbs say is written and read.</summary>
[JsonSourceGenerationOptions(
    PropertyNamingPolicy = JsonKnownNamingPolicy.CamelCase, DefaultIgnoreCondition = JsonIgnoreCondition.WhenWritingNull,
    UnmappedMemberHandling = JsonUnmappedMemberHandling.Skip, MaxDepth = ControlRequest.MaxDepth)]
[JsonSerializable(typeof(BackupArguments))]
[JsonSerializable(typeof(BackupAnswer))]
[JsonSerializable(typeof(BackupProgressAnswer))]
[JsonSerializable(typeof(NoArguments))]
public sealed partial class BackupVerbJson : JsonSerializerContext;
