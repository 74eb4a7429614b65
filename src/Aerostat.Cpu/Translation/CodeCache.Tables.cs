using System.Numerics;
using System.Runtime.InteropServices;
using System.Runtime.Intrinsics.X86;
using Aerostat.Platform;

namespace Aerostat.Cpu;

/// <content>
/// Jump tables: from 16 bits of an address (<see cref="TableIndex"/>) to code. The supervisor has one for each variant; user code one for each variant and
/// address space (<see cref="TlbSpace"/>). What the supervisor runs from pages that are not global goes when the space changes. One entry serves one address;
/// what finds another's there looks in the second table, which all of them share.
/// </content>
internal sealed unsafe partial class CodeCache
{
    /// <summary>Multiplier of the second table's hash (of 32 bits), number of index bits, and of the shift for the size of an entry.</summary>
    public const int SecondHash = unchecked((int)0x9E37_79B1), SecondBits = 16, SecondEntryShift = 5;
    private const int SecondEntries = 1 << SecondBits;

    // Each list names what was put into tables since they were emptied: variant * 65536 + index, or this + index for the second table.
    // Past this length all is emptied.
    private const int InSecond = 1 << 24, MostListed = 2 * TableEntries;

    // Blocks of a page that are looked at when the page is entered: it may hold many at other addresses.
    private const int MostPublished = 256;

    private readonly nint*[][] tables = new nint*[TlbMemory.SpaceCount][];
    private readonly nint*[] missTables = new nint*[VectorLevel.Count];
    private readonly List<int>[] listed = new List<int>[TlbMemory.SpaceCount];
    private readonly List<int> listedGlobal = [], listedLocal = [];
    private SecondEntry* second;
    private int space;

    // Key 0: empty.
    [StructLayout(LayoutKind.Sequential, Size = 1 << SecondEntryShift)]
    private struct SecondEntry
    {
        public ulong Linear, Key;
        public nint Entry;
    }

    private static bool IsUser(int variant) => variant % 3 == Interpreter.UserSet;

    private ref nint* Table(int variant, int inSpace) => ref tables[IsUser(variant) ? inSpace : 0][variant];

    /// <summary>
    /// Place of an address in a jump table. Its low bits alone would not do: functions begin at multiples of 16, and so would share 4096 places.
    /// Generated code computes the same without touching flags, which takes RORX.
    /// </summary>
    public static int TableIndex(ulong linear) => (int)(Bmi2.IsSupported ? (uint)linear + BitOperations.RotateRight((uint)linear, TableFold) : (uint)linear) & (TableEntries - 1);

    private const int TableFold = 12;

    /// <summary>R11 = the place of the address in R10; flags pass.</summary>
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

    private SecondEntry* SecondSlot(ulong linear, ulong key) => second + ((uint)(linear + key) * unchecked((uint)SecondHash) >> (32 - SecondBits));

    /// <summary>Lets indirect and cross-page jumps find a block.</summary>
    /// <param name="b">The block.</param>
    /// <param name="inSpace">Address space in force.</param>
    /// <param name="global">Its page is in every address space.</param>
    public void Publish(TranslatedBlock* b, int inSpace, bool global)
    {
        ref nint* table = ref Table(b->Variant, inSpace);
        if (table == null)
        {
            table = AllocateTable();
            new Span<nint>(table, TableEntries).Fill(MissThunk(b->Variant));
            ArmTablesUnasked();
        }
        bool user = IsUser(b->Variant);
        List<int> list = user ? listed[inSpace] : global ? listedGlobal : listedLocal;
        if (list.Count >= MostListed)
            FlushTables();
        int index = TableIndex(b->Linear);
        FindPad(b);
        nint before = table[index], entry = b->Pad != 0 ? b->Pad : b->CheckedEntry;
        if (before == entry)
            return;
        // One list is enough, unless the entry stood in the list of what lives longer.
        bool free = before == MissThunk(b->Variant);
        if (free || (!user && !global))
            list.Add(b->Variant << 16 | index);
        table[index] = entry;
        if (free)
            return;
        // Whom it supplants will come this way once more, and supplant it.
        ulong key = Key(b->Variant, inSpace);
        SecondEntry* e = SecondSlot(b->Linear, key);
        if (e->Key != key || (!user && !global))
            list.Add(InSecond + (int)(e - second));
        *e = new SecondEntry { Linear = b->Linear, Key = key, Entry = b->Entry };
    }

    /// <summary>Does that for the blocks of the same page and variant, too.</summary>
    public void PublishPage(TranslatedBlock* like, int inSpace, bool global)
    {
        int looked = 0;
        for (TranslatedBlock* b = pages[PageBucket(like->Gpa >> 12)]; b != null && looked < MostPublished; b = b->NextInPage, looked++)
            if (((b->Linear ^ like->Linear) | (b->Gpa ^ like->Gpa)) < 4096 && b->Variant == like->Variant && b->Second == TranslatedBlock.OnePage && b->IsValid)
                Publish(b, inSpace, global);
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
                Table(slot >> 16, inSpace)[slot & (TableEntries - 1)] = MissThunk(slot >> 16);
        }
        list.Clear();
    }

    private void Unpublish(TranslatedBlock* b)
    {
        if ((b->Variant & Ungrouped) != 0)
            return;
        int index = TableIndex(b->Linear);
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
                    HostMapping.Unmap((byte*)table, TableEntries * (ulong)sizeof(nint));
        foreach (nint* table in missTables)
            HostMapping.Unmap((byte*)table, TableEntries * (ulong)sizeof(nint));
    }

    /// <summary>What the table in force has for an address: code that compares R10 with its own; 0: nothing, or a request has exchanged the table.</summary>
    public nint Target(int variant, ulong linear)
    {
        nint entry = ((nint*)Volatile.Read(ref state->JumpTable[variant]))[TableIndex(linear)];
        return entry == MissThunk(variant) ? 0 : entry;
    }

    private nint MissThunk(int variant) => Thunks.Miss(VectorLevel.Of(variant));

    private static nint* AllocateTable() => (nint*)HostMapping.AllocateLazy(TableEntries * (ulong)sizeof(nint));
}
