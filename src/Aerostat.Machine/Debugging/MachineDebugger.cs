using System.Threading.Channels;
using Aerostat.Memory;
using Aerostat.Processors;

namespace Aerostat.Machine;

/// <summary>
/// What a debugger holds of a machine: it stops and goes as a whole, VM time with it. Made by <see cref="VirtualMachine.AttachDebugger"/>;
/// one at a time.
/// </summary>
/// <remarks>
/// When several vCPUs meet breakpoints at the same time, one stop is told; the others are kept and told, one by one, when their vCPU is to go
/// on, unless its RIP has been changed or the breakpoint has gone.
/// </remarks>
public sealed class MachineDebugger
{
    private readonly VirtualMachine machine;
    private readonly bool startsOnDetach;
    private readonly Channel<DebugStop> stops = Channel.CreateUnbounded<DebugStop>(new() { SingleReader = true });
    private readonly Lock gate = new();
    private readonly List<(DebugStop Stop, ProcessorExit Exit)> pending = [];
    private IReadOnlyList<HardwareBreakpoint> hardware = [];
    private IReadOnlySet<ulong> code = new HashSet<ulong>();
    private DebugStop? toldCrash;
    private bool running;

    internal MachineDebugger(VirtualMachine machine, bool startsOnDetach)
    {
        this.machine = machine;
        this.startsOnDetach = startsOnDetach;
    }

    /// <summary>The machine.</summary>
    public VirtualMachine Machine => machine;

    /// <summary>How many vCPUs it has.</summary>
    public int Vcpus => machine.Vcpus.Count;

    /// <summary>Stops, each after the whole machine stands still. One for each <see cref="ResumeAsync"/> at most.</summary>
    public ChannelReader<DebugStop> Stops => stops.Reader;

    /// <summary>Whether the processors have AVX registers.</summary>
    public bool HasAvx => machine.HasAvx;

    /// <summary>What the processors can do.</summary>
    public GuestDebugSupport Support => machine.Vcpus[0].Processor.DebugSupport;

    /// <summary>Takes all vCPUs out of the guest and stops VM time.</summary>
    public Task HaltAsync() => machine.PostAsync(async () =>
    {
        await machine.PauseForDebugger().ConfigureAwait(false);
        running = false;
    });

    /// <summary>Replaces all breakpoints; they are put in place when the machine goes on.</summary>
    /// <param name="hardwareBreakpoints">Up to four.</param>
    /// <param name="codeBreakpoints">Linear addresses; processors without breakpoints by address need hardware breakpoints for them.</param>
    /// <exception cref="GuestDebugException">They cannot be had; nothing has changed.</exception>
    public void SetBreakpoints(IReadOnlyList<HardwareBreakpoint> hardwareBreakpoints, IReadOnlySet<ulong> codeBreakpoints)
    {
        ArgumentNullException.ThrowIfNull(hardwareBreakpoints);
        ArgumentNullException.ThrowIfNull(codeBreakpoints);
        if (codeBreakpoints.Count != 0 && (Support & GuestDebugSupport.Code) == 0)
        {
            hardwareBreakpoints = [.. hardwareBreakpoints, .. codeBreakpoints.Select(a => new HardwareBreakpoint(BreakpointKind.Execute, a))];
            codeBreakpoints = new HashSet<ulong>();
        }
        new GuestDebug { Hardware = hardwareBreakpoints, Code = codeBreakpoints }.Validate(Support);
        hardware = hardwareBreakpoints;
        code = codeBreakpoints;
    }

