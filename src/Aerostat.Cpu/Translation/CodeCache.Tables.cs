using System.Numerics;
using System.Runtime.InteropServices;
using System.Runtime.Intrinsics.X86;
using Aerostat.Platform;

namespace Aerostat.Cpu;

/// <content>
/// Jump tables: from 16 bits of an address (<see cref="TableIndex"/>) to code. The supervisor has one for each variant; user code one for each variant and
/// address space (<see cref="TlbSpace"/>). What the supervisor runs from pages that are not global goes when the space changes. One entry serves one address;
/// what finds another's there looks in the second table, which all of them share. Behind these entries each table has <em>places</em>: each belongs to one address
/// that jumps lead to which know it beforehand, so what they find there is not asked whether it is the right one.
/// </content>
internal sealed unsafe partial class CodeCache
{
    /// <summary>Multiplier of the second table's hash (of 32 bits), number of index bits, and of the shift for the size of an entry.</summary>
    public const int SecondHash = unchecked((int)0x9E37_79B1), SecondBits = 16, SecondEntryShift = 5;
    private const int SecondEntries = 1 << SecondBits;

    /// <summary>Places are numbered from 1 on, those of all variants together, more than large programs need. Further addresses have to do without.</summary>
    public const int MaxPlaces = 1 << 17;
    // So that a guest that chooses addresses by their hash gains nothing, further ones of a hash do without, too.
    private const int PlaceBits = 14, MostOfHash = 64;
    // Behind the places that have been given out it takes no memory.
    private const ulong TableBytes = (TableEntries + MaxPlaces) * 8UL;

    // Each list names what was put into tables since they were emptied: variant and index, or this + index for the second table.
    // Past this length all is emptied.
    private const int IndexBits = 18, InSecond = 1 << 24, MostListed = 4 * TableEntries;

    // Blocks of a page that are looked at when the page is entered: it may hold many at other addresses.
    private const int MostPublished = 256;

    private readonly nint*[][] tables = new nint*[TlbMemory.SpaceCount][];
    private readonly nint*[] missTables = new nint*[VectorLevel.Count];
    private readonly List<int>[] listed = new List<int>[TlbMemory.SpaceCount];
    private readonly List<int> listedGlobal = [], listedLocal = [];
    private readonly Place* places;
    private readonly int* placesByHash;
    private SecondEntry* second;
    private int space, placeCount;

    // Key 0: empty.
    [StructLayout(LayoutKind.Sequential, Size = 1 << SecondEntryShift)]
    private struct SecondEntry
    {
        public ulong Linear, Key;
        public nint Entry;
    }

    private struct Place
    {
        public ulong Linear;
        public int Variant, NextByHash;
    }

    private static bool IsUser(int variant) => variant % 3 == Interpreter.UserSet;

    private ref nint* Table(int variant, int inSpace) => ref tables[IsUser(variant) ? inSpace : 0][variant];

    /// <summary>
    /// Where an address' entry in a jump table is. Its low bits alone would not do: functions begin at multiples of 16, and so would share 4096 entries.
    /// Generated code computes the same without touching flags, which takes RORX.
    /// </summary>
    public static int TableIndex(ulong linear) => (int)(Bmi2.IsSupported ? (uint)linear + BitOperations.RotateRight((uint)linear, TableFold) : (uint)linear) & (TableEntries - 1);

    private const int TableFold = 12;

    /// <summary>R11 = where the entry of the address in R10 is; flags pass.</summary>
    public static void EmitTableIndex(HostAssembler a)
    {
        if (Bmi2.IsSupported)
        {
            a.RotateRight(Host.R11, Host.R10, TableFold);
            a.Lea(Host.R11, Host.R11, Host.R10, 0, 0, wide: false);
        }
        a.RR(0x0FB7, Host.R11, Bmi2.IsSupported ? Host.R11 : Host.R10, wide: false);
    }

    // Tells variants and address spaces apart, and is never 0.
    private static ulong Key(int variant, int inSpace) => (ulong)(1 + variant + (IsUser(variant) ? inSpace * Variants : 0)) << 20;

