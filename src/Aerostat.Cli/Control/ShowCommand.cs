using System.CommandLine;
using Aerostat.Control;
using Aerostat.Machine;

namespace Aerostat.Cli;

/// <summary><c>aerostat show</c>: what a machine is and does.</summary>
internal static class ShowCommand
{
    private const int MostCounters = 24;

    public static Command Create() => MachineCommand.Create("show", "Describe a running machine: configuration, state, exits, memory.",
        call => call.AskAsync(new NoArguments(), ControlJson.Default.NoArguments, ControlJson.Default.ShowAnswer, Print));

    /// <summary>"5 s", "12 min 3 s", "3 h 20 min", "4 d 2 h".</summary>
    public static string Duration(double seconds)
    {
        TimeSpan time = TimeSpan.FromSeconds(Math.Clamp(seconds, 0, 1e9));
        return time switch
        {
            { TotalMinutes: < 1 } => $"{time.TotalSeconds:0.0} s",
            { TotalHours: < 1 } => $"{time.Minutes} min {time.Seconds} s",
            { TotalDays: < 1 } => $"{time.Hours} h {time.Minutes} min",
            _ => $"{time.Days} d {time.Hours} h",
        };
    }

    private static void Print(TextWriter output, ShowAnswer shown)
    {
        output.WriteLine($"{shown.Name}: {shown.State}, up {Duration(shown.UptimeSeconds)} ({Duration(shown.VmSeconds)} of VM time), pid {shown.Pid}, aerostat {shown.Version}");
        output.WriteLine($"accelerator  {shown.Accelerator} ({shown.AcceleratorReason})");
        output.WriteLine($"processors   {shown.Vcpus.Count} x {shown.CpuModel}, personality {shown.Personality}");
        output.WriteLine($"memory       {MemorySize.Format(shown.Memory.GuestBytes)}, of which the host has given {Megabytes(shown.Memory.GuestAllocatedBytes)}; the monitor itself {Megabytes(shown.Memory.MonitorBytes)}");
        if (shown.Kernel is not null)
            output.WriteLine($"boots        {shown.Kernel}{(shown.Initrd is null ? "" : $", initrd {shown.Initrd}")}{(string.IsNullOrEmpty(shown.CommandLine) ? "" : $", append \"{shown.CommandLine}\"")}");
        output.WriteLine($"devices      {string.Join(' ', shown.Devices.Where(d => !d.StartsWith("lapic", StringComparison.Ordinal)))}");
        if (shown.Balloon is { } balloon)
            output.WriteLine($"balloon      {balloon.Actual >> 20} of {balloon.Target >> 20} MiB ({balloon.Dialect}, {balloon.Reason}{(balloon.Policy is { } policy ? $"; policy: {(policy.Resting ? "resting" : policy.Reason ?? "starting")}" : "")})");
        if (shown.Debugger is not null)
            output.WriteLine($"debugger     {(shown.Debugger == "attached" ? "attached" : $"target remote {shown.Debugger}")}");
        if (shown.FileSystems is { } freezing)
            output.WriteLine($"file systems {(freezing == "idle" ? "not frozen" : freezing)}");
        foreach ((string name, string value) in (shown.Guest ?? new Dictionary<string, string>()).OrderBy(f => f.Key, StringComparer.Ordinal))
            output.WriteLine($"guest        {name}: {value}");
        output.WriteLine($"resets       {shown.Resets}{(shown.NoReboot ? " (one by the guest ends the run)" : "")}");
        output.WriteLine();
        output.WriteLine($"{"vCPU",4}  {"state",-8}  {"instructions",16}  {"exits",12}");
        foreach (VcpuStatus vcpu in shown.Vcpus)
            output.WriteLine($"{vcpu.Index,4}  {(vcpu is { State: "running", Idle: true } ? "idle" : vcpu.State),-8}  {vcpu.Instructions,16}  {vcpu.Exits,12}");
        PrintFigures(output, "exit", shown.Exits);
        PrintFigures(output, "served in the guest", shown.Handled);
        List<KeyValuePair<string, long>> counters = [.. shown.Counters.Where(c => c.Value != 0).OrderByDescending(c => c.Value)];
        if (counters.Count > 0)
            output.WriteLine($"\n{"counter",-44}  {"count",14}");
        foreach ((string name, long count) in counters.Take(MostCounters))
            output.WriteLine($"{name,-44}  {count,14}");
        if (counters.Count > MostCounters)
            output.WriteLine($"({counters.Count - MostCounters} more; --json has them all)");
        if (shown.UnclaimedPortAccesses + shown.UnclaimedMmioAccesses > 0)
            output.WriteLine($"\naccesses that no device claimed: {shown.UnclaimedPortAccesses} to ports, {shown.UnclaimedMmioAccesses} to memory");
    }

    private static void PrintFigures(TextWriter output, string title, IReadOnlyDictionary<string, ExitFigures> figures)
    {
        if (!figures.Any(f => f.Value.Count != 0))
            return;
        output.WriteLine($"\n{title,-20}  {"count",14}  {"seconds",12}");
        foreach ((string name, ExitFigures f) in figures.Where(f => f.Value.Count != 0).OrderByDescending(f => f.Value.Count))
            output.WriteLine($"{name,-20}  {f.Count,14}  {f.Seconds,12:0.000}");
    }

    private static string Megabytes(ulong bytes) => $"{bytes / 1048576.0:0.#}M";
}
