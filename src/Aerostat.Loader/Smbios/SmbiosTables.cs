using System.Buffers.Binary;
using Aerostat.Memory;

namespace Aerostat.Loader;

/// <summary>
/// Writes the SMBIOS tables (DMTF DSP0134, SMBIOS 3.6): the 64-bit entry point at 0xF0000, the 32-bit one at 0xF0020 for readers that
/// know only that, and structures of types 0, 1, 2, 3, 4, 11, 16, 17, 19, 32 and 127 from 0xF0040 on.
/// </summary>
public static class SmbiosTables
{
    private const ulong EntryPoint64 = E820Map.SmbiosAreaStart, EntryPoint32 = EntryPoint64 + 0x20, Structures = EntryPoint64 + 0x40;
    private const byte Unknown = 2, Other = 1;
    private const int LargestSizeField = 0x7FFF;
    private const ulong LargestShortRange = 0xFFFFFFFF;

    // Handles: type in the high byte, index in the low one.
    private const ushort ChassisHandle = 0x300, ArrayHandle = 0x1000;

    /// <summary>Writes both entry points and all structures.</summary>
    /// <returns>Address of the 64-bit entry point.</returns>
    /// <exception cref="BootException">The structures do not fit in the BIOS area.</exception>
    public static ulong Write(GuestMemory memory, SmbiosOptions options)
    {
        ArgumentNullException.ThrowIfNull(memory);
        ArgumentNullException.ThrowIfNull(options);
        ArgumentOutOfRangeException.ThrowIfLessThan(options.Processors, 1, nameof(options));
        ArgumentOutOfRangeException.ThrowIfLessThan(options.Sockets, 1, nameof(options));
        List<byte[]> all = [Firmware(options), System(options), Board(options), Chassis(options)];
        for (int i = 0; i < options.Sockets; i++)
            all.Add(Processor(options, i));
        if (options.OemStrings.Count > 0)
            all.Add(Oem(options));
        all.Add(MemoryArray(options));
        all.Add(MemoryDevice(options));
        for (int i = 0; i < memory.Regions.Count && !memory.Regions[i].IsSpare; i++)
            all.Add(MappedAddress(memory.Regions[i], i));
        all.Add(new SmbiosStructure(32, 0x2000).Raw([0, 0, 0, 0, 0, 0, 0]).Finish()); // boot status: no errors
        all.Add(new SmbiosStructure(127, 0x7F00).Finish());

        int largest = 0, length = 0;
        foreach (byte[] structure in all)
        {
            largest = Math.Max(largest, structure.Length);
            length += structure.Length;
        }
        byte[] table = new byte[length];
        int at = 0;
        foreach (byte[] structure in all)
        {
            structure.CopyTo(table, at);
            at += structure.Length;
        }
        if ((ulong)table.Length > E820Map.BiosAreaEnd - Structures)
            throw new BootException($"SMBIOS structures do not fit in the BIOS area ({table.Length} bytes); use fewer sockets or OEM strings");
        memory.Write(new(Structures), table);
        memory.Write(new(EntryPoint64), Entry64(table.Length));
        memory.Write(new(EntryPoint32), Entry32(table.Length, all.Count, largest));
        return EntryPoint64;
    }

    // Section 5.2.2.
    private static byte[] Entry64(int length)
    {
        byte[] p = new byte[24];
        "_SM3_"u8.CopyTo(p);
        p[6] = 24;
        p[7] = 3;
        p[8] = 6;
        p[10] = 1; // entry point revision
        BinaryPrimitives.WriteUInt32LittleEndian(p.AsSpan(12), (uint)length);
        BinaryPrimitives.WriteUInt64LittleEndian(p.AsSpan(16), Structures);
        p[5] = AcpiTable.Checksum(p);
        return p;
    }

    // Section 5.2.1. The version is 2.8, the last of the line this entry point belongs to.
    private static byte[] Entry32(int length, int count, int largest)
    {
        byte[] p = new byte[31];
        "_SM_"u8.CopyTo(p);
        p[5] = 31;
        p[6] = 2;
        p[7] = 8;
        BinaryPrimitives.WriteUInt16LittleEndian(p.AsSpan(8), (ushort)largest);
        "_DMI_"u8.CopyTo(p.AsSpan(16));
        BinaryPrimitives.WriteUInt16LittleEndian(p.AsSpan(22), (ushort)length);
        BinaryPrimitives.WriteUInt32LittleEndian(p.AsSpan(24), (uint)Structures);
        BinaryPrimitives.WriteUInt16LittleEndian(p.AsSpan(28), (ushort)count);
        p[30] = 0x28;
        p[21] = AcpiTable.Checksum(p.AsSpan(16, 15));
        p[4] = AcpiTable.Checksum(p);
        return p;
    }

