using System.Runtime.InteropServices;
using Aerostat.Memory;
using Aerostat.Platform;
using Aerostat.Processors;
using Aerostat.X86;

namespace Aerostat.Cpu;

/// <summary>
/// The interpreter of one vCPU: executes x86 one decoded instruction at a time, exactly (Intel SDM; AMD APM where cited). It is the
/// reference that every faster processor is compared with.
/// </summary>
internal sealed unsafe partial class Interpreter : IDisposable
{
    private readonly ExecutionGate gate;
    private readonly GuestHandler guestHandler;
    private readonly VmClock? vmClock;
    private bool disposed;

    // The exception recorded by the last Raise; delivered by the run loop.
    internal int raisedVector;
    internal uint raisedError;
    internal bool raisedHasError;

    public Interpreter(VirtualProcessorOptions options, GuestMemory memory, ExecutionGate gate, HostStubs stubs, BlockCache blocks)
    {
        Index = options.Index;
        Memory = memory;
        Cpuid = options.Cpuid;
        Timestamp = new TimestampCounter(options.Clock, options.TscFrequencyHz);
        vmClock = options.Clock as VmClock;
        Features = new FeatureGate(options.Cpuid);
        this.gate = gate;
        guestHandler = new GuestHandler(this, gate);
        Handler = guestHandler;
        decoder = new BlockDecoder(stubs, Features);
        this.blocks = blocks;

        // SAFETY: all native blocks below live until Dispose, which the owner calls after the vCPU thread has ended.
        tlbMemory = new TlbMemory();
        space = tlbMemory.Spaces[0];
        space.Pcid = 0;
        space.Epoch = epoch;
        State = (CpuState*)space.Base;
        (State->NoTag, State->NoHost) = (tlbMemory.NoTag, tlbMemory.Spare);
        (State->HostBase, State->HeldPages) = ((ulong)Memory.HostBase, (ulong)Memory.HeldPages);
        State->BlankTag = NoBlank;
        UseSets();
        State->Xsave = (byte*)NativeMemory.AlignedAlloc(CpuState.XsaveBytes, 64);
        new Span<byte>(State->Xsave, CpuState.XsaveBytes).Clear();
        bounce = (byte*)NativeMemory.AlignedAlloc(64, 64);
        fetchBuffer = (byte*)NativeMemory.AlignedAlloc(FetchBufferBytes, 64);
        jumpCache = (JumpEntry*)HostMapping.AllocateLazy(2 * JumpEntries * (ulong)sizeof(JumpEntry));
        singles = jumpCache + JumpEntries;
        zeroGeneration = (uint*)NativeMemory.AlignedAlloc(64, 64);
        *zeroGeneration = 0;

        physicalMask = (1UL << (int)Math.Clamp(Cpuid.Get(0x80000008, 0).Eax & 0xFF, 32, 52)) - 1;
        hasGigabytePages = (Cpuid.Get(0x80000001, 0).Edx & (1u << 26)) != 0;
        ResetState(init: false);
        UpdateMode();
        gate.Add(this);
    }

    /// <summary>The state; native memory, freed by Dispose.</summary>
    internal CpuState* State { get; }

    /// <summary>Guest physical memory.</summary>
    internal GuestMemory Memory { get; }

    /// <summary>CPUID before its dynamic bits.</summary>
    internal CpuidTable Cpuid { get; }

    /// <summary>Which instructions the model has.</summary>
    internal FeatureGate Features { get; }

    /// <summary>The time-stamp counter.</summary>
    internal TimestampCounter Timestamp { get; }

    /// <summary>Who serves ports, MMIO, MSRs and interrupt acknowledge during Run.</summary>
    internal IExitHandler Handler { get; }

    /// <summary>vCPU number.</summary>
    internal int Index { get; }

    /// <summary>1 while this vCPU's thread is inside the guest; see <see cref="ExecutionGate"/>.</summary>
    internal int InGuest;

    /// <summary>What Run returns after a handler has returned <see cref="Outcome.Exit"/>.</summary>
    internal ProcessorExit PendingExit;

    /// <summary>Records an exception without error code. Return its result from the handler.</summary>
    internal Outcome Raise(int vector)
    {
        raisedVector = vector;
        raisedHasError = false;
        return Outcome.Fault;
    }