    /// <summary>Where in the tables of a variant a jump to a constant address looks.</summary>
    public int AddPlace(ulong linear, int variant)
    {
        int place = PlaceOf(linear, variant);
        if (place != 0)
            return place;
        int ofHash = 0;
        for (int i = placesByHash[PlaceBucket(linear)]; i != 0; i = places[i].NextByHash)
            ofHash++;
        if (placeCount == MaxPlaces || ofHash == MostOfHash)
            return TableIndex(linear);
        ref int first = ref placesByHash[PlaceBucket(linear)];
        places[placeCount] = new Place { Linear = linear, Variant = variant, NextByHash = first };
        first = placeCount;
        place = TableEntries + placeCount++;
        missTables[VectorLevel.Of(variant)][place] = MissThunk(variant);
        for (int i = 0; i < (IsUser(variant) ? tables.Length : 1); i++)
            if (tables[i][variant] != null)
                tables[i][variant][place] = MissThunk(variant);
        return place;
    }

    // 0: it has none.
    private int PlaceOf(ulong linear, int variant)
    {
        for (int i = placesByHash[PlaceBucket(linear)]; i != 0; i = places[i].NextByHash)
            if (places[i].Linear == linear && places[i].Variant == variant)
                return TableEntries + i;
        return 0;
    }

    private static int PlaceBucket(ulong linear) => (int)((uint)((linear >> 32) ^ linear) * unchecked((uint)SecondHash) >> (32 - PlaceBits));

    private void ForgetPlaces()
    {
        new Span<int>(placesByHash, 1 << PlaceBits).Clear();
        placeCount = 1;
    }

    private SecondEntry* SecondSlot(ulong linear, ulong key) => second + ((uint)(linear + key) * unchecked((uint)SecondHash) >> (32 - SecondBits));

    /// <summary>
    /// Lets jumps find a block that one has just looked for in vain: by its place, or, if it can be found there, by its address' sum, by which it is known from then on.
    /// </summary>
    /// <param name="b">The block.</param>
    /// <param name="inSpace">Address space in force.</param>
    /// <param name="global">Its page is in every address space.</param>
    public void Publish(TranslatedBlock* b, int inSpace, bool global)
    {
        if (!PutInPlace(b, inSpace, global))
            b->KnownBySum = true;
        if (b->KnownBySum)
            PutBySum(b, inSpace, global);
    }

    /// <summary>Does that for blocks of the same page and variant as another, each in the ways by which it was found before.</summary>
    public void PublishPage(TranslatedBlock* like, int inSpace, bool global)
    {
        int looked = 0;
        for (TranslatedBlock* b = pages[PageBucket(like->Gpa >> 12)]; b != null && looked < MostPublished; b = b->NextInPage, looked++)
        {
            if (((b->Linear ^ like->Linear) | (b->Gpa ^ like->Gpa)) >= 4096 || b->Variant != like->Variant || b->Second != TranslatedBlock.OnePage || !b->IsValid)
                continue;
            PutInPlace(b, inSpace, global);
            if (b->KnownBySum)
                PutBySum(b, inSpace, global);
        }
    }

    // Whether it has a place and was not there.
    private bool PutInPlace(TranslatedBlock* b, int inSpace, bool global)
    {
        int place = PlaceOf(b->Linear, b->Variant);
        if (place == 0)
            return false;
        nint* table = WritableTable(b->Variant, inSpace);
        if (table[place] == b->Entry)
            return false;
        Put(table, place, b->Entry, b->Variant, ListFor(b->Variant, inSpace, global));
        return true;
    }

