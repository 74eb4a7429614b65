using Aerostat.Processors;

namespace Aerostat.Debugger;

/// <summary>A breakpoint or watchpoint that GDB has set in hardware.</summary>
/// <param name="Type">1 execute, 2 write, 3 read, 4 access, as in the Z packets.</param>
/// <param name="Address">First byte.</param>
/// <param name="Length">Bytes that GDB watches.</param>
internal readonly record struct GdbWatch(int Type, ulong Address, ulong Length);

/// <summary>
/// Shares the four debug registers out: a range that is too long or not aligned takes several. x86 cannot watch for reads alone, so such a
/// watchpoint sees writes too; GDB sorts out those that changed the value.
/// </summary>
internal static class WatchPlan
{
    /// <summary>The hardware breakpoints for a list, each with the entry it is for; null: there are not enough.</summary>
    public static List<(HardwareBreakpoint Breakpoint, GdbWatch For)>? Make(IReadOnlyList<GdbWatch> watches)
    {
        List<(HardwareBreakpoint, GdbWatch)> plan = [];
        foreach (GdbWatch w in watches)
        {
            if (w.Type == 1)
            {
                plan.Add((new HardwareBreakpoint(BreakpointKind.Execute, w.Address), w));
                continue;
            }
            if (w.Length is 0 or > 8 * GuestDebug.MostHardware || w.Address + w.Length - 1 < w.Address)
                return null;
            for (ulong done = 0; done < w.Length;)
            {
                ulong size = 8;
                while (size > w.Length - done || ((w.Address + done) & (size - 1)) != 0)
                    size >>= 1;
                plan.Add((new HardwareBreakpoint(w.Type == 2 ? BreakpointKind.Write : BreakpointKind.ReadWrite, w.Address + done, (int)size), w));
                done += size;
            }
        }
        return plan.Count <= GuestDebug.MostHardware ? plan : null;
    }
}
