using System.Text.Json.Serialization;
using Aerostat.Machine;
using Aerostat.Snapshots;

namespace Aerostat.Control;

/// <summary>Arguments of <c>snapshot</c>.</summary>
/// <param name="To">The snapshot's directory, a full path.</param>
/// <param name="Differential">Only what has changed since the last snapshot of this run, or the one it goes on from.</param>
/// <param name="Hints">Whether the guest is asked for its free pages, which are then not saved.</param>
/// <param name="Timeout">Seconds until it is given up; null: never.</param>
public sealed record SnapshotArguments(string? To = null, bool Differential = false, bool Hints = true, double? Timeout = null)
{
    /// <summary>The longest timeout, in seconds.</summary>
    public const double LongestTimeout = 1e6;
}

/// <summary>The answer to <c>snapshot</c>.</summary>
/// <param name="Directory">Where it is.</param>
/// <param name="Id">Which it is.</param>
/// <param name="DataBytes">Bytes of guest memory in it.</param>
/// <param name="ZeroBytes">Bytes of guest memory that are zeros.</param>
/// <param name="HintedBytes">Bytes of guest memory that do not matter to the guest, or that it has given back.</param>
/// <param name="UnchangedBytes">Bytes of guest memory that are as in the snapshot before.</param>
/// <param name="PausedSeconds">How long the guest stood still.</param>
/// <param name="Seconds">How long it took altogether.</param>
/// <param name="PausedBytes">Bytes of guest memory that were looked at while it stood still.</param>
/// <param name="Rounds">How often memory was copied.</param>
/// <param name="Hints">What came of asking the guest for its free pages, such as "complete" and "no-driver".</param>
/// <param name="HintsExplained">The same in words.</param>
/// <param name="NamedBytes">Bytes that the guest has named.</param>
/// <param name="HintSeconds">How long the guest took to name them.</param>
public sealed record SnapshotAnswer(
    string Directory, Guid Id, ulong DataBytes, ulong ZeroBytes, ulong HintedBytes, ulong UnchangedBytes, double PausedSeconds, double Seconds,
    ulong PausedBytes, int Rounds, string Hints, string HintsExplained, ulong NamedBytes, double HintSeconds);

/// <summary><c>snapshot</c>: writes the whole machine to disk; the guest stands still for a moment.</summary>
internal sealed class SnapshotVerb() : ControlVerb<SnapshotArguments, SnapshotAnswer>(SnapshotJson.Default.SnapshotArguments, SnapshotJson.Default.SnapshotAnswer)
{
    public override string Name => "snapshot";

    public override bool EndsWithClient => true;

    protected override async Task<SnapshotAnswer> AnswerAsync(ControlledMachine machine, SnapshotArguments arguments, CancellationToken cancellation)
    {
        if (arguments.To is not { Length: > 0 } directory || !Path.IsPathFullyQualified(directory))
            throw new ControlException(ControlErrorKind.Usage, "snapshot: 'to' is the full path of the snapshot's directory");
        if (arguments.Timeout is { } limit && limit is not (> 0 and <= SnapshotArguments.LongestTimeout))
            throw new ControlException(ControlErrorKind.Usage, $"snapshot: a timeout is above 0 and up to {SnapshotArguments.LongestTimeout} seconds");
        VirtualMachine vm = machine.Machine;
        if (machine.Snapshots is not { } snapshots || vm.State == MachineState.Ended)
            throw new ControlException(ControlErrorKind.Refused, vm.State == MachineState.Ended ? "snapshot: the machine is over" : "snapshot: this machine is not set up for snapshots");
        if (vm.HasDebugger)
            throw new ControlException(ControlErrorKind.Refused, "snapshot: a debugger is attached and decides when the guest runs; detach it first");
        using CancellationTokenSource over = CancellationTokenSource.CreateLinkedTokenSource(cancellation);
        if (arguments.Timeout is { } seconds)
            over.CancelAfter(TimeSpan.FromSeconds(seconds));
        try
        {
            SnapshotResult result = await snapshots.SaveAsync(directory, new SnapshotOptions { Differential = arguments.Differential, Hints = arguments.Hints }, over.Token).ConfigureAwait(false);
            vm.Journal.Write("snapshot", $"was saved to {ControlRequest.Shorten(result.Directory)}, {result.DataBytes >> 20} MiB of its memory, and stood still for {result.Paused.TotalMilliseconds:0} ms");
            return new SnapshotAnswer(
                result.Directory, result.Id, result.DataBytes, result.ZeroBytes, result.HintedBytes, result.UnchangedBytes, result.Paused.TotalSeconds, result.Elapsed.TotalSeconds,
                result.PausedBytes, result.Rounds, NameOf(result.Hints.Outcome), result.Hints.Explanation, result.Hints.NamedBytes, result.Hints.Elapsed.TotalSeconds);
        }
        catch (OperationCanceledException e) when (!cancellation.IsCancellationRequested && over.IsCancellationRequested)
        {
            throw new ControlException(ControlErrorKind.Timeout, $"snapshot: it was not done in {arguments.Timeout:0.###} s and was given up; the guest goes on, and {directory} is as it was: allow more with --timeout SECONDS", e);
        }
        catch (OperationCanceledException e) when (!cancellation.IsCancellationRequested)
        {
            throw new ControlException(ControlErrorKind.Failed, "snapshot: the machine is over", e);
        }
        catch (SnapshotException e)
        {
            throw new ControlException(e.InnerException is IOException or UnauthorizedAccessException ? ControlErrorKind.Failed : ControlErrorKind.Refused, $"snapshot: {e.Message}", e);
        }
    }

    private static string NameOf(HintOutcome outcome) => outcome switch
    {
        HintOutcome.NotWanted => "not-wanted",
        HintOutcome.NoBalloon => "no-balloon",
        HintOutcome.NoDriver => "no-driver",
        HintOutcome.NotRunning => "not-running",
        HintOutcome.Busy => "busy",
        HintOutcome.HostShortOfMemory => "host-short-of-memory",
        HintOutcome.Complete => "complete",
        HintOutcome.TimedOut => "timed-out",
        _ => "driver-reset",
    };
}

/// <summary>How the verb's arguments and answer are written.</summary>
[JsonSourceGenerationOptions(
    PropertyNamingPolicy = JsonKnownNamingPolicy.CamelCase, DefaultIgnoreCondition = JsonIgnoreCondition.WhenWritingNull,
    UnmappedMemberHandling = JsonUnmappedMemberHandling.Skip, MaxDepth = ControlRequest.MaxDepth)]
[JsonSerializable(typeof(SnapshotArguments))]
[JsonSerializable(typeof(SnapshotAnswer))]
public sealed partial class SnapshotJson : JsonSerializerContext;
