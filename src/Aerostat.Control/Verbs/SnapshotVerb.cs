using System.Text.Json.Serialization;
using Aerostat.Machine;
using Aerostat.Snapshots;

namespace Aerostat.Control;

/// <summary>Arguments of <c>snapshot</c>.</summary>
/// <param name="To">The snapshot's directory, a full path.</param>
/// <param name="Differential">Only what has changed since the last snapshot of this run, or the one it goes on from.</param>
public sealed record SnapshotArguments(string? To = null, bool Differential = false);

/// <summary>The answer to <c>snapshot</c>.</summary>
/// <param name="Directory">Where it is.</param>
/// <param name="Id">Which it is.</param>
/// <param name="DataBytes">Bytes of guest memory in it.</param>
/// <param name="ZeroBytes">Bytes of guest memory that are zeros.</param>
/// <param name="HintedBytes">Bytes of guest memory that do not matter to the guest, or that it has given back.</param>
/// <param name="UnchangedBytes">Bytes of guest memory that are as in the snapshot before.</param>
/// <param name="PausedSeconds">How long the guest stood still.</param>
/// <param name="Seconds">How long it took altogether.</param>
public sealed record SnapshotAnswer(
    string Directory, Guid Id, ulong DataBytes, ulong ZeroBytes, ulong HintedBytes, ulong UnchangedBytes, double PausedSeconds, double Seconds);

/// <summary><c>snapshot</c>: writes the whole machine to disk; the guest stands still for a moment.</summary>
internal sealed class SnapshotVerb() : ControlVerb<SnapshotArguments, SnapshotAnswer>(SnapshotJson.Default.SnapshotArguments, SnapshotJson.Default.SnapshotAnswer)
{
    public override string Name => "snapshot";

    protected override async Task<SnapshotAnswer> AnswerAsync(ControlledMachine machine, SnapshotArguments arguments, CancellationToken cancellation)
    {
        if (arguments.To is not { Length: > 0 } directory || !Path.IsPathFullyQualified(directory))
            throw new ControlException(ControlErrorKind.Usage, "snapshot: 'to' is the full path of the snapshot's directory");
        VirtualMachine vm = machine.Machine;
        if (machine.Snapshots is not { } snapshots || vm.State == MachineState.Ended)
            throw new ControlException(ControlErrorKind.Refused, vm.State == MachineState.Ended ? "snapshot: the machine is over" : "snapshot: this machine is not set up for snapshots");
        if (vm.HasDebugger)
            throw new ControlException(ControlErrorKind.Refused, "snapshot: a debugger is attached and decides when the guest runs; detach it first");
        try
        {
            SnapshotResult result = await snapshots.SaveAsync(directory, new SnapshotOptions { Differential = arguments.Differential }).ConfigureAwait(false);
            vm.Journal.Write("snapshot", $"was saved to {ControlRequest.Shorten(result.Directory)}, {result.DataBytes >> 20} MiB of its memory, and stood still for {result.Paused.TotalMilliseconds:0} ms");
            return new SnapshotAnswer(
                result.Directory, result.Id, result.DataBytes, result.ZeroBytes, result.HintedBytes, result.UnchangedBytes, result.Paused.TotalSeconds, result.Elapsed.TotalSeconds);
        }
        catch (SnapshotException e)
        {
            throw new ControlException(e.InnerException is IOException or UnauthorizedAccessException ? ControlErrorKind.Failed : ControlErrorKind.Refused, $"snapshot: {e.Message}", e);
        }
    }
}

/// <summary>How the verb's arguments and answer are written.</summary>
[JsonSourceGenerationOptions(
    PropertyNamingPolicy = JsonKnownNamingPolicy.CamelCase, DefaultIgnoreCondition = JsonIgnoreCondition.WhenWritingNull,
    UnmappedMemberHandling = JsonUnmappedMemberHandling.Skip, MaxDepth = ControlRequest.MaxDepth)]
[JsonSerializable(typeof(SnapshotArguments))]
[JsonSerializable(typeof(SnapshotAnswer))]
public sealed partial class SnapshotJson : JsonSerializerContext;
