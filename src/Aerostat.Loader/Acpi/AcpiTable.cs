using System.Buffers.Binary;
using System.Text;

namespace Aerostat.Loader;

/// <summary>One system description table in the making: header (ACPI 6.5 section 5.2.6), then fields in order.</summary>
internal sealed class AcpiTable
{
    private readonly List<byte> bytes = [];

    public AcpiTable(string signature, byte revision)
    {
        Ascii(signature, 4).Dword(0).Byte(revision).Byte(0).Ascii("AEROST", 6).Ascii("AEROSTAT", 8).Dword(1).Ascii("AERO", 4).Dword(1);
    }

    public AcpiTable Byte(byte value)
    {
        bytes.Add(value);
        return this;
    }

    public AcpiTable Word(ushort value) => Byte((byte)value).Byte((byte)(value >> 8));

    public AcpiTable Dword(uint value) => Word((ushort)value).Word((ushort)(value >> 16));

    public AcpiTable Qword(ulong value) => Dword((uint)value).Dword((uint)(value >> 32));

    public AcpiTable Zeros(int count)
    {
        bytes.AddRange(new byte[count]);
        return this;
    }

    public AcpiTable Raw(ReadOnlySpan<byte> content)
    {
        bytes.AddRange(content);
        return this;
    }

    public AcpiTable Ascii(string text, int width) => Raw(Encoding.ASCII.GetBytes(text.PadRight(width)));

    /// <summary>Generic address structure (section 5.2.3.2); an address of 0 leaves it empty.</summary>
    public AcpiTable Address(byte space, byte bits, byte access, ulong address) =>
        address == 0 ? Zeros(12) : Byte(space).Byte(bits).Byte(0).Byte(access).Qword(address);

    /// <summary>I/O register of 1, 2 or 4 bytes; longer blocks are accessed by byte.</summary>
    public AcpiTable IoAddress(int length, ushort port, int accessBytes) =>
        Address(1, (byte)(length * 8), (byte)(accessBytes switch { 1 => 1, 2 => 2, _ => 3 }), port);

    /// <summary>The table with its length and checksum.</summary>
    public byte[] Finish()
    {
        byte[] table = [.. bytes];
        BinaryPrimitives.WriteUInt32LittleEndian(table.AsSpan(4), (uint)table.Length);
        table[9] = Checksum(table);
        return table;
    }

    /// <summary>The byte that makes the sum of all bytes 0, given that its place holds 0.</summary>
    public static byte Checksum(ReadOnlySpan<byte> content)
    {
        byte sum = 0;
        foreach (byte b in content)
            sum += b;
        return (byte)-sum;
    }
}
