using System.Globalization;
using Aerostat.Devices;
using Aerostat.Machine;

namespace Aerostat.Control;

/// <summary>Arguments of <c>balloon</c>.</summary>
/// <param name="Target">Bytes that the host wants back; absent: only look. A policy rests from then on.</param>
/// <param name="Auto">The policy decides again.</param>
public sealed record BalloonArguments(ulong? Target = null, bool Auto = false);

/// <summary>What decides the target by itself. Sizes are bytes.</summary>
/// <param name="Floor">The least that the guest is left with.</param>
/// <param name="Ceiling">The most.</param>
/// <param name="Resting">The target was set by hand, and the policy does nothing.</param>
/// <param name="Reason">Why it decided as it did last ("balanced", "idle", "host-pressure", "guest-need", ...); absent: not yet.</param>
/// <param name="Kept">What the guest had then.</param>
/// <param name="Used">What of it was in use; absent: the guest had not said.</param>
/// <param name="Available">What was not; absent as well.</param>
/// <param name="Reserve">What it is to keep of that.</param>
public sealed record PolicyAnswer(ulong Floor, ulong Ceiling, bool Resting, string? Reason, ulong? Kept, ulong? Used, ulong? Available, ulong? Reserve)
{
    internal static PolicyAnswer? Of(BalloonController? controller) => controller is null ? null : new(
        controller.Policy.Floor, controller.Policy.Ceiling, controller.IsResting, controller.Last is { } last ? BalloonPolicy.Code(last.Reason) : null,
        controller.Last?.KeptBytes, controller.Last?.UsedBytes, controller.Last?.AvailableBytes, controller.Last?.ReserveBytes);
}

/// <summary>The answer to <c>balloon</c>.</summary>
/// <param name="Dialect">What the guest's driver speaks: "virtio", "vmware", "hyperv".</param>
/// <param name="Target">Bytes that the host wants back.</param>
/// <param name="Actual">Bytes that the guest has given.</param>
/// <param name="GuestActual">Bytes that its driver says it has given.</param>
/// <param name="Reason">Why they differ: "reached", "no-driver", "working", "stalled", "deflated-on-oom", "driver-failed", "refused", "not-discarded".</param>
/// <param name="Explanation">The same for people.</param>
/// <param name="RefusedPages">Pages that the guest gave and the host could not take.</param>
/// <param name="Policy">What decides the target; absent: nobody does but who asks.</param>
public sealed record BalloonAnswer(string Dialect, ulong Target, ulong Actual, ulong GuestActual, string Reason, string Explanation, long RefusedPages, PolicyAnswer? Policy = null)
{
    internal static BalloonAnswer? Of(VirtualMachine machine) => machine.Balloon is { } balloon ? Of(machine, balloon, balloon.GetReport()) : null;

    internal static BalloonAnswer Of(VirtualMachine machine, IBalloon balloon, BalloonReport report) => new(
        balloon.Dialect, report.TargetBytes, report.ActualBytes, report.GuestActualBytes, report.Reason.Code(), report.Explanation, report.RefusedPages,
        PolicyAnswer.Of(machine.BalloonController));
}

/// <summary>The answer to <c>memory</c>. Sizes are bytes.</summary>
/// <param name="Total">What the guest has.</param>
/// <param name="Host">What the host holds for it.</param>
/// <param name="Data">Held, and the contents matter.</param>
/// <param name="Zero">Never touched.</param>
/// <param name="Discarded">Given back.</param>
/// <param name="Hinted">Held, but the guest does not need the contents.</param>
/// <param name="Balloon">The balloon; absent: there is none.</param>
/// <param name="Guest">What the guest says of its memory, by name ("free", "available", ...; "tag-N" for what has none).</param>
/// <param name="GuestAge">Seconds of VM time since it said so; absent: never.</param>
/// <param name="GuestPending">Seconds of VM time for which it has owed newer figures; absent: it owes none.</param>
public sealed record MemoryAnswer(
    ulong Total, ulong Host, ulong Data, ulong Zero, ulong Discarded, ulong Hinted, BalloonAnswer? Balloon, IReadOnlyDictionary<string, ulong>? Guest,
    double? GuestAge, double? GuestPending);

/// <summary><c>balloon</c>: reads or sets how much memory the host takes back.</summary>
internal sealed class BalloonVerb() : ControlVerb<BalloonArguments, BalloonAnswer>(ControlJson.Default.BalloonArguments, ControlJson.Default.BalloonAnswer)
{
    public override string Name => "balloon";

    protected override Task<BalloonAnswer> AnswerAsync(ControlledMachine machine, BalloonArguments arguments, CancellationToken cancellation)
    {
        VirtualMachine vm = machine.Machine;
        if (vm.Balloon is not { } balloon)
            throw new ControlException(ControlErrorKind.Refused, "balloon: the machine has none; it must be started with --balloon");
        if (arguments.Auto)
        {
            if (vm.BalloonController is not { } controller)
                throw new ControlException(ControlErrorKind.Refused, "balloon: the machine has no policy; it must be started with --balloon auto=MIN..MAX");
            controller.Rest(false);
        }
        else if (arguments.Target is { } target)
        {
            if (target > vm.Options.MemoryBytes)
                throw new ControlException(ControlErrorKind.Usage, $"balloon: the guest has {MemorySize.Format(vm.Options.MemoryBytes)} and cannot give {MemorySize.Format(target)}");
            if (vm.State == MachineState.Ended)
                throw new ControlException(ControlErrorKind.Refused, "balloon: the machine is over");
            vm.BalloonController?.Rest(true);
            balloon.SetTarget(target);
            vm.Journal.Write("balloon-target", string.Create(CultureInfo.InvariantCulture, $"is asked for {MemorySize.Format(target)} of its memory"));
        }
        return Task.FromResult(BalloonAnswer.Of(vm, balloon, balloon.GetReport()));
    }
}

/// <summary><c>memory</c>: how memory stands between guest and host.</summary>
internal sealed class MemoryVerb() : ControlVerb<NoArguments, MemoryAnswer>(ControlJson.Default.NoArguments, ControlJson.Default.MemoryAnswer)
{
    public override string Name => "memory";

    protected override Task<MemoryAnswer> AnswerAsync(ControlledMachine machine, NoArguments arguments, CancellationToken cancellation)
    {
        MachineMemory memory;
        try
        {
            memory = machine.Machine.GetMemory();
        }
        catch (ObjectDisposedException e)
        {
            throw new ControlException(ControlErrorKind.Refused, "memory: the machine is over", e);
        }
        BalloonStatistics? statistics = memory.Balloon?.Statistics;
        // For whoever asks next.
        machine.Machine.Balloon?.RequestStatistics();
        return Task.FromResult(new MemoryAnswer(
            memory.TotalBytes, memory.HostBytes, memory.Pages.DataBytes, memory.Pages.ZeroBytes, memory.Pages.DiscardedBytes, memory.Pages.HintedBytes,
            memory.Balloon is { } report ? BalloonAnswer.Of(machine.Machine, machine.Machine.Balloon!, report) : null,
            statistics is { Age: not null } ? new SortedDictionary<string, ulong>(statistics.Values.ToDictionary(), StringComparer.Ordinal) : null,
            statistics?.Age?.TotalSeconds, statistics?.Pending?.TotalSeconds));
    }
}
