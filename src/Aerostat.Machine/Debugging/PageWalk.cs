using System.Buffers.Binary;
using Aerostat.Memory;
using Aerostat.Processors;

namespace Aerostat.Machine;

/// <summary>
/// Page walks for people who look at a guest from outside: without rights, faults or accessed flags (Intel SDM vol. 3 chapter 5). What the
/// guest keeps in its tables is not trusted.
/// </summary>
internal static class PageWalk
{
    // Tables that a listing reads at most: tables may refer to themselves.
    private const int MostTables = 20000;
    private const ulong Cr0Paging = 1UL << 31, Cr0Protection = 1, Cr4Pae = 1 << 5, Cr4La57 = 1 << 12, EferLma = 1 << 10;
    private const ulong AddressMask = 0x000F_FFFF_FFFF_F000, Writable = 2, User = 4, NoExecute = 1UL << 63;

    /// <summary>The physical address of a linear one, or null.</summary>
    public static ulong? Translate(ProcessorState s, GuestMemory memory, ulong linear)
    {
        if (!IsPaged(s))
            return linear <= uint.MaxValue ? linear : null;
        if ((s.Cr4 & Cr4Pae) == 0)
        {
            if (linear > uint.MaxValue || ReadEntry(memory, (s.Cr3 & 0xFFFF_F000) + (((linear >> 22) & 0x3FF) * 4), 4) is not { } directory)
                return null;
            if ((directory & 0x80) != 0)
                return (directory & 0xFFC0_0000) | ((directory >> 13 & 0xFF) << 32) | (linear & 0x3F_FFFF);
            return ReadEntry(memory, (directory & 0xFFFF_F000) + (((linear >> 12) & 0x3FF) * 4), 4) is { } entry
                ? (entry & 0xFFFF_F000) | (linear & 0xFFF)
                : null;
        }
        (ulong table, int top) = Root(s);
        if (SignExtend(linear, top + 8) != linear && (s.Efer & EferLma) != 0 || ((s.Efer & EferLma) == 0 && linear > uint.MaxValue))
            return null;
        for (int shift = top; ; shift -= 9)
        {
            if (ReadEntry(memory, table + (Index(s, linear, shift) * 8), 8) is not { } entry)
                return null;
            ulong mask = (1UL << shift) - 1;
            if (IsLeaf(s, entry, shift))
                return (entry & AddressMask & ~mask) | (linear & mask);
            table = entry & AddressMask;
        }
    }

    /// <summary>What is mapped, in order, neighbours with the same rights as one. Ends early when the tables are absurdly large.</summary>
    public static IEnumerable<PageMapping> Mappings(ProcessorState s, GuestMemory memory)
    {
        if (!IsPaged(s))
            return [];
        return Merge((s.Cr4 & Cr4Pae) == 0 ? TwoLevel(s, memory) : Entries(s, memory));
    }

    private static IEnumerable<PageMapping> Merge(IEnumerable<PageMapping> pages)
    {
        PageMapping? open = null;
        foreach (PageMapping page in pages)
        {
            if (open is { } o && o.Linear + o.Length == page.Linear && o.Physical + o.Length == page.Physical
                && (o.Writable, o.User, o.Executable) == (page.Writable, page.User, page.Executable))
            {
                open = o with { Length = o.Length + page.Length };
                continue;
            }
            if (open is { } done)
                yield return done;
            open = page;
        }
        if (open is { } last)
            yield return last;
    }

    private static IEnumerable<PageMapping> TwoLevel(ProcessorState s, GuestMemory memory)
    {
        for (ulong i = 0; i < 1024; i++)
        {
            if (ReadEntry(memory, (s.Cr3 & 0xFFFF_F000) + (i * 4), 4) is not { } directory)
                continue;
            if ((directory & 0x80) != 0)
            {
                yield return new(i << 22, (directory & 0xFFC0_0000) | ((directory >> 13 & 0xFF) << 32), 1 << 22, (directory & Writable) != 0, (directory & User) != 0, true);
                continue;
            }
            for (ulong k = 0; k < 1024; k++)
                if (ReadEntry(memory, (directory & 0xFFFF_F000) + (k * 4), 4) is { } entry)
                    yield return new(i << 22 | k << 12, entry & 0xFFFF_F000, 4096, (entry & directory & Writable) != 0, (entry & directory & User) != 0, true);
        }
    }

    private static IEnumerable<PageMapping> Entries(ProcessorState s, GuestMemory memory)
    {
        (ulong root, int top) = Root(s);
        Stack<(ulong Table, int Shift, ulong Linear, ulong Rights, ulong Index)> open = [];
        open.Push((root, top, 0, Writable | User, 0));
        int tables = 1;
        while (open.TryPop(out (ulong Table, int Shift, ulong Linear, ulong Rights, ulong Index) at))
        {
            ulong count = (s.Efer & EferLma) == 0 && at.Shift == 30 ? 4UL : 512;
            for (ulong i = at.Index; i < count; i++)
            {
                if (ReadEntry(memory, at.Table + (i * 8), 8) is not { } entry)
                    continue;
                ulong linear = at.Linear | i << at.Shift;
                // The four entries of PAE have no rights (Intel SDM vol. 3 table 5-8); NX adds up, the others must all agree.
                ulong rights = count == 4 ? at.Rights : (at.Rights & entry & (Writable | User)) | ((at.Rights | entry) & NoExecute);
                if (IsLeaf(s, entry, at.Shift))
                {
                    ulong length = 1UL << at.Shift;
                    ulong shown = (s.Efer & EferLma) != 0 ? SignExtend(linear, top + 8) : linear;
                    yield return new(shown, entry & AddressMask & ~(length - 1), length, (rights & Writable) != 0, (rights & User) != 0, (rights & NoExecute) == 0);
                    continue;
                }
                if (++tables > MostTables)
                    yield break;
                open.Push(at with { Index = i + 1 });
                open.Push((entry & AddressMask, at.Shift - 9, linear, rights, 0));
                break;
            }
        }
    }

    private static bool IsPaged(ProcessorState s) => (s.Cr0 & Cr0Protection) != 0 && (s.Cr0 & Cr0Paging) != 0;

    private static (ulong Table, int Top) Root(ProcessorState s) => (s.Efer & EferLma) == 0 ? (s.Cr3 & 0xFFFF_FFE0, 30) : (s.Cr3 & AddressMask, (s.Cr4 & Cr4La57) != 0 ? 48 : 39);

    private static ulong Index(ProcessorState s, ulong linear, int shift) => (linear >> shift) & ((s.Efer & EferLma) == 0 && shift == 30 ? 3UL : 0x1FF);

    private static bool IsLeaf(ProcessorState s, ulong entry, int shift) =>
        shift == 12 || (shift <= 30 && ((s.Efer & EferLma) != 0 || shift == 21) && (entry & 0x80) != 0);

    private static ulong SignExtend(ulong linear, int signBit) => (ulong)((long)(linear << (63 - signBit)) >> (63 - signBit));

    private static ulong? ReadEntry(GuestMemory memory, ulong address, int size)
    {
        Span<byte> bytes = stackalloc byte[8];
        bytes.Clear();
        if (!memory.TryRead(new(address), bytes[..size]))
            return null;
        ulong entry = BinaryPrimitives.ReadUInt64LittleEndian(bytes);
        return (entry & 1) != 0 ? entry : null;
    }
}
