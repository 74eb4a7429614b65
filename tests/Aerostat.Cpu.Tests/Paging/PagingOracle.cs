using Aerostat.X86;

namespace Aerostat.Cpu.Tests;

/// <summary>What a test access is.</summary>
internal enum AccessKind
{
    Read,
    Write,
    Fetch,
}

/// <summary>The controls that paging looks at.</summary>
internal readonly record struct PagingControls(bool Wp, bool Smep, bool Smap, bool Nxe, bool Ac);

/// <summary>What an access must do: fault with an error code, or not; and which entries get which flags.</summary>
internal readonly record struct PagingVerdict(bool Faults, uint Error, bool SetsDirty);

/// <summary>
/// The rules of paging (Intel SDM vol. 3 sections 5.4 to 5.8), written down once more and as plainly as possible: a list of entries from the
/// top table to the leaf goes in, the verdict comes out. Shares nothing with the processor.
/// </summary>
/// <param name="levels">2, 3, 4 or 5.</param>
/// <param name="physicalBits">MAXPHYADDR.</param>
internal sealed class PagingOracle(int levels, int physicalBits)
{
    /// <param name="entries">Entries from the top down; the last is the leaf, at level <paramref name="leafLevel"/>.</param>
    /// <param name="leafLevel">1: 4 KiB; 2: 2 MiB or 4 MiB; 3: 1 GiB.</param>
    /// <param name="kind">Access.</param>
    /// <param name="user">At CPL 3.</param>
    /// <param name="c">Control bits.</param>
    public PagingVerdict Judge(ReadOnlySpan<ulong> entries, int leafLevel, AccessKind kind, bool user, PagingControls c)
    {
        uint error = (kind == AccessKind.Write ? 2u : 0) | (user ? 4u : 0);
        bool nx = levels != 2 && c.Nxe;
        if (kind == AccessKind.Fetch && (nx || c.Smep))
            error |= 16;

        bool writable = true, userPage = true, executable = true;
        for (int k = 0; k < entries.Length; k++)
        {
            int level = levels - k;
            ulong e = entries[k];
            if (!Bit(e, 0))
                return new PagingVerdict(true, error, false);
            if ((e & Reserved(level, leafLevel, c.Nxe)) != 0)
                return new PagingVerdict(true, error | 1 | 8, false);
            if (levels == 3 && level == 3)
                continue;
            writable &= Bit(e, 1);
            userPage &= Bit(e, 2);
            executable &= !(nx && Bit(e, 63));
        }

        bool allowed = kind switch
        {
            AccessKind.Fetch => executable && (user ? userPage : !(userPage && c.Smep)),
            AccessKind.Read => user ? userPage : !(userPage && c.Smap && !c.Ac),
            _ => user ? userPage && writable : (writable || !c.Wp) && !(userPage && c.Smap && !c.Ac),
        };
        return allowed ? new PagingVerdict(false, 0, kind == AccessKind.Write) : new PagingVerdict(true, error | 1, false);
    }

    private static bool Bit(ulong value, int n) => (value >> n & 1) != 0;

    /// <summary>Bits that must be zero in a present entry.</summary>
    public ulong Reserved(int level, int leafLevel, bool nxe)
    {
        bool leaf = level == leafLevel;
        if (levels == 2)
        {
            // Only PSE pages have any: bit 21, and address bits above MAXPHYADDR, of which there are none here (40 < MAXPHYADDR).
            return level == 2 && leaf ? 1UL << 21 : 0;
        }

        ulong r = 0;
        for (int bit = physicalBits; bit < 52; bit++)
            r |= 1UL << bit;
        if (!nxe)
            r |= 1UL << 63;
        if (levels == 3)
        {
            for (int bit = 52; bit < 63; bit++)
                r |= 1UL << bit;
            if (level == 3)
                return r | 1UL << 63 | 0b1_1110_0110;
        }

        if (level >= 4)
            r |= 1 << 7;
        if (leaf && level > 1)
        {
            for (int bit = 13; bit < (level == 2 ? 21 : 30); bit++)
                r |= 1UL << bit;
        }

        return r;
    }
}
