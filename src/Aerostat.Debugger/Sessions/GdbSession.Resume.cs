using Aerostat.Machine;
using Aerostat.Processors;

namespace Aerostat.Debugger;

/// <content>Going on, and what is said when the machine stands again.</content>
internal sealed partial class GdbSession
{
    private VcpuResume[] resumed = [];
    // A range that the stepped vCPU is to leave before the stop is told.
    private (int Vcpu, ulong Start, ulong End)? stepRange;

    private async Task<string?> Verb(string text)
    {
        if (text == "vCont?")
            return "vCont;c;C;s;S;r";
        if (text.StartsWith("vCont;", StringComparison.Ordinal))
            return await Continue(text["vCont;".Length..].Split(';')).ConfigureAwait(false);
        if (text.StartsWith("vKill", StringComparison.Ordinal))
        {
            await debugger.Machine.StopAsync().ConfigureAwait(false);
            return Ok;
        }
        return "";
    }

    // Each action for the vCPUs it names that no action before it has named; without a name, for all the others.
    private async Task<string?> Continue(string[] actions)
    {
        VcpuResume?[] how = new VcpuResume?[debugger.Vcpus];
        (int, ulong, ulong)? range = null;
        foreach (string action in actions)
        {
            int colon = action.IndexOf(':');
            string verb = colon < 0 ? action : action[..colon];
            int vcpu = -1;
            if (verb.Length == 0 || (colon >= 0 && !TryThread(action[(colon + 1)..], out vcpu)))
                return BadRequest;
            ulong start = 0, length = 0;
            if (verb[0] is not ('c' or 'C' or 's' or 'S' or 'r') || (verb[0] == 'r' && !TryRange(verb[1..], out start, out length)))
                return BadRequest;
            VcpuResume what = verb[0] is 'c' or 'C' ? VcpuResume.Run : VcpuResume.Step;
            for (int i = 0; i < how.Length; i++)
            {
                if ((vcpu >= 0 && vcpu != i) || how[i] is not null)
                    continue;
                how[i] = what;
                if (verb[0] == 'r')
                    range = (i, start, length);
            }
        }
        stepRange = range;
        return await Go([.. how.Select(h => h ?? VcpuResume.Hold)]).ConfigureAwait(false);
    }

    // c, s, C and S, as debuggers without vCont send them: an address to go on at is not taken.
    private async Task<string?> ResumeOld(string text)
    {
        int signal = text[0] is 'C' or 'S' ? 2 : 0;
        if (text.Length > 1 + signal)
            return BadRequest;
        stepRange = null;
        VcpuResume[] how = new VcpuResume[debugger.Vcpus];
        Array.Fill(how, VcpuResume.Run);
        if (text[0] is 's' or 'S')
            how[continueThread >= 0 ? continueThread : selected] = VcpuResume.Step;
        return await Go(how).ConfigureAwait(false);
    }

    private async Task<string?> Go(VcpuResume[] how)
    {
        if (running)
            return BadRequest;
        if (debugger.Machine.Exit.IsCompleted)
            return Ended();
        ForgetStates();
        resumed = how;
        running = true;
        await debugger.ResumeAsync(how).ConfigureAwait(false);
        return null;
    }

    private async Task Interrupt()
    {
        await debugger.HaltAsync().ConfigureAwait(false);
        // A stop may have come first; it says more.
        if (debugger.Stops.TryRead(out DebugStop? stop))
        {
            stepRange = null;
            await OnStop(stop).ConfigureAwait(false);
            return;
        }
        if (debugger.Machine.Exit.IsCompleted)
            return;
        running = false;
        await Tell(SignalInterrupt, selected, "").ConfigureAwait(false);
    }

    private async Task OnStop(DebugStop stop)
    {
        if (!running)
            return;
        if (stop.Kind == DebugStopKind.Step && stepRange is { } range && range.Vcpu == stop.Vcpu && stop.Address >= range.Start && stop.Address < range.End)
        {
            await debugger.ResumeAsync(resumed).ConfigureAwait(false);
            return;
        }
        running = false;
        string detail = stop.Kind switch
        {
            DebugStopKind.Watchpoint when stop.Breakpoint < plan.Count => plan[stop.Breakpoint].For is var w
                ? $"{(w.Type == 2 ? "watch" : w.Type == 3 ? "rwatch" : "awatch")}:{w.Address:x};"
                : "",
            DebugStopKind.CodeBreakpoint when tellsBreakpointKinds => "swbreak:;",
            DebugStopKind.HardwareBreakpoint when tellsBreakpointKinds => stop.Breakpoint < plan.Count ? "hwbreak:;" : "swbreak:;",
            _ => "",
        };
        await Tell(stop.Kind == DebugStopKind.Crashed ? SignalSegmentationFault : SignalTrap, stop.Vcpu, detail).ConfigureAwait(false);
    }

    // With the registers that GDB asks for at each stop.
    private async Task Tell(int signal, int vcpu, string detail)
    {
        ForgetStates();
        selected = vcpu;
        ProcessorState s = await State(vcpu).ConfigureAwait(false);
        string known = string.Concat(((string[])["rbp", "rsp", "rip"]).Select(name => registers.NumberOf(name)).Select(n => $"{n:x2}:{RegisterFile.Read(registers.All[n], s)};"));
        lastStop = $"T{signal:x2}thread:{vcpu + 1:x};{known}";
        await Send($"T{signal:x2}thread:{vcpu + 1:x};{detail}{known}").ConfigureAwait(false);
    }
}
