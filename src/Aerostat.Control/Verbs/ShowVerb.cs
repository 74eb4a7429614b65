using Aerostat.Machine;
using Aerostat.Platform;

namespace Aerostat.Control;

/// <summary>What a machine is and does: the answer to <c>show</c>. Figures may be slightly old, for no vCPU is disturbed.</summary>
/// <param name="Name">The machine's name.</param>
/// <param name="Pid">Process that runs it.</param>
/// <param name="Version">The program's version.</param>
/// <param name="State">"created", "running", "paused", "suspended" (to RAM, by the guest) or "ended".</param>
/// <param name="UptimeSeconds">Since the process made it.</param>
/// <param name="VmSeconds">VM time, which stands still while the machine is paused.</param>
/// <param name="Accelerator">What runs the guest's code.</param>
/// <param name="AcceleratorReason">Why that.</param>
/// <param name="CpuModel">CPU model.</param>
/// <param name="Personality">Which hypervisor the guest sees.</param>
/// <param name="Kernel">What it booted.</param>
/// <param name="Initrd">Its initial RAM disk.</param>
/// <param name="CommandLine">Its command line.</param>
/// <param name="NoReboot">Whether a reset by the guest ends the run.</param>
/// <param name="Vcpus">The vCPUs.</param>
/// <param name="Memory">Memory.</param>
/// <param name="Devices">Names of the devices.</param>
/// <param name="Resets">How often it was reset.</param>
/// <param name="Instructions">Guest instructions completed.</param>
/// <param name="Exits">How often vCPUs left the guest, and how long they were out, by reason.</param>
/// <param name="Handled">What was served without leaving it, by kind.</param>
/// <param name="Counters">The accelerator's own counters.</param>
/// <param name="UnclaimedPortAccesses">Port accesses that no device claimed.</param>
/// <param name="UnclaimedMmioAccesses">Memory accesses that no device claimed.</param>
/// <param name="Debugger">"attached", or where one may attach; null: neither.</param>
/// <param name="Balloon">The balloon; absent: there is none.</param>
/// <param name="Guest">What the guest's daemon says of its system, by Hyper-V's names; null: nothing.</param>
/// <param name="FileSystems">"idle", "probing", "freezing", "frozen", "thawing" or "failed": where the host stands with the guest's file systems; null: it cannot freeze them.</param>
public sealed record ShowAnswer(
    string Name,
    int Pid,
    string Version,
    string State,
    double UptimeSeconds,
    double VmSeconds,
    string Accelerator,
    string AcceleratorReason,
    string CpuModel,
    string Personality,
    string? Kernel,
    string? Initrd,
    string? CommandLine,
    bool NoReboot,
    IReadOnlyList<VcpuStatus> Vcpus,
    MemoryFigures Memory,
    IReadOnlyList<string> Devices,
    int Resets,
    long Instructions,
    IReadOnlyDictionary<string, ExitFigures> Exits,
    IReadOnlyDictionary<string, ExitFigures> Handled,
    IReadOnlyDictionary<string, long> Counters,
    long UnclaimedPortAccesses,
    long UnclaimedMmioAccesses,
    string? Debugger,
    BalloonAnswer? Balloon = null,
    IReadOnlyDictionary<string, string>? Guest = null,
    string? FileSystems = null);

/// <summary>How often, and how long that took.</summary>
/// <param name="Count">How often.</param>
/// <param name="Seconds">Sum.</param>
public sealed record ExitFigures(long Count, double Seconds);

/// <summary>Memory, in bytes.</summary>
/// <param name="GuestBytes">The guest's, as asked for.</param>
/// <param name="GuestAllocatedBytes">What of it the host has given.</param>
/// <param name="MonitorBytes">Resident memory of the monitor itself.</param>
/// <param name="ProcessBytes">Resident memory of the whole process.</param>
public sealed record MemoryFigures(ulong GuestBytes, ulong GuestAllocatedBytes, ulong MonitorBytes, ulong ProcessBytes);

/// <summary><c>show</c>: describes the machine.</summary>
internal sealed class ShowVerb() : ControlVerb<NoArguments, ShowAnswer>(ControlJson.Default.NoArguments, ControlJson.Default.ShowAnswer)
{
    public override string Name => "show";

    protected override Task<ShowAnswer> AnswerAsync(ControlledMachine machine, NoArguments arguments, CancellationToken cancellation)
    {
        VirtualMachine vm = machine.Machine;
        MachineStatistics statistics = vm.GetStatistics();
        ProcessUsage usage = ProcessUsage.Read();
        ulong held = vm.Memory.AllocatedBytes;
        KernelBootOptions? boot = vm.Options.Boot as KernelBootOptions;
        return Task.FromResult(new ShowAnswer(
            vm.Options.Name,
            Environment.ProcessId,
            machine.Product,
            StateAnswer.NameOf(vm.State),
            Round((TimeProvider.System.GetUtcNow() - machine.Started).TotalSeconds),
            Round(statistics.VmTime.TotalSeconds),
            statistics.Accelerator,
            machine.AcceleratorReason,
            statistics.CpuModel,
            vm.Options.Personality,
            boot?.Kernel,
            boot?.Initrd,
            boot?.CommandLine,
            vm.Options.NoReboot,
            vm.GetVcpus(),
            new MemoryFigures(vm.Options.MemoryBytes, held, usage.OwnAbove(held), usage.ResidentBytes),
            vm.DeviceNames,
            statistics.Resets,
            statistics.Instructions,
            Figures(statistics.Exits, statistics.ExitTimes),
            Figures(statistics.Handled, statistics.HandledTimes),
            new SortedDictionary<string, long>(statistics.Counters.ToDictionary(), StringComparer.Ordinal),
            statistics.UnclaimedPortAccesses,
            statistics.UnclaimedMmioAccesses,
            vm.HasDebugger ? "attached" : machine.Debug?.Endpoint.ForGdb,
            BalloonAnswer.Of(vm),
            vm.IntegrationComponents?.KeyValues.Facts is { Count: > 0 } facts ? facts : null,
            vm.Freezer?.Phase.ToString().ToLowerInvariant()));
    }

    private static SortedDictionary<string, ExitFigures> Figures(IReadOnlyDictionary<string, long> counts, IReadOnlyDictionary<string, TimeSpan> times) =>
        new(counts.ToDictionary(c => c.Key, c => new ExitFigures(c.Value, Round(times.GetValueOrDefault(c.Key).TotalSeconds))), StringComparer.Ordinal);

    private static double Round(double seconds) => Math.Round(seconds, 6);
}
