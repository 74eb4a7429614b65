using System.Runtime.CompilerServices;
using Aerostat.X86;

namespace Aerostat.Cpu;

/// <summary>What a memory access is, as far as paging cares.</summary>
[Flags]
internal enum Access
{
    Read = 0,
    Write = 1,
    Fetch = 2,
    /// <summary>By user-mode code.</summary>
    User = 4,
    /// <summary>Supervisor access that the instruction did not ask for (descriptor tables, TSS): SMAP ignores RFLAGS.AC for it.</summary>
    Implicit = 8,
}

/// <summary>Result of a page walk.</summary>
internal struct Translation
{
    /// <summary>Guest physical address of the byte.</summary>
    public ulong Gpa;
    /// <summary>Bytes the leaf entry maps; 2^52 with paging off.</summary>
    public ulong PageSize;
    public bool User, Writable, NoExecute, Dirty;
    /// <summary>Global, with CR4.PGE: the same in every address space.</summary>
    public bool Global;
    /// <summary>What the page's protection key takes away from data accesses: bit 0 all, bit 1 writes.</summary>
    public uint KeyRights;
}

/// <content>
/// Paging (Intel SDM vol. 3 chapter 5): 32-bit, PAE, 4-level and 5-level page tables in guest memory. Accessed and dirty flags are set,
/// atomically, once an access is known to be allowed. Not emulated: the PDPTE registers of PAE paging (the entries are read from
/// memory at each walk, as AMD does).
/// </content>
internal sealed unsafe partial class Interpreter
{
    private ulong physicalMask;
    private bool hasGigabytePages;
    internal ulong faultAddress;

    /// <summary>Whether <paramref name="linear"/> is canonical under the present paging depth.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal static bool IsCanonical(CpuState* s, ulong linear)
    {
        int unused = (s->Cr4 & Cr4.La57) != 0 ? 7 : 16;
        return (ulong)((long)(linear << unused) >> unused) == linear;
    }

    /// <summary>Translates a linear address for one access; false: the fault is recorded.</summary>
    internal bool Translate(CpuState* s, ulong linear, Access access, out Translation t)
    {
        if ((access & (Access.Fetch | Access.Implicit)) == 0)
            linear = Unmask(s, linear);
        if ((s->Cr0 & Cr0.Pg) == 0)
        {
            t = new Translation { Gpa = linear, PageSize = 1UL << 52, User = true, Writable = true, Dirty = true };
            return true;
        }
        while (true)
        {
            uint error;
            if ((s->Efer & Efer.Lma) != 0)
                error = Walk64(s, linear, (s->Cr4 & Cr4.La57) != 0 ? 48 : 39, s->Cr3 & physicalMask & ~4095UL, access, out t);
            else if ((s->Cr4 & Cr4.Pae) != 0)
                error = Walk64(s, (uint)linear, 30, s->Cr3 & 0xFFFF_FFE0, access, out t);
            else
                error = Walk32(s, (uint)linear, access, out t);
            if (error == 0)
                return true;
            if (error == Retry)
                continue;
            faultAddress = linear;
            error &= ~Refused;
            error |= (access & Access.Write) != 0 ? PageFaultError.Write : 0;
            error |= (access & Access.User) != 0 ? PageFaultError.User : 0;
            if ((access & Access.Fetch) != 0 && ((s->Efer & Efer.Nxe) != 0 && ((s->Cr4 & Cr4.Pae) != 0) || (s->Cr4 & Cr4.Smep) != 0))
                error |= PageFaultError.Fetch;
            Raise(Vector.PageFault, error);
            return false;
        }
    }

    // Internal results of the walks: not architectural error bits.
    private const uint Retry = 1u << 31, Refused = 1u << 30;