    private void PutBySum(TranslatedBlock* b, int inSpace, bool global)
    {
        nint* table = WritableTable(b->Variant, inSpace);
        FindPad(b);
        int index = TableIndex(b->Linear);
        nint entry = b->Pad != 0 ? b->Pad : CheckedEntry(b);
        if (entry == 0)
            return;
        List<int> list = ListFor(b->Variant, inSpace, global);
        if (table[index] == entry || Put(table, index, entry, b->Variant, list))
            return;
        // Whom it supplants will come this way once more, and supplant it.
        ulong key = Key(b->Variant, inSpace);
        SecondEntry* e = SecondSlot(b->Linear, key);
        if (e->Key != key || list == listedLocal)
            list.Add(InSecond + (int)(e - second));
        *e = new SecondEntry { Linear = b->Linear, Key = key, Entry = b->Entry };
    }

    /// <summary>
    /// Goes on if R10 is the address expected here. Keeps the flags whether or not this code needs them: whoever comes here by mistake, because
    /// its target shares the sum of the address, may need them where it is sent on to.
    /// </summary>
    public void EmitEntryCheck(HostAssembler a, ulong address, int variant)
    {
        a.Move(Host.R11, Host.Rcx);
        if ((long)address == (int)address && (int)address != int.MinValue)
        {
            a.Lea(Host.Rcx, Host.R10, Host.None, 0, -(int)address);
        }
        else
        {
            a.Constant(Host.Rcx, 0 - address);
            a.Lea(Host.Rcx, Host.Rcx, Host.R10, 0, 0);
        }
        // jrcxz over the way out
        a.Byte(0xE3);
        a.Byte(3 + 5);
        a.Move(Host.Rcx, Host.R11);
        a.Jmp(Thunks.Mismatch(variant));
        a.Move(Host.Rcx, Host.R11);
    }

    // Most blocks are never looked for by their address' sum, so they begin without a check. 0: there is no room.
    private nint CheckedEntry(TranslatedBlock* b)
    {
        if (b->CheckedEntry == 0 && HasRoomForStub)
        {
            BeginCode(stubs);
            b->CheckedEntry = stubs.Here;
            EmitEntryCheck(stubs, b->Linear, b->Variant);
            stubs.Jmp(b->Entry);
            EndCode(stubs);
        }
        return b->CheckedEntry;
    }

    private nint* WritableTable(int variant, int inSpace)
    {
        ref nint* table = ref Table(variant, inSpace);
        if (table == null)
        {
            table = AllocateTable();
            new Span<nint>(table, TableEntries + placeCount).Fill(MissThunk(variant));
            ArmTablesUnasked();
        }
        return table;
    }

    private List<int> ListFor(int variant, int inSpace, bool global)
    {
        List<int> list = IsUser(variant) ? listed[inSpace] : global ? listedGlobal : listedLocal;
        if (list.Count >= MostListed)
            FlushTables();
        return list;
    }

    // Whether nothing was there.
    private bool Put(nint* table, int index, nint entry, int variant, List<int> list)
    {
        // One list is enough, unless the entry stood in the list of what lives longer.
        bool free = table[index] == MissThunk(variant);
        if (free || list == listedLocal)
            list.Add(variant << IndexBits | index);
        table[index] = entry;
        return free;
    }

    /// <summary>Forgets which linear address leads where.</summary>
    public void FlushTables()
    {
        for (int i = 0; i < listed.Length; i++)
            FlushSpace(i);
        Empty(listedGlobal, 0);
        FlushLocal();
    }

    /// <summary>Forgets this for user code of one address space.</summary>
    public void FlushSpace(int which) => Empty(listed[which], which);

    /// <summary>Forgets this for the supervisor's code on pages that are not global.</summary>
    public void FlushLocal() => Empty(listedLocal, 0);

    /// <summary>Another address space comes into force.</summary>
    public void SelectSpace(int which)
    {
        FlushLocal();
        space = which;
        SetKeys();
        ArmTablesUnasked();
    }

    private void Empty(List<int> list, int inSpace)
    {
        foreach (int slot in list)
        {
            if (slot >= InSecond)
                second[slot - InSecond] = default;
            else
                Table(slot >> IndexBits, inSpace)[slot & ((1 << IndexBits) - 1)] = MissThunk(slot >> IndexBits);
        }
        list.Clear();
    }

