using Aerostat.Platform;

namespace Aerostat.Cpu;

/// <content>
/// Jump tables: from the low 16 bits of an address to code. The supervisor has one for each variant; user code one for each variant and
/// address space (<see cref="TlbSpace"/>). What the supervisor runs from pages that are not global goes when the space changes.
/// </content>
internal sealed unsafe partial class CodeCache
{
    // Each list names what was put into tables since they were emptied: variant * 65536 + index. Past this length all is emptied.
    private const int MostListed = TableEntries;

    // Blocks of a page that are looked at when the page is entered: it may hold many at other addresses.
    private const int MostPublished = 256;

    private readonly nint*[][] tables = new nint*[TlbMemory.SpaceCount][];
    private readonly nint*[] missTables = new nint*[VectorLevel.Count];
    private readonly List<int>[] listed = new List<int>[TlbMemory.SpaceCount];
    private readonly List<int> listedGlobal = [], listedLocal = [];
    private int space;

    private static bool IsUser(int variant) => variant % 3 == Interpreter.UserSet;

    private ref nint* Table(int variant, int inSpace) => ref tables[IsUser(variant) ? inSpace : 0][variant];

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
            ArmTables();
        }
        int index = (int)(b->Linear & (TableEntries - 1));
        FindPad(b);
        nint before = table[index], entry = b->Pad != 0 ? b->Pad : b->CheckedEntry;
        if (before == entry)
            return;
        // One list is enough, unless the entry stood in the list of what lives longer.
        bool user = IsUser(b->Variant);
        if (before == MissThunk(b->Variant) || (!user && !global))
        {
            List<int> list = user ? listed[inSpace] : global ? listedGlobal : listedLocal;
            if (list.Count >= MostListed)
                FlushTables();
            list.Add(b->Variant << 16 | index);
        }
        table[index] = entry;
    }

    /// <summary>Does that for the blocks of the same page and variant, too.</summary>
    public void PublishPage(TranslatedBlock* like, int inSpace, bool global)
    {
        int looked = 0;
        for (TranslatedBlock* b = pages[PageBucket(like->Gpa >> 12)]; b != null && looked < MostPublished; b = b->NextInPage, looked++)
            if (((b->Linear ^ like->Linear) | (b->Gpa ^ like->Gpa)) < 4096 && b->Variant == like->Variant && b->IsValid)
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
        ArmTables();
    }

    private void Empty(List<int> list, int inSpace)
    {
        foreach (int slot in list)
            Table(slot >> 16, inSpace)[slot & (TableEntries - 1)] = MissThunk(slot >> 16);
        list.Clear();
    }

    private void Unpublish(TranslatedBlock* b)
    {
        if ((b->Variant & Ungrouped) != 0)
            return;
        int index = (int)(b->Linear & (TableEntries - 1));
        for (int i = 0; i < (IsUser(b->Variant) ? tables.Length : 1); i++)
        {
            nint* table = tables[i][b->Variant];
            if (table != null && (table[index] == b->CheckedEntry || (table[index] == b->Pad && b->Pad != 0)))
                table[index] = MissThunk(b->Variant);
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
        ArmTables();
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

    private nint MissThunk(int variant) => Thunks.Miss(VectorLevel.Of(variant));

    private static nint* AllocateTable() => (nint*)HostMapping.AllocateLazy(TableEntries * (ulong)sizeof(nint));
}