    /// <summary>Lets the machine go on. A step of one vCPU stops all again.</summary>
    /// <param name="vcpus">What each does.</param>
    public Task ResumeAsync(IReadOnlyList<VcpuResume> vcpus)
    {
        ArgumentNullException.ThrowIfNull(vcpus);
        ArgumentOutOfRangeException.ThrowIfNotEqual(vcpus.Count, Vcpus);
        return machine.PostAsync(async () =>
        {
            if (machine.State == MachineState.Ended)
                return;
            running = true;
            if (await TellPending(vcpus).ConfigureAwait(false))
                return;
            for (int i = 0; i < Vcpus; i++)
            {
                if (vcpus[i] == VcpuResume.Hold)
                    continue;
                IVirtualProcessor processor = machine.Vcpus[i].Processor;
                GuestDebug wanted = new() { Hardware = hardware, Code = code, SingleStep = vcpus[i] == VcpuResume.Step };
                await machine.Vcpus[i].InvokeAsync(() => processor.SetGuestDebug(wanted)).ConfigureAwait(false);
            }
            await machine.RunForDebugger([.. vcpus.Select(v => v != VcpuResume.Hold)]).ConfigureAwait(false);
        });
    }

    /// <summary>The registers of a vCPU.</summary>
    public async Task<ProcessorState> GetStateAsync(int vcpu)
    {
        ProcessorState? state = null;
        await machine.Vcpus[vcpu].InvokeAsync(() => state = machine.Vcpus[vcpu].Processor.GetState()).ConfigureAwait(false);
        return state!;
    }

    /// <summary>Replaces the registers of a vCPU.</summary>
    public Task SetStateAsync(int vcpu, ProcessorState state) =>
        machine.Vcpus[vcpu].InvokeAsync(() => machine.Vcpus[vcpu].Processor.SetState(state));

    /// <summary>What is known of a vCPU, in lines for people.</summary>
    public async Task<string> DescribeAsync(int vcpu)
    {
        string text = "";
        await machine.Vcpus[vcpu].InvokeAsync(() => text = CrashReport.Write(machine.Vcpus[vcpu].Processor, machine.Memory)).ConfigureAwait(false);
        return text;
    }

    /// <summary>Reads memory as a vCPU with these registers sees it. Answers how many bytes there are before the first that is not memory.</summary>
    public int ReadMemory(ProcessorState state, ulong linear, Span<byte> bytes)
    {
        ArgumentNullException.ThrowIfNull(state);
        for (int done = 0; ;)
        {
            int piece = Piece(linear, bytes.Length, done);
            if (piece == 0 || PageWalk.Translate(state, machine.Memory, linear + (ulong)done) is not { } physical
                || !machine.Memory.TryRead(new(physical), bytes.Slice(done, piece)))
                return done;
            done += piece;
        }
    }

    /// <summary>Writes memory as a vCPU with these registers sees it, whatever its rights. False, with nothing changed: some of it is not memory.</summary>
    public bool WriteMemory(ProcessorState state, ulong linear, ReadOnlySpan<byte> bytes)
    {
        ArgumentNullException.ThrowIfNull(state);
        for (int pass = 0; pass < 2; pass++)
        {
            int piece;
            for (int done = 0; (piece = Piece(linear, bytes.Length, done)) != 0; done += piece)
            {
                if (PageWalk.Translate(state, machine.Memory, linear + (ulong)done) is not { } physical || !machine.Memory.Contains(physical, (ulong)piece))
                    return false;
                if (pass == 1)
                    machine.Memory.TryWrite(new(physical), bytes.Slice(done, piece));
            }
        }
        return true;
    }

    /// <summary>What is mapped for a vCPU with these registers; nothing when paging is off.</summary>
    public IEnumerable<PageMapping> Mappings(ProcessorState state) => PageWalk.Mappings(state, machine.Memory);

    /// <summary>Ends debugging: breakpoints are gone, and the machine goes on as if nobody had looked.</summary>
    public Task DetachAsync() => machine.PostAsync(async () =>
    {
        await machine.PauseForDebugger().ConfigureAwait(false);
        running = false;
        DebugStop? crash;
        lock (gate)
        {
            crash = pending.Find(p => p.Stop.Kind == DebugStopKind.Crashed).Stop;
            pending.Clear();
        }
        if (machine.State != MachineState.Ended)
            await Task.WhenAll(machine.Vcpus.Select(v => v.InvokeAsync(() => v.Processor.SetGuestDebug(GuestDebug.None)))).ConfigureAwait(false);
        machine.Released(this);
        stops.Writer.TryComplete();
        if (crash is not null)
            machine.EndCrashed(crash.Vcpu);
        else if (startsOnDetach)
            await machine.RunForDebugger(null).ConfigureAwait(false);
    });

