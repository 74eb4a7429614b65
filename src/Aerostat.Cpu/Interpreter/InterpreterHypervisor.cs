using Aerostat.Memory;
using Aerostat.Processors;

namespace Aerostat.Cpu;

/// <summary>Runs guest code on the software x86-64 interpreter. Needs nothing from the host but memory.</summary>
public sealed class InterpreterHypervisor : IHypervisor
{
    // Decoded code, in bytes: what all vCPUs share beyond the little that each has, and the most that one may have.
    private const long SharedBlocks = 32 << 20, SharedBlocksOfTranslator = 12 << 20;
    private const ulong MostBlocks = 24 << 20, MostBlocksOfTranslator = 8 << 20;

    private readonly BlockCacheBudget blocks;
    private readonly ulong mostBlocks;
    private readonly GuestMemory memory;
    private readonly ExecutionGate gate = new();
    private readonly HostStubs stubs = new();
    private readonly HashSet<int> made = [];

    /// <summary>Binds an interpreter to a machine's memory, which must outlive it.</summary>
    public InterpreterHypervisor(GuestMemory memory)
        : this(memory, coldCodeOnly: false)
    {
    }

    /// <summary>As the other; a translator leaves only cold code to its interpreters.</summary>
    internal InterpreterHypervisor(GuestMemory memory, bool coldCodeOnly)
    {
        blocks = new BlockCacheBudget(coldCodeOnly ? SharedBlocksOfTranslator : SharedBlocks);
        mostBlocks = coldCodeOnly ? MostBlocksOfTranslator : MostBlocks;
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
        var interpreter = new Interpreter(options, memory, gate, stubs, new BlockCache(mostBlocks, blocks));
        var processor = new SoftwareProcessor(interpreter);
        interpreter.Owner = processor;
        return processor;
    }

    /// <inheritdoc/>
    public Action<ulong>? FlushTranslations => Flush;

    // The caller is in an exit handler, and so outside the guest itself.
    private void Flush(ulong processors)
    {
        gate.BeginExclusive(null);
        foreach (Interpreter member in gate.Members)
        {
            int index = member.Owner.Index;
            if (index < 64 && (processors >> index & 1) != 0)
                member.FlushTlb();
        }
        gate.EndExclusive(null);
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