    private void Unpublish(TranslatedBlock* b)
    {
        if ((b->Variant & Ungrouped) != 0)
            return;
        int index = TableIndex(b->Linear);
        ChangePlace(b, MissThunk(b->Variant));
        for (int i = 0; i < (IsUser(b->Variant) ? tables.Length : 1); i++)
        {
            nint* table = tables[i][b->Variant];
            if (table != null && (table[index] == b->CheckedEntry || (table[index] == b->Pad && b->Pad != 0)))
                table[index] = MissThunk(b->Variant);
            SecondEntry* e = SecondSlot(b->Linear, Key(b->Variant, i));
            if (e->Entry == b->Entry)
                *e = default;
        }
    }

    // Where jumps go on that have found a block by its place.
    private void ChangePlace(TranslatedBlock* b, nint entry)
    {
        int place = PlaceOf(b->Linear, b->Variant);
        if (place == 0)
            return;
        for (int i = 0; i < (IsUser(b->Variant) ? tables.Length : 1); i++)
            if (tables[i][b->Variant] != null && tables[i][b->Variant][place] == b->Entry)
                tables[i][b->Variant][place] = entry;
    }

    /// <summary>Sends every table jump to the dispatcher until <see cref="ArmTables"/>; any thread.</summary>
    public void DisarmTables()
    {
        for (int i = 0; i < Variants; i++)
            Volatile.Write(ref state->JumpTable[i], (ulong)missTables[VectorLevel.Of(i)]);
    }

    public void ArmTables()
    {
        for (int i = 0; i < Variants; i++)
        {
            nint* table = Table(i, space);
            Volatile.Write(ref state->JumpTable[i], (ulong)(table != null ? table : missTables[VectorLevel.Of(i)]));
        }
    }

    /// <summary>
    /// As <see cref="ArmTables"/>, where nobody looks at the requests afterwards: one that has come in meanwhile, and has exchanged the tables, must not find them
    /// exchanged back. Its bit is set before, so it is seen here, and told by <see cref="CpuState.Poll"/>, which has to be looked at before code is entered.
    /// </summary>
    private void ArmTablesUnasked()
    {
        ArmTables();
        Interlocked.MemoryBarrier();
        if (Volatile.Read(ref state->Request) != 0)
            Volatile.Write(ref state->Poll, 1);
    }

    private void MakeMissTables()
    {
        for (int i = 0; i < tables.Length; i++)
        {
            tables[i] = new nint*[Variants];
            listed[i] = [];
        }
        for (int i = 0; i < missTables.Length; i++)
        {
            missTables[i] = AllocateTable();
            new Span<nint>(missTables[i], TableEntries).Fill(Thunks.Miss(i));
        }
        SetKeys();
        ArmTables();
    }

    private void SetKeys()
    {
        for (int i = 0; i < Variants; i++)
            state->TableKey[i] = Key(i, space);
    }

    private void FreeTables()
    {
        foreach (nint*[] ofSpace in tables)
            foreach (nint* table in ofSpace)
                if (table != null)
                    HostMapping.Unmap((byte*)table, TableBytes);
        foreach (nint* table in missTables)
            HostMapping.Unmap((byte*)table, TableBytes);
        HostMapping.Unmap((byte*)places, MaxPlaces * (ulong)sizeof(Place));
        HostMapping.Unmap((byte*)placesByHash, (1 << PlaceBits) * sizeof(int));
    }

    /// <summary>What the table in force has for an address: code that compares R10 with its own; 0: nothing, or a request has exchanged the table.</summary>
    public nint Target(int variant, ulong linear)
    {
        nint entry = ((nint*)Volatile.Read(ref state->JumpTable[variant]))[TableIndex(linear)];
        return entry == MissThunk(variant) ? 0 : entry;
    }

    private nint MissThunk(int variant) => Thunks.Miss(VectorLevel.Of(variant));

    private static nint* AllocateTable() => (nint*)HostMapping.AllocateLazy(TableBytes);
}