    // A page at most.
    private static int Piece(ulong linear, int length, int done) => Math.Min(length - done, 4096 - (int)((linear + (ulong)done) & 4095));

    /// <summary>From a vCPU's thread, which is paused now.</summary>
    internal void Stop(VcpuThread vcpu, ProcessorExit exit) => Note(Describe(vcpu.Processor, exit), exit);

    /// <summary>From a vCPU's thread, which is paused now.</summary>
    internal void Crash(VcpuThread vcpu, ProcessorExit how)
    {
        machine.CrashedWith(vcpu.Processor.Index, how);
        Note(new DebugStop(vcpu.Processor.Index, DebugStopKind.Crashed, vcpu.Processor.GetState().Rip, 0), how);
    }

    private void Note(DebugStop stop, ProcessorExit exit)
    {
        lock (gate)
            pending.Add((stop, exit));
        _ = machine.PostAsync(async () =>
        {
            await machine.PauseForDebugger().ConfigureAwait(false);
            TellOne(_ => true);
        });
    }

    private DebugStop Describe(IVirtualProcessor processor, ProcessorExit exit)
    {
        ulong hits = exit.Detail & GuestDebugBits.Hardware;
        int number = hits == 0 ? -1 : System.Numerics.BitOperations.TrailingZeroCount(hits);
        IReadOnlyList<HardwareBreakpoint> list = hardware;
        DebugStopKind kind = number >= 0 && number < list.Count && list[number].Kind != BreakpointKind.Execute ? DebugStopKind.Watchpoint
            : (exit.Detail & GuestDebugBits.Code) != 0 ? DebugStopKind.CodeBreakpoint
            : number >= 0 ? DebugStopKind.HardwareBreakpoint
            : DebugStopKind.Step;
        // Not the exit's address: not every processor gives RIP there.
        return new DebugStop(processor.Index, kind, processor.GetState().Rip, exit.Detail, kind is DebugStopKind.Watchpoint or DebugStopKind.HardwareBreakpoint ? number : -1);
    }

    private bool TellOne(Func<DebugStop, bool> which)
    {
        lock (gate)
        {
            int at = pending.FindIndex(p => which(p.Stop));
            if (!running || at < 0)
                return false;
            running = false;
            stops.Writer.TryWrite(pending[at].Stop);
            if (pending[at].Stop.Kind == DebugStopKind.Crashed)
                toldCrash = pending[at].Stop;
            else
                pending.RemoveAt(at);
            return true;
        }
    }

    private async Task<bool> TellPending(IReadOnlyList<VcpuResume> vcpus)
    {
        DebugStop[] waiting;
        lock (gate)
            waiting = [.. pending.Select(p => p.Stop)];
        foreach (DebugStop stop in waiting)
        {
            if (vcpus[stop.Vcpu] == VcpuResume.Hold)
                continue;
            if (stop.Kind == DebugStopKind.Crashed)
            {
                if (!ReferenceEquals(toldCrash, stop))
                    return TellOne(s => ReferenceEquals(s, stop));
                // There is nothing to go on with.
                lock (gate)
                    pending.Clear();
                machine.EndCrashed(stop.Vcpu);
                return true;
            }
            ProcessorState state = await GetStateAsync(stop.Vcpu).ConfigureAwait(false);
            if (state.Rip == stop.Address && IsStillWanted(stop) && TellOne(s => ReferenceEquals(s, stop)))
                return true;
            lock (gate)
                pending.RemoveAll(p => ReferenceEquals(p.Stop, stop));
        }
        return false;
    }

    private bool IsStillWanted(DebugStop stop) => stop.Kind switch
    {
        DebugStopKind.CodeBreakpoint => code.Count != 0,
        DebugStopKind.HardwareBreakpoint or DebugStopKind.Watchpoint => stop.Breakpoint < hardware.Count,
        _ => false,
    };

    /// <summary>The machine has been reset: what waited to be told is about a past that is gone.</summary>
    internal void Forget()
    {
        lock (gate)
            pending.Clear();
    }
}
