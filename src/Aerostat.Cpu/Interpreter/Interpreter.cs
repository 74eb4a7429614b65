using Aerostat.Memory;
using Aerostat.Processors;
using Aerostat.X86;

namespace Aerostat.Cpu;

/// <summary>
/// The interpreter of one vCPU: executes x86 one decoded instruction at a time, exactly (Intel SDM; AMD APM where cited). It is the
/// reference that every faster processor is compared with.
/// </summary>
internal sealed unsafe partial class Interpreter
{
    /// <summary>The state; native memory, freed by Dispose.</summary>
    internal CpuState* State { get; }

    /// <summary>Guest physical memory.</summary>
    internal GuestMemory Memory { get; } = null!;

    /// <summary>CPUID before its dynamic bits.</summary>
    internal CpuidTable Cpuid { get; } = null!;

    /// <summary>Who serves ports, MMIO, MSRs and interrupt acknowledge during Run.</summary>
    internal IExitHandler Handler { get; private set; } = null!;

    /// <summary>vCPU number.</summary>
    internal int Index { get; }

    // The exception recorded by the last Raise; delivered by the run loop.
    internal int raisedVector;
    internal uint raisedError;
    internal bool raisedHasError;

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
}