    // Section 7.1. Characteristics: not supported; extension byte 2 bit 4: the table describes a virtual machine.
    private static byte[] Firmware(SmbiosOptions o) => new SmbiosStructure(0, 0x0000)
        .Text(o.BiosVendor).Text(o.BiosVersion).Word((ushort)(E820Map.BiosAreaStart >> 4)).Text(o.BiosDate).Byte(1)
        .Qword(1 << 3).Byte(0).Byte(1 << 4)
        .Byte(1).Byte(0).Byte(0xFF).Byte(0xFF).Word(0).Finish();

    // Section 7.2; the UUID's first three fields are little-endian. Wake-up: power switch.
    private static byte[] System(SmbiosOptions o) => new SmbiosStructure(1, 0x0100)
        .Text(o.Manufacturer).Text(o.Product).Text(o.Version).Text(o.Serial)
        .Raw(o.Uuid.ToByteArray()).Byte(6).Text("").Text(o.Family).Finish();

    // Section 7.3: a hosting motherboard.
    private static byte[] Board(SmbiosOptions o) => new SmbiosStructure(2, 0x0200)
        .Text(o.Manufacturer).Text(o.Product).Text(o.Version).Text(o.Serial).Text("")
        .Byte(1).Text("").Word(ChassisHandle).Byte(0x0A).Byte(0).Finish();

    // Section 7.4: type "other", states safe, no contained elements.
    private static byte[] Chassis(SmbiosOptions o) => new SmbiosStructure(3, ChassisHandle)
        .Text(o.ChassisManufacturer.Length == 0 ? o.Manufacturer : o.ChassisManufacturer).Byte(Other).Text(o.Version).Text(o.Serial).Text("")
        .Byte(3).Byte(3).Byte(3).Byte(Unknown).Dword(0).Byte(0).Byte(0).Byte(0).Byte(0).Text("").Finish();

    // Section 7.5: central processor, enabled; counts above 255 are in the second fields.
    private static byte[] Processor(SmbiosOptions o, int socket)
    {
        int cores = Math.Max(1, o.Processors / o.Sockets);
        byte few = (byte)Math.Min(cores, 0xFF);
        return new SmbiosStructure(4, (ushort)(0x0400 + socket))
            .Text($"CPU {socket}").Byte(3).Byte(Other).Text(o.ProcessorManufacturer).Qword(0).Text(o.ProcessorVersion)
            .Byte(0).Word(0).Word(0).Word(0).Byte(0x41).Byte(Other)
            .Word(0xFFFF).Word(0xFFFF).Word(0xFFFF).Text("").Text("").Text("")
            .Byte(few).Byte(few).Byte(few).Word(1 << 2).Word(Other)
            .Word((ushort)cores).Word((ushort)cores).Word((ushort)cores).Finish();
    }

    // Section 7.12.
    private static byte[] Oem(SmbiosOptions o)
    {
        SmbiosStructure s = new SmbiosStructure(11, 0x0B00).Byte((byte)Math.Min(o.OemStrings.Count, 255));
        foreach (string text in o.OemStrings.Take(255))
            s.TextOnly(text);
        return s.Finish();
    }

    // Section 7.17: system memory on the board, multi-bit ECC.
    private static byte[] MemoryArray(SmbiosOptions o) => new SmbiosStructure(16, ArrayHandle)
        .Byte(3).Byte(3).Byte(6).Dword(0x80000000).Word(0xFFFE).Word(1).Qword(o.MemoryBytes).Finish();

    // Section 7.18: one module with all of the memory.
    private static byte[] MemoryDevice(SmbiosOptions o)
    {
        ulong megabytes = (o.MemoryBytes + (1 << 20) - 1) >> 20;
        bool small = megabytes < LargestSizeField;
        return new SmbiosStructure(17, 0x1100)
            .Word(ArrayHandle).Word(0xFFFE).Word(0xFFFF).Word(0xFFFF)
            .Word(small ? (ushort)megabytes : (ushort)LargestSizeField).Byte(9).Byte(0).Text("DIMM 0").Text("")
            .Byte(7).Word(1 << 1).Word(0).Text(o.Manufacturer).Text("").Text("").Text("").Byte(0)
            .Dword(small ? 0 : (uint)Math.Min(megabytes, 0x7FFFFFFF)).Word(0).Word(0).Word(0).Word(0).Finish();
    }

    // Section 7.20: kibibytes while they fit in 32 bits, else bytes in the extended fields.
    private static byte[] MappedAddress(MemoryRegion region, int index)
    {
        ulong first = region.Base.Value, last = region.End - 1;
        bool isShort = last >> 10 < LargestShortRange;
        return new SmbiosStructure(19, (ushort)(0x1300 + index))
            .Dword(isShort ? (uint)(first >> 10) : 0xFFFFFFFF).Dword(isShort ? (uint)(last >> 10) : 0xFFFFFFFF)
            .Word(ArrayHandle).Byte(1).Qword(isShort ? 0 : first).Qword(isShort ? 0 : last).Finish();
    }
}
