namespace Aerostat.Guest.Kernel;

/// <summary>
/// What the loader says, by multiboot 1 (specification 0.6.96, section 3.3) or PVH (Xen's arch-x86/hvm/start_info.h): usable memory, the command line and
/// ACPI's root pointer. Nothing is allocated, for there is no heap yet; ranges beyond <see cref="MostRanges"/> are left out.
/// </summary>
internal static unsafe class BootInformation
{
    public const int MostRanges = 32;

    private const uint MultibootMagic = 0x2BAD_B002;
    private const uint PvhMagic = 0x336E_C578;
    private const uint UsableMemory = 1;

    private static Ranges ranges;
    private static byte* commandLine;
    private static bool byMultiboot;
    private static ulong reserved;

    private struct Ranges
    {
        public fixed ulong Start[MostRanges];
        public fixed ulong End[MostRanges];
    }

    /// <summary>"multiboot" or "PVH".</summary>
    public static string Loader => byMultiboot ? "multiboot" : "PVH";

    /// <summary>Usable stretches of memory, in whole pages.</summary>
    public static int RangeCount { get; private set; }

    /// <summary>ACPI's root pointer, or 0 when it has to be looked for.</summary>
    public static ulong AcpiRoot { get; private set; }

    /// <summary>Address after the image, what the loader passed, and pages taken with <see cref="TakePage"/>.</summary>
    public static ulong Reserved => reserved;

    public static ulong RangeStart(int index) => ranges.Start[index];

    public static ulong RangeEnd(int index) => ranges.End[index];

    /// <summary>Whether a page is memory that is neither the loader's command line nor the firmware's.</summary>
    public static bool IsUsable(ulong page)
    {
        ulong line = commandLine is null ? 0 : (ulong)commandLine, lineEnd = line + (commandLine is null ? 0 : LengthOf(commandLine));
        for (int i = 0; i < RangeCount; i++)
            if (page >= ranges.Start[i] && page + PageAllocator.PageSize <= ranges.End[i])
                return lineEnd <= page || line >= page + PageAllocator.PageSize;
        return false;
    }

    /// <summary>Reads what the registers at entry point to; false: by neither protocol.</summary>
    public static bool Read(uint magic, byte* information)
    {
        reserved = (Processor.ImageEnd + 0xFFF) & ~0xFFFUL;
        if (magic == MultibootMagic)
        {
            byMultiboot = true;
            ReadMultiboot(information);
            return true;
        }
        if (*(uint*)information != PvhMagic)
            return false;
        ReadPvh(information);
        return true;
    }

    /// <summary>True if the command line has the word; of "name=value", <paramref name="value"/> is the number, decimal or with 0x.</summary>
    public static bool HasOption(string name, out ulong value)
    {
        value = 0;
        byte* at = commandLine;
        if (at is null)
            return false;
        while (*at != 0)
        {
            while (*at == ' ')
                at++;
            int i = 0;
            while (i < name.Length && at[i] == name[i])
                i++;
            if (i == name.Length && at[i] is 0 or (byte)' ' or (byte)'=')
            {
                if (at[i] == '=')
                    value = Number(at + i + 1);
                return true;
            }
            while (*at is not (0 or (byte)' '))
                at++;
        }
        return false;
    }

    /// <summary>A page behind the image, before there is an allocator; 0 when the memory there ends.</summary>
    public static ulong TakePage()
    {
        for (int i = 0; i < RangeCount; i++)
            if (reserved >= ranges.Start[i] && reserved < ranges.End[i])
            {
                reserved += PageAllocator.PageSize;
                return reserved - PageAllocator.PageSize;
            }
        return 0;
    }

    // What the loader passed stays: it may be right behind the image.
    private static void Reserve(ulong address, ulong bytes)
    {
        const ulong Near = 1 << 20;
        ulong end = (address + bytes + 0xFFF) & ~0xFFFUL;
        if (address >= Processor.ImageStart && end > reserved && end < Processor.ImageEnd + Near)
            reserved = end;
    }

    private static ulong LengthOf(byte* text)
    {
        ulong length = 0;
        while (text[length] != 0)
            length++;
        return length + 1;
    }

    private static ulong Number(byte* text)
    {
        uint radix = 10;
        if (text[0] == '0' && text[1] == 'x')
        {
            radix = 16;
            text += 2;
        }
        for (ulong value = 0; ; text++)
        {
            uint digit = *text is >= (byte)'0' and <= (byte)'9' ? *text - (uint)'0' : *text is >= (byte)'a' and <= (byte)'f' ? *text - (uint)'a' + 10 : 99;
            if (digit >= radix)
                return value;
            value = (value * radix) + digit;
        }
    }

    private static void ReadMultiboot(byte* information)
    {
        uint flags = *(uint*)information;
        if ((flags & (1 << 2)) != 0)
        {
            commandLine = (byte*)*(uint*)(information + 16);
            Reserve((ulong)commandLine, LengthOf(commandLine));
        }
        if ((flags & (1 << 6)) == 0)
        {
            if ((flags & 1) != 0)
                Add(0x10_0000, (ulong)*(uint*)(information + 8) << 10);
            return;
        }
        byte* entry = (byte*)*(uint*)(information + 48), end = entry + *(uint*)(information + 44);
        for (; entry + 24 <= end; entry += *(uint*)entry + 4)
            if (*(uint*)(entry + 20) == UsableMemory)
                Add(*(ulong*)(entry + 4), *(ulong*)(entry + 12));
    }

    private static void ReadPvh(byte* information)
    {
        commandLine = (byte*)*(ulong*)(information + 24);
        if (commandLine is not null)
            Reserve((ulong)commandLine, LengthOf(commandLine));
        AcpiRoot = *(ulong*)(information + 32);
        if (*(uint*)(information + 4) < 1)
            return;
        byte* entry = (byte*)*(ulong*)(information + 40);
        for (uint i = 0; i < *(uint*)(information + 48); i++, entry += 24)
            if (*(uint*)(entry + 16) == UsableMemory)
                Add(*(ulong*)entry, *(ulong*)(entry + 8));
    }

    private static void Add(ulong start, ulong size)
    {
        ulong end = (start + size) & ~0xFFFUL;
        start = (start + 0xFFF) & ~0xFFFUL;
        if (RangeCount == MostRanges || start >= end)
            return;
        ranges.Start[RangeCount] = start;
        ranges.End[RangeCount++] = end;
    }
}
