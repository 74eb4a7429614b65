using Aerostat.Platform;

namespace Aerostat.Cpu;

/// <summary>What one vCPU has besides the interpreter when it runs translated: code, translator, and what other threads tell it.</summary>
internal sealed unsafe class TranslationState : IDisposable
{
    // Executions of a block by the interpreter before it is translated, counted by address.
    public const int DefaultThreshold = 32;
    // Executions of translated code before it is asked how often it runs, those by which that is told, and those on trial.
    public const int DefaultHotThreshold = 1 << 14;
    private const int LongestTiming = 1024, LongestTrial = 48;
    /// <summary>Code that runs once in so many guest instructions is worth slots.</summary>
    public const int HotWithin = 1024;
    /// <summary>How many times it may run less often until it settles: other code has run in between, or this was just not its turn. Each is twice as many executions from the one before.</summary>
    public const int Timings = 3;
    private const int HeatEntries = 1 << 16;
    public const int LookasideEntries = 1 << 12;

    private const int MostSelfModifyingPages = 4096;

    private readonly CpuState* state;
    private readonly byte* heat;
    private readonly Lock gate = new();
    private readonly List<ulong> changedPages = [];

    public TranslationState(Interpreter interpreter, int codeBytes, int threshold, int hotThreshold, IBlockObserver? observer)
    {
        state = interpreter.State;
        Threshold = threshold;
        HotThreshold = hotThreshold;
        Cache = new CodeCache(state, codeBytes, visibleToProfilers: observer != null, interpreter.Model.Vendor == Vendor.Intel);
        Translator = new BlockTranslator(state, Cache, interpreter.Features, linear => HeatOf(linear) >= (Threshold + 1) / 2) { Observer = observer, HotThreshold = hotThreshold, Trial = Trial };
        heat = HostMapping.AllocateLazy(HeatEntries);
        Lookaside = (LookasideEntry*)HostMapping.AllocateLazy(2 * LookasideEntries * (ulong)sizeof(LookasideEntry));
    }

    /// <summary>Executions in the interpreter before code is translated.</summary>
    public int Threshold { get; }

    /// <summary>Executions of a translated block before it is asked whether its checks are worth slots; 0: they get none.</summary>
    public int HotThreshold { get; }

    /// <summary>Executions by which that is decided.</summary>
    public int Timing => Math.Min(HotThreshold, LongestTiming);

    /// <summary>Executions after which it is looked at which of those pay.</summary>
    public int Trial => Math.Min(HotThreshold, LongestTrial);

    public CodeCache Cache { get; }

    public BlockTranslator Translator { get; }

    /// <summary>How often code at an address (by its hash) was interpreted.</summary>
    public ref byte HeatOf(ulong linear) => ref heat[(linear ^ (linear >> 16)) & (HeatEntries - 1)];

    /// <summary>Whether the jump table has just been asked for RIP in vain, and not for a request's sake.</summary>
    public bool Sought { get; set; }

    /// <summary>From linear address and variant to block, within an epoch; the second half for blocks without groups.</summary>
    public LookasideEntry* Lookaside { get; }

    /// <summary>Why generated code was left.</summary>
    public TranslationCounters Counters { get; } = new();

    /// <summary>Another address space comes into force; the vCPU's own thread, outside generated code.</summary>
    public void SelectSpace(TlbSpace space)
    {
        HostThread.SetGsBase((nint)space.Base);
        Cache.SelectSpace(space.Number);
    }

    public const int PublishedEntries = 4096;

    /// <summary>For which pages, epochs and variants <see cref="CodeCache.PublishPage"/> has been done.</summary>
    public readonly (ulong Linear, ulong Epoch, int Variant)[] PublishedPages = new (ulong Linear, ulong Epoch, int Variant)[PublishedEntries];

    /// <summary>Makes generated code leave at its next check; any thread, after the request is set.</summary>
    public void Poke()
    {
        // In this order: the dispatcher arms the tables when it sees Poll, so a table disarmed late is not left so.
        Cache.DisarmTables();
        Volatile.Write(ref state->Poll, 1);
    }

    /// <summary>
    /// Notes a store to code: where it comes from the same page, what the code there reads is about to change, so flags that nothing reads now may be
    /// read next time.
    /// </summary>
    public void NoteStoreToCode(ulong gpa, ulong from)
    {
        if (gpa >> 12 != from >> 12)
            return;
        if (Translator.SelfModifying.Count >= MostSelfModifyingPages)
            Translator.SelfModifying.Clear();
        Translator.SelfModifying.Add(gpa >> 12);
    }

    /// <summary>Notes that the code of a page has changed; any thread.</summary>
    public void NoteChange(ulong page)
    {
        lock (gate)
            changedPages.Add(page);
    }

    /// <summary>Forgets code that has changed; the vCPU's own thread, outside generated code.</summary>
    public void DropChangedCode()
    {
        lock (gate)
        {
            foreach (ulong page in changedPages)
                Cache.DropPage(page);
            changedPages.Clear();
        }
    }

    public void Dispose()
    {
        Cache.Dispose();
        Counters.Dispose();
        HostMapping.Unmap(heat, HeatEntries);
        HostMapping.Unmap((byte*)Lookaside, 2 * LookasideEntries * (ulong)sizeof(LookasideEntry));
    }
}

/// <summary>Entry of the dispatcher's own cache from linear address to block.</summary>
internal unsafe struct LookasideEntry
{
    /// <summary>Linear address; <see cref="Variant"/> + 1 so that an empty entry matches nothing.</summary>
    public ulong Linear;
    public ulong Epoch;
    public TranslatedBlock* Block;
    public int Variant;
    public int Age;
}