    /// <summary>Records an exception with an error code. Return its result from the handler.</summary>
    internal Outcome Raise(int vector, uint error)
    {
        raisedVector = vector;
        raisedError = error;
        raisedHasError = true;
        return Outcome.Fault;
    }

    /// <summary>#GP(0).</summary>
    internal Outcome RaiseGp() => Raise(Vector.GeneralProtection, 0);

    /// <summary>#UD.</summary>
    internal Outcome RaiseUd() => Raise(Vector.InvalidOpcode);

    /// <summary>Sets request bits; any thread.</summary>
    internal void SetRequest(Request bits)
    {
        Interlocked.Or(ref State->Request, (int)bits);
        translation?.Poke();
    }

    /// <summary>Clears request bits; any thread.</summary>
    internal void ClearRequest(Request bits) => Interlocked.And(ref State->Request, ~(int)bits);

    /// <summary>Asks this vCPU to leave the guest at the next block boundary; any thread.</summary>
    internal void RequestLeave() => SetRequest(Request.TlbShootdown);

    /// <summary>Makes Run return HandlerRequest after the present instruction.</summary>
    internal void RequestHandlerExit() => SetRequest(Request.HandlerExit);

    /// <summary>What <see cref="CpuState.ModeKey"/> has for privilege level 3.</summary>
    internal const ulong UserModeKey = 1UL << 62;

    /// <summary>
    /// Recomputes what depends on CS, SS, CR0, CR4, EFER, CPL, DR7 and RFLAGS.VM/AC: code size, stack width, which TLB set is in force.
    /// </summary>
    internal void UpdateMode()
    {
        CpuState* s = State;
        int bitness;
        if ((s->Cr0 & Cr0.Pe) == 0 || (s->SystemFlags & RFlags.Vm) != 0)
            bitness = 16;
        else if ((s->Efer & Efer.Lma) != 0 && (s->Cs.Attributes & SegmentRegister.L) != 0)
            bitness = 64;
        else
            bitness = (s->Cs.Attributes & SegmentRegister.Db) != 0 ? 32 : 16;
        s->StackMask = bitness == 64 ? ulong.MaxValue : (s->Ss.Attributes & SegmentRegister.Db) != 0 ? uint.MaxValue : 0xFFFFu;
        s->Bitness = bitness;
        s->ModeKey = (s->Cpl == 3 ? UserModeKey : 0) | (bitness == 64 ? 0 : (ulong)bitness << 54);
        debug = hostDebug;
        if ((s->Dr[7] & 0xFF) != 0)
            for (int i = 0; i < 4; i++)
                if (((s->Dr[7] >> (i * 2)) & 3) != 0)
                    debug |= ((s->Dr[7] >> (16 + (i * 4))) & 3) == 0 ? ExecuteBreakpoints : DataBreakpoints;
        // Generated code knows two privilege levels: what 64-bit code does at the other two, which nobody uses, is looked at each time.
        bool checkEach = (debug & (DataBreakpoints | HostWatch)) != 0 || (bitness == 64 && s->Cpl is 1 or 2)
            || (s->Cpl == 3 && (s->Cr0 & Cr0.Am) != 0 && (s->SystemFlags & RFlags.Ac) != 0);
        s->TlbSet = checkEach ? EmptySet
            : s->Cpl == 3 ? UserSet
            : (s->Cr4 & Cr4.Smap) != 0 && (s->SystemFlags & RFlags.Ac) == 0 ? StrictSet : SupervisorSet;
        translation?.Cache.SelectSmap((s->Cr4 & Cr4.Smap) != 0);
        s->Tlb = tlbSets + (s->TlbSet * TlbEntries);
    }

    public void Dispose()
    {
        if (disposed)
            return;
        disposed = true;
        gate.Remove(this);
        translation?.Dispose();
        blocks.Dispose();
        HostMapping.Unmap((byte*)jumpCache, 2 * JumpEntries * (ulong)sizeof(JumpEntry));
        NativeMemory.AlignedFree(zeroGeneration);
        NativeMemory.AlignedFree(fetchBuffer);
        NativeMemory.AlignedFree(bounce);
        NativeMemory.AlignedFree(State->Xsave);
        tlbMemory.Dispose();
    }
}
