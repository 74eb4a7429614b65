using Aerostat.Memory;
using Aerostat.X86;

namespace Aerostat.Cpu.Tests;

/// <summary>Builds page tables of any kind in guest memory, from a bump allocator.</summary>
/// <param name="memory">Where they go.</param>
/// <param name="first">First free guest physical page.</param>
/// <param name="levels">2 (32-bit), 3 (PAE), 4 or 5.</param>
internal sealed class PageTables(GuestMemory memory, ulong first, int levels = 4)
{
    private const ulong AddressMask = 0x000F_FFFF_FFFF_F000;
    private ulong _next = first;

    /// <summary>Guest physical address of the top table: what CR3 holds.</summary>
    public ulong Root { get; } = first;

    public int Levels => levels;

    private ulong Allocate()
    {
        ulong page = _next;
        _next += 4096;
        memory.Write(new GuestAddress(page), new byte[4096]);
        return page;
    }

    private bool _rootMade;

    /// <summary>Guest physical address of the entry that serves <paramref name="linear"/> at <paramref name="level"/> (1 = page table); tables above are made as needed.</summary>
    public ulong EntryAddress(ulong linear, int level, ulong tableFlags = PageTableEntry.P | PageTableEntry.W | PageTableEntry.U)
    {
        if (!_rootMade)
        {
            Allocate();
            _rootMade = true;
        }

        ulong table = Root;
        for (int l = levels; ; l--)
        {
            ulong entry = table + Index(linear, l) * (ulong)EntrySize;
            if (l == level)
                return entry;
            ulong value = Read(entry);
            if ((value & PageTableEntry.P) == 0)
            {
                // The four entries at the top of PAE tables have no access bits (Intel SDM vol. 3 table 5-8).
                value = Allocate() | (levels == 3 && l == 3 ? PageTableEntry.P : tableFlags);
                Write(entry, value);
            }

            table = value & AddressMask & (levels == 2 ? 0xFFFFF000 : ulong.MaxValue);
        }
    }

    public int EntrySize => levels == 2 ? 4 : 8;

    public ulong Read(ulong entry) => levels == 2 ? memory.Read<uint>(new GuestAddress(entry)) : memory.Read<ulong>(new GuestAddress(entry));

    public void Write(ulong entry, ulong value)
    {
        if (levels == 2)
            memory.Write(new GuestAddress(entry), (uint)value);
        else
            memory.Write(new GuestAddress(entry), value);
    }

    /// <summary>Maps pages of 4 KiB.</summary>
    public void Map(ulong linear, ulong physical, int bytes, ulong flags)
    {
        for (int i = 0; i < bytes; i += 4096)
            Write(EntryAddress(linear + (ulong)i, 1), (physical + (ulong)i) | flags | PageTableEntry.P);
    }

    private ulong Index(ulong linear, int level) => levels == 2
        ? (linear >> (12 + 10 * (level - 1))) & 1023
        : (linear >> (12 + 9 * (level - 1))) & (levels == 3 && level == 3 ? 3UL : 511);
}