    private uint Walk64(CpuState* s, ulong linear, int shift, ulong table, Access access, out Translation t)
    {
        t = default;
        ulong* entries = stackalloc ulong[5];
        ulong* addresses = stackalloc ulong[5];
        int depth = 0;
        bool longMode = (s->Efer & Efer.Lma) != 0;
        ulong reservedAlways = ~physicalMask & 0x000F_FFFF_FFFF_F000;
        if ((s->Efer & Efer.Nxe) == 0)
            reservedAlways |= PageTableEntry.Nx;
        if (!longMode)
            reservedAlways |= 0x7FF0_0000_0000_0000;
        ulong rights = PageTableEntry.W | PageTableEntry.U, noExecute = 0;
        while (true)
        {
            ulong address = table + (((linear >> shift) & 511) << 3);
            ulong e = ReadEntry(address);
            if ((e & PageTableEntry.P) == 0)
                return Refused;
            bool pdpte = !longMode && shift == 30;
            ulong reserved = reservedAlways;
            bool leaf = shift == 12;
            if (pdpte)
            {
                reserved |= 0x1E6 | PageTableEntry.Nx;
            }
            else if (!leaf && (e & PageTableEntry.Ps) != 0)
            {
                if (shift == 21 || (shift == 30 && hasGigabytePages))
                {
                    leaf = true;
                    reserved |= ((1UL << shift) - 1) & ~0x1FFFUL;
                }
                else
                {
                    reserved |= PageTableEntry.Ps;
                }
            }
            if ((e & reserved) != 0)
                return PageFaultError.Present | PageFaultError.Reserved;
            entries[depth] = e;
            addresses[depth++] = address;
            if (!pdpte)
            {
                rights &= e;
                noExecute |= e & PageTableEntry.Nx;
            }
            if (leaf)
            {
                ulong offsetMask = (1UL << shift) - 1;
                t.PageSize = 1UL << shift;
                t.Gpa = (e & physicalMask & ~offsetMask & ~0xFFFUL) | (linear & offsetMask);
                break;
            }
            table = e & physicalMask & ~0xFFFUL;
            shift -= 9;
        }
        t.User = (rights & PageTableEntry.U) != 0;
        t.Writable = (rights & PageTableEntry.W) != 0;
        t.NoExecute = noExecute != 0;
        if (longMode && (s->Cr4 & (Cr4.Pke | Cr4.Pks)) != 0)
            t.KeyRights = KeyRights(s, (int)(entries[depth - 1] >> 59) & 15, t.User);
        uint denied = CheckRights(s, access, t);
        if (denied != 0)
            return denied;
        for (int i = 0; i < depth; i++)
        {
            if (!longMode && i == 0)
                continue; // PDPTEs have no accessed flag
            bool last = i == depth - 1;
            ulong want = PageTableEntry.A | (last && (access & Access.Write) != 0 ? PageTableEntry.D : 0);
            if ((entries[i] & want) != want)
            {
                Memory.NoteWriting(addresses[i]);
                if (Interlocked.CompareExchange(ref *(ulong*)(Memory.HostBase + addresses[i]), entries[i] | want, entries[i]) != entries[i])
                    return Retry;
                entries[i] |= want;
                Memory.NotifyWrite(addresses[i], 8);
            }
        }
        t.Dirty = (entries[depth - 1] & PageTableEntry.D) != 0;
        t.Global = (entries[depth - 1] & PageTableEntry.G) != 0 && (s->Cr4 & Cr4.Pge) != 0;
        return 0;
    }

