using Aerostat.Platform;
using Iced.Intel;

namespace Aerostat.Cpu;

/// <summary>Why an access that left generated code could not be served by filling the TLB.</summary>
internal enum SlowAccess : byte
{
    /// <summary>It crosses a page.</summary>
    PageCrossing,
    /// <summary>It must be aligned and is not.</summary>
    Misaligned,
    /// <summary>Its address is not canonical.</summary>
    NotCanonical,
    /// <summary>It writes to a page that is watched: one with code, or one whose changes are logged.</summary>
    WatchedPage,
    /// <summary>It goes to a device.</summary>
    Device,
    /// <summary>It faults.</summary>
    Fault,
}

/// <summary>Why a step in the interpreter was not followed by the rest of its block.</summary>
internal enum BlockLeave : byte
{
    /// <summary>The instruction branched, faulted or ended the run.</summary>
    Branched,
    /// <summary>What a group's check has found may be out of date, or the block ends here.</summary>
    NoContinuation,
    /// <summary>Linear mappings changed.</summary>
    MappingChanged,
    /// <summary>Generated code was forgotten.</summary>
    CodeForgotten,
    /// <summary>Somebody asked for attention.</summary>
    Requested,
    /// <summary>Privilege, SMAP's AC flag or the use of vector registers changed.</summary>
    VariantChanged,
}

/// <summary>Why a block was run by the interpreter.</summary>
internal enum InterpretedBlock : byte
{
    /// <summary>It has not run often enough.</summary>
    Cold,
    /// <summary>It is 16- or 32-bit code.</summary>
    OtherMode,
    /// <summary>Each access has to be looked at: data breakpoints, alignment checks.</summary>
    CheckedAccesses,
    /// <summary>It cannot be fetched, or not from RAM.</summary>
    NotFetched,
}

/// <summary>
/// A counter for every reason to leave generated code, or not to enter it. All are counted in the dispatcher: generated code pays nothing.
/// </summary>
internal sealed unsafe class TranslationCounters : IDisposable
{
    /// <summary>What names of single instructions begin with; the rest is the mnemonic.</summary>
    public const string InterpretedPrefix = "interpreted/";

    // Iced numbers instruction forms from 0; the memory behind those that never occur is never touched.
    private const int Codes = 1 << 13;

    public readonly long[] Exits = new long[(int)ExitKind.Countdown + 1];
    public readonly long[] SlowAccesses = new long[(int)SlowAccess.Fault + 1];
    public readonly long[] Leaves = new long[(int)BlockLeave.VariantChanged + 1];
    public readonly long[] Blocks = new long[(int)InterpretedBlock.NotFetched + 1];
    public long Entries, TlbRefills, GroupFailures, Searches, Trials;

    private readonly long* byCode = (long*)HostMapping.AllocateLazy(Codes * sizeof(long));

    /// <summary>One instruction that was stepped in the interpreter, by Iced's Code.</summary>
    public void Interpreted(ushort code)
    {
        // SAFETY: Codes is a power of two, and the mask keeps the index below it.
        byCode[code & (Codes - 1)]++;
    }

    /// <summary>Writes what has been counted into <paramref name="named"/>; another thread may be counting.</summary>
    public void AddTo(Dictionary<string, long> named)
    {
        named["entries"] = Entries;
        for (int i = 0; i < Exits.Length; i++)
            named[$"exit-{NameOf((ExitKind)i)}"] = Exits[i];
        named["exit-memory-tlb-refill"] = TlbRefills;
        named["exit-memory-group"] = GroupFailures;
        named["checks-that-search"] = Searches;
        named["blocks-on-trial"] = Trials;
        for (int i = 0; i < SlowAccesses.Length; i++)
            named[$"exit-memory-{NameOf((SlowAccess)i)}"] = SlowAccesses[i];
        for (int i = 0; i < Leaves.Length; i++)
            named[$"block-left-{NameOf((BlockLeave)i)}"] = Leaves[i];
        for (int i = 0; i < Blocks.Length; i++)
            named[$"interpreted-blocks-{NameOf((InterpretedBlock)i)}"] = Blocks[i];
        foreach (string old in named.Keys.Where(k => k.StartsWith(InterpretedPrefix, StringComparison.Ordinal)).ToArray())
            named.Remove(old);
        for (int i = 0; i < Codes; i++)
        {
            if (byCode[i] == 0)
                continue;
            string name = InterpretedPrefix + ((Code)i == Code.INVALID ? "undefined" : ((Code)i).Mnemonic().ToString().ToLowerInvariant());
            named[name] = named.GetValueOrDefault(name) + byCode[i];
        }
    }

    private static string NameOf(ExitKind kind) => kind switch
    {
        ExitKind.Miss => "jump-table-miss",
        ExitKind.NeedsVectors => "needs-vectors",
        _ => kind.ToString().ToLowerInvariant(),
    };

    private static string NameOf(SlowAccess reason) => reason switch
    {
        SlowAccess.PageCrossing => "page-crossing",
        SlowAccess.NotCanonical => "not-canonical",
        SlowAccess.WatchedPage => "watched-page",
        _ => reason.ToString().ToLowerInvariant(),
    };

    private static string NameOf(BlockLeave reason) => reason switch
    {
        BlockLeave.NoContinuation => "no-continuation",
        BlockLeave.MappingChanged => "mapping-changed",
        BlockLeave.CodeForgotten => "code-forgotten",
        BlockLeave.VariantChanged => "variant-changed",
        _ => reason.ToString().ToLowerInvariant(),
    };

    private static string NameOf(InterpretedBlock reason) => reason switch
    {
        InterpretedBlock.OtherMode => "other-mode",
        InterpretedBlock.CheckedAccesses => "checked-accesses",
        InterpretedBlock.NotFetched => "not-fetched",
        _ => reason.ToString().ToLowerInvariant(),
    };

    public void Dispose() => HostMapping.Unmap((byte*)byCode, Codes * sizeof(long));
}
