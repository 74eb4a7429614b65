namespace Aerostat.Guest.Kernel;

/// <summary>What the kernel takes from ACPI: where power-off is, where the I/O APIC is, and how ISA interrupts arrive (ACPI 6.5 chapter 5).</summary>
internal sealed unsafe class AcpiTables
{
    private const uint MostBytes = 1 << 20;
    private const int IsaInterrupts = 16;

    private readonly byte[] isaInputs = new byte[IsaInterrupts];
    private readonly uint[] processorIds = new uint[Aerostat.Guest.Kernel.Processors.Most];

    /// <summary>PM1a_CNT_BLK, or 0.</summary>
    public ushort PowerControlPort { get; private set; }

    /// <summary>SLP_TYP of S5.</summary>
    public byte SoftOffType { get; private set; }

    /// <summary>PM_TMR_BLK, or 0.</summary>
    public ushort TimerPort { get; private set; }

    /// <summary>Physical address of the first I/O APIC, or 0.</summary>
    public ulong IoApic { get; private set; }

    /// <summary>Processors that can be started.</summary>
    public int Processors { get; private set; }

    /// <summary>The highest of their APIC ids.</summary>
    public uint HighestProcessorId { get; private set; }

    /// <summary>Tables with a right checksum that were found.</summary>
    public int Count { get; private set; }

    /// <summary>The I/O APIC's input of an ISA interrupt (interrupt source overrides, section 5.2.12.5).</summary>
    public byte InputOf(int isaInterrupt) => isaInputs[isaInterrupt];

    /// <summary>The APIC id of one of the processors.</summary>
    public uint ProcessorId(int index) => processorIds[index];

    /// <summary>Reads the tables that begin at a root pointer; 0: one is looked for where a BIOS puts it (section 5.2.5.1).</summary>
    public static AcpiTables Read(ulong root)
    {
        AcpiTables tables = new();
        for (int i = 0; i < IsaInterrupts; i++)
            tables.isaInputs[i] = (byte)i;
        if (root == 0)
            root = Search();
        if (root != 0)
            tables.ReadRoot((byte*)root);
        return tables;
    }

    private static ulong Search()
    {
        const ulong Signature = 0x2052_5450_2044_5352; // "RSD PTR "
        for (ulong at = 0xE_0000; at < 0x10_0000; at += 16)
            if (*(ulong*)at == Signature && Sum((byte*)at, 20) == 0)
                return at;
        return 0;
    }

    private static byte Sum(byte* bytes, uint count)
    {
        byte sum = 0;
        for (uint i = 0; i < count; i++)
            sum += bytes[i];
        return sum;
    }

    private void ReadRoot(byte* root)
    {
        bool wide = root[15] >= 2 && *(ulong*)(root + 24) != 0;
        byte* list = wide ? (byte*)*(ulong*)(root + 24) : (byte*)*(uint*)(root + 16);
        if (!IsSound(list))
            return;
        uint entry = wide ? 8u : 4u;
        for (uint at = 36; at + entry <= *(uint*)(list + 4); at += entry)
        {
            byte* table = wide ? (byte*)*(ulong*)(list + at) : (byte*)*(uint*)(list + at);
            if (!IsSound(table))
                continue;
            Count++;
            switch (*(uint*)table)
            {
                case 0x5043_4146: // "FACP"
                    ReadFixed(table);
                    break;
                case 0x4349_5041: // "APIC"
                    ReadInterrupts(table);
                    break;
            }
        }
    }

    private static bool IsSound(byte* table)
    {
        if (table is null)
            return false;
        uint length = *(uint*)(table + 4);
        return length is >= 36 and <= MostBytes && Sum(table, length) == 0;
    }

    // Section 5.2.9.
    private void ReadFixed(byte* table)
    {
        if (*(uint*)(table + 4) < 80)
            return;
        TimerPort = (ushort)*(uint*)(table + 76);
        byte* code = (byte*)*(uint*)(table + 40);
        if (IsSound(code) && FindSoftOff(code))
            PowerControlPort = (ushort)*(uint*)(table + 64);
    }

    // The object \_S5_ is a package whose first element is the type: NameOp, name, PackageOp, length, count, an integer (section 20.2).
    private bool FindSoftOff(byte* code)
    {
        const uint Name = 0x5F35_535F; // "_S5_"
        uint length = *(uint*)(code + 4);
        for (uint at = 36; at + 12 < length; at++)
        {
            if (*(uint*)(code + at) != Name || code[at + 4] != 0x12)
                continue;
            uint value = at + 5 + 1 + (uint)(code[at + 5] >> 6) + 1;
            if (value + 1 >= length)
                return false;
            // ZeroOp and OneOp are their own value; BytePrefix has it after itself.
            SoftOffType = code[value] == 0x0A ? code[value + 1] : code[value];
            return SoftOffType < 8;
        }
        return false;
    }

    // Section 5.2.12.
    private void ReadInterrupts(byte* table)
    {
        uint length = *(uint*)(table + 4);
        for (uint at = 44; at + 2 <= length && table[at + 1] >= 2 && at + table[at + 1] <= length; at += table[at + 1])
        {
            byte* entry = table + at;
            switch (entry[0])
            {
                case 0 when entry[1] >= 8 && (*(uint*)(entry + 4) & 1) != 0:
                    AddProcessor(entry[3]);
                    break;
                case 9 when entry[1] >= 16 && (*(uint*)(entry + 8) & 1) != 0:
                    AddProcessor(*(uint*)(entry + 4));
                    break;
                case 1 when entry[1] >= 12 && IoApic == 0:
                    IoApic = *(uint*)(entry + 4);
                    break;
                case 2 when entry[1] >= 10 && entry[3] < IsaInterrupts:
                    isaInputs[entry[3]] = (byte)*(uint*)(entry + 4);
                    break;
            }
        }
    }

    // As xAPIC (section 5.2.12.2), as x2APIC (5.2.12.12), or as both.
    private void AddProcessor(uint id)
    {
        for (int i = 0; i < Processors; i++)
            if (processorIds[i] == id)
                return;
        if (Processors == processorIds.Length)
            return;
        processorIds[Processors++] = id;
        HighestProcessorId = System.Math.Max(HighestProcessorId, id);
    }
}