    private uint Walk32(CpuState* s, uint linear, Access access, out Translation t)
    {
        t = default;
        ulong directory = (s->Cr3 & 0xFFFF_F000) + ((linear >> 22) << 2);
        uint pde = ReadEntry32(directory);
        if ((pde & PageTableEntry.P) == 0)
            return Refused;
        ulong rights = pde;
        ulong leafAddress = directory;
        uint leaf = pde;
        bool large = (pde & PageTableEntry.Ps) != 0 && (s->Cr4 & Cr4.Pse) != 0;
        if (large)
        {
            // PSE-36: bits 13..20 are address bits 32..39; bit 21 is reserved.
            if ((pde & (1u << 21)) != 0 || (((ulong)(pde >> 13) & 0xFF) << 32 & ~physicalMask) != 0)
                return PageFaultError.Present | PageFaultError.Reserved;
            t.PageSize = 1 << 22;
            t.Gpa = (pde & 0xFFC0_0000UL) | ((ulong)((pde >> 13) & 0xFF) << 32) | (linear & 0x3F_FFFF);
        }
        else
        {
            leafAddress = (pde & 0xFFFF_F000UL) + ((linear >> 12 & 1023) << 2);
            leaf = ReadEntry32(leafAddress);
            if ((leaf & PageTableEntry.P) == 0)
                return Refused;
            rights &= leaf;
            t.PageSize = 4096;
            t.Gpa = (leaf & 0xFFFF_F000UL) | (linear & 4095);
        }
        t.User = (rights & PageTableEntry.U) != 0;
        t.Writable = (rights & PageTableEntry.W) != 0;
        uint denied = CheckRights(s, access, t);
        if (denied != 0)
            return denied;
        if (!large && !SetFlags32(directory, pde, (uint)PageTableEntry.A))
            return Retry;
        uint want = (uint)PageTableEntry.A | ((access & Access.Write) != 0 ? (uint)PageTableEntry.D : 0);
        if (!SetFlags32(leafAddress, leaf, want))
            return Retry;
        t.Dirty = ((leaf | want) & PageTableEntry.D) != 0;
        t.Global = (leaf & PageTableEntry.G) != 0 && (s->Cr4 & Cr4.Pge) != 0;
        return 0;
    }

    private bool SetFlags32(ulong address, uint entry, uint want)
    {
        if ((entry & want) == want)
            return true;
        Memory.NoteWriting(address);
        if (Interlocked.CompareExchange(ref *(uint*)(Memory.HostBase + address), entry | want, entry) != entry)
            return false;
        Memory.NotifyWrite(address, 4);
        return true;
    }

    /// <summary>Rights of one protection key (Intel SDM vol. 3 section 5.6.2): user pages have theirs in PKRU, the others in IA32_PKRS.</summary>
    private uint KeyRights(CpuState* s, int key, bool user)
    {
        ulong all = user ? (s->Cr4 & Cr4.Pke) != 0 ? *(uint*)(s->Xsave + CpuState.PkruOffset) : 0
            : (s->Cr4 & Cr4.Pks) != 0 ? registers.Pkrs : 0;
        return (uint)(all >> (key * 2)) & 3;
    }

    private static bool IsWriteDisabledByKey(CpuState* s, in Translation t, bool user) =>
        (t.KeyRights & 2) != 0 && (user || (s->Cr0 & Cr0.Wp) != 0);

    /// <summary>Access rights of a present, well-formed translation (Intel SDM vol. 3 section 5.6): 0, or the page fault's error bits.</summary>
    private static uint CheckRights(CpuState* s, Access access, in Translation t)
    {
        uint error = CheckMode(s, access, t) ? 0 : PageFaultError.Present;
        if (t.KeyRights != 0 && (access & Access.Fetch) == 0
            && ((t.KeyRights & 1) != 0 || ((access & Access.Write) != 0 && IsWriteDisabledByKey(s, t, (access & Access.User) != 0))))
            error = PageFaultError.Present | PageFaultError.ProtectionKey;
        return error;
    }

    private static bool CheckMode(CpuState* s, Access access, in Translation t)
    {
        if ((access & Access.Fetch) != 0)
        {
            if (t.NoExecute)
                return false;
            return (access & Access.User) != 0 ? t.User : !t.User || (s->Cr4 & Cr4.Smep) == 0;
        }
        if ((access & Access.User) != 0)
            return t.User && ((access & Access.Write) == 0 || t.Writable);
        if (t.User && (s->Cr4 & Cr4.Smap) != 0 && ((access & Access.Implicit) != 0 || (s->SystemFlags & RFlags.Ac) == 0))
            return false;
        return (access & Access.Write) == 0 || t.Writable || (s->Cr0 & Cr0.Wp) == 0;
    }

    // A table outside RAM reads as all ones, which is a reserved-bit violation, as on a PC without memory there.
    private ulong ReadEntry(ulong address) => Memory.Contains(address, 8) ? Volatile.Read(ref *(ulong*)(Memory.HostBase + address)) : ulong.MaxValue;

    private uint ReadEntry32(ulong address) => Memory.Contains(address, 4) ? Volatile.Read(ref *(uint*)(Memory.HostBase + address)) : 0;
}
