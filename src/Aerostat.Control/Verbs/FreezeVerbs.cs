using System.Text.Json;
using System.Text.Json.Serialization;
using Aerostat.Devices;
using Aerostat.Machine;

namespace Aerostat.Control;

/// <summary>Arguments of <c>freeze</c>.</summary>
/// <param name="Timeout">Seconds that the guest has to freeze.</param>
/// <param name="Watchdog">Seconds after which it is thawed if nobody asks for it.</param>
public sealed record FreezeArguments(double Timeout = 60, double Watchdog = 30);

/// <summary>The answer to <c>freeze</c>.</summary>
/// <param name="State">"frozen".</param>
/// <param name="Watchdog">Seconds that it will stay so at most.</param>
public sealed record FreezeAnswer(string State, double Watchdog);

/// <summary>The answer to <c>thaw</c>.</summary>
/// <param name="State">"thawed".</param>
/// <param name="FreezeSeconds">From the request to freeze to the guest's answer.</param>
/// <param name="FrozenSeconds">From that answer to the answer to the thaw.</param>
/// <param name="ByWatchdog">Whether the watchdog was first.</param>
public sealed record ThawAnswer(string State, double FreezeSeconds, double FrozenSeconds, bool ByWatchdog);

/// <summary><c>freeze</c>: has the guest freeze its file systems.</summary>
internal sealed class FreezeVerb() : ControlVerb<FreezeArguments, FreezeAnswer>(FreezeJson.Default.FreezeArguments, FreezeJson.Default.FreezeAnswer)
{
    private const double Longest = 900;

    public override string Name => "freeze";

    protected override async Task<FreezeAnswer> AnswerAsync(ControlledMachine machine, FreezeArguments arguments, CancellationToken cancellation)
    {
        if (arguments.Timeout is not (> 0 and <= Longest) || arguments.Watchdog is not (> 0 and <= Longest))
            throw new ControlException(ControlErrorKind.Usage, $"freeze: timeout and watchdog are above 0 and up to {Longest} seconds");
        IVolumeFreezer volumes = Find(machine.Machine, Name);
        if (machine.Machine.State != MachineState.Running)
            throw new ControlException(ControlErrorKind.Refused, "freeze: the machine does not run, and its guest can do nothing; resume it first");
        try
        {
            await volumes.FreezeAsync(new FreezeOptions { Deadline = TimeSpan.FromSeconds(arguments.Timeout), Watchdog = TimeSpan.FromSeconds(arguments.Watchdog) }).WaitAsync(cancellation).ConfigureAwait(false);
        }
        catch (FreezeException e)
        {
            throw new ControlException(ControlErrorKind.Refused, $"freeze: {e.Message}", e);
        }
        return new FreezeAnswer("frozen", arguments.Watchdog);
    }

    internal static IVolumeFreezer Find(VirtualMachine machine, string verb) => machine.Freezer
        ?? throw new ControlException(ControlErrorKind.Refused, $"{verb}: only guests with --personality hyperv or vmware can be asked to freeze their file systems");
}

/// <summary><c>thaw</c>: has it thaw them.</summary>
internal sealed class ThawVerb() : ControlVerb<NoArguments, ThawAnswer>(FreezeJson.Default.NoArguments, FreezeJson.Default.ThawAnswer)
{
    public override string Name => "thaw";

    protected override async Task<ThawAnswer> AnswerAsync(ControlledMachine machine, NoArguments arguments, CancellationToken cancellation)
    {
        try
        {
            FreezeResult result = await FreezeVerb.Find(machine.Machine, Name).ThawAsync().WaitAsync(cancellation).ConfigureAwait(false);
            return new ThawAnswer("thawed", Math.Round(result.FreezeTime.TotalSeconds, 6), Math.Round(result.FrozenTime.TotalSeconds, 6), result.ByWatchdog);
        }
        catch (FreezeException e)
        {
            throw new ControlException(ControlErrorKind.Refused, $"thaw: {e.Message}", e);
        }
    }
}

/// <summary>How what these verbs say is written and read.</summary>
[JsonSourceGenerationOptions(
    PropertyNamingPolicy = JsonKnownNamingPolicy.CamelCase, DefaultIgnoreCondition = JsonIgnoreCondition.WhenWritingNull,
    UnmappedMemberHandling = JsonUnmappedMemberHandling.Skip, MaxDepth = ControlRequest.MaxDepth)]
[JsonSerializable(typeof(FreezeArguments))]
[JsonSerializable(typeof(FreezeAnswer))]
[JsonSerializable(typeof(ThawAnswer))]
[JsonSerializable(typeof(NoArguments))]
public sealed partial class FreezeJson : JsonSerializerContext;
