using Aerostat.Memory;
using Aerostat.Processors;

namespace Aerostat.Cpu;

/// <summary>Runs guest code on the software x86-64 interpreter. Needs nothing from the host but memory.</summary>
public sealed class InterpreterHypervisor : IHypervisor
{
    // Decoded code of all vCPUs together, in bytes.
    private const ulong BlockCacheBudget = 48 << 20, SmallestBlockCache = 4 << 20;

    private readonly GuestMemory memory;
    private readonly ExecutionGate gate = new();
    private readonly HostStubs stubs = new();
    private readonly HashSet<int> made = [];

    /// <summary>Binds an interpreter to a machine's memory, which must outlive it.</summary>
    public InterpreterHypervisor(GuestMemory memory)
    {
        this.memory = memory;
        memory.WatchTightened += DropWritePaths;
    }

    /// <inheritdoc/>
    public string Name => "interpreter";

    /// <inheritdoc/>
    /// <exception cref="ArgumentOutOfRangeException">The index is not below the count, or has been made before.</exception>
    public IVirtualProcessor CreateProcessor(VirtualProcessorOptions options)
    {
        ArgumentNullException.ThrowIfNull(options);
        if (options.Index < 0 || options.Index >= options.Count || !made.Add(options.Index))
            throw new ArgumentOutOfRangeException(nameof(options), options.Index, $"vCPU numbers are 0..{options.Count - 1}, each once");
        var interpreter = new Interpreter(options, memory, gate, stubs, Math.Max(SmallestBlockCache, BlockCacheBudget / (ulong)options.Count));
        var processor = new SoftwareProcessor(interpreter);
        interpreter.Owner = processor;
        return processor;
    }

    private void DropWritePaths()
    {
        gate.BeginExclusive(null);
        foreach (Interpreter member in gate.Members)
            member.DropAllWritePaths();
        gate.EndExclusive(null);
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        memory.WatchTightened -= DropWritePaths;
        foreach (Interpreter member in gate.Members)
            member.Dispose();
        stubs.Dispose();
    }
}
