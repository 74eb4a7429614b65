using System.Buffers.Binary;
using System.Text;

namespace Aerostat.Loader.Tests;

/// <summary>Kernels made up in memory.</summary>
internal static class Kernels
{
    public const uint InitSize = 0x200000;

    public static byte[] BzImage(Action<byte[]>? change = null, int codeParagraphs = 0x1000)
    {
        byte[] image = new byte[(5 * 512) + (codeParagraphs * 16)];
        Span<byte> p = image;
        for (int i = 5 * 512; i < image.Length; i++)
            image[i] = (byte)(i * 7);
        p[0x1F1] = 4;
        Put(p, 0x1F4, (uint)codeParagraphs);
        BinaryPrimitives.WriteUInt16LittleEndian(p[0x1FE..], 0xAA55);
        p[0x200] = 0xEB;
        p[0x201] = 0x6A;
        "HdrS"u8.CopyTo(p[0x202..]);
        BinaryPrimitives.WriteUInt16LittleEndian(p[0x206..], 0x20F);
        BinaryPrimitives.WriteUInt16LittleEndian(p[0x20E..], 0x300);
        "6.1.0-test (x) #1"u8.CopyTo(p[0x500..]);
        p[0x211] = 1;
        Put(p, 0x214, 0x100000);
        Put(p, 0x22C, 0x7FFFFFFF);
        Put(p, 0x230, 0x200000);
        p[0x234] = 1;
        p[0x236] = 3;
        Put(p, 0x238, 2047);
        BinaryPrimitives.WriteUInt64LittleEndian(p[0x258..], 0x1000000);
        Put(p, 0x260, InitSize);
        change?.Invoke(image);
        return image;
    }

    /// <summary>An ELF file whose text holds a multiboot header; one segment at <paramref name="address"/>.</summary>
    public static byte[] MultibootElf(bool is64, uint address = 0x400000, uint bss = 0x3000, ulong? entry = null, ulong virtualOffset = 0)
    {
        byte[] image = new byte[0x3000];
        ElfHeader(image, is64, entry ?? address, 1);
        Segment(image, is64, 0, 1, 0x1000, address + virtualOffset, address, 0x2000, 0x2000 + bss);
        MultibootHeader(image.AsSpan(0x1100), 3);
        for (int i = 0x1200; i < image.Length; i++)
            image[i] = (byte)(i * 3);
        return image;
    }

    /// <summary>A flat file with a multiboot header that has address fields.</summary>
    public static byte[] MultibootFlat(uint address = 0x200000)
    {
        byte[] image = new byte[0x2000];
        Span<byte> p = image.AsSpan(0x40);
        MultibootHeader(p, 0x10003);
        Put(p, 12, address + 0x20); // the header, at 0x40 of the file; so load starts at 0x20
        Put(p, 16, address);
        Put(p, 20, address + 0x1000);
        Put(p, 24, address + 0x5000);
        Put(p, 28, address + 0x80);
        for (int i = 0x100; i < image.Length; i++)
            image[i] = (byte)(i * 5);
        return image;
    }

    public static void MultibootHeader(Span<byte> p, uint flags)
    {
        Put(p, 0, 0x1BADB002);
        Put(p, 4, flags);
        Put(p, 8, unchecked((uint)-(0x1BADB002 + flags)));
    }

    /// <summary>An ELF with a PVH note.</summary>
    public static byte[] Pvh(bool is64 = true, uint entry = 0x1000100, Func<byte[], byte[]>? note = null)
    {
        byte[] image = new byte[0x4000];
        ElfHeader(image, is64, 0xFFFFFFFF81000000, 2);
        Segment(image, is64, 0, 1, 0x1000, 0xFFFFFFFF81000000, 0x1000000, 0x2000, 0x8000);
        byte[] value = new byte[is64 ? 8 : 4];
        BinaryPrimitives.WriteUInt32LittleEndian(value, entry);
        byte[] notes = [.. Note("GNU\0", 3, new byte[20]), .. Note("Xen\0", 6, Encoding.ASCII.GetBytes("linux\0")), .. Note("Xen\0", 18, value)];
        notes = note?.Invoke(notes) ?? notes;
        notes.CopyTo(image, 0x3800);
        Segment(image, is64, 1, 4, 0x3800, 0, 0, (ulong)notes.Length, (ulong)notes.Length);
        for (int i = 0x1000; i < 0x3000; i++)
            image[i] = (byte)(i * 11);
        return image;
    }

    public static byte[] Note(string owner, uint type, byte[] value)
    {
        byte[] note = new byte[12 + ((owner.Length + 3) & ~3) + ((value.Length + 3) & ~3)];
        Put(note, 0, (uint)owner.Length);
        Put(note, 4, (uint)value.Length);
        Put(note, 8, type);
        Encoding.ASCII.GetBytes(owner).CopyTo(note, 12);
        value.CopyTo(note, 12 + ((owner.Length + 3) & ~3));
        return note;
    }

    public static void ElfHeader(byte[] image, bool is64, ulong entry, ushort segments)
    {
        Span<byte> p = image;
        "\u007FELF"u8.CopyTo(p);
        p[4] = (byte)(is64 ? 2 : 1);
        p[5] = p[6] = 1;
        BinaryPrimitives.WriteUInt16LittleEndian(p[16..], 2);
        BinaryPrimitives.WriteUInt16LittleEndian(p[18..], (ushort)(is64 ? 62 : 3));
        Put(p, 20, 1);
        if (is64)
        {
            BinaryPrimitives.WriteUInt64LittleEndian(p[24..], entry);
            BinaryPrimitives.WriteUInt64LittleEndian(p[32..], 64);
        }
        else
        {
            Put(p, 24, (uint)entry);
            Put(p, 28, 64);
        }
        BinaryPrimitives.WriteUInt16LittleEndian(p[(is64 ? 52 : 40)..], (ushort)(is64 ? 64 : 52));
        BinaryPrimitives.WriteUInt16LittleEndian(p[(is64 ? 54 : 42)..], (ushort)(is64 ? 56 : 32));
        BinaryPrimitives.WriteUInt16LittleEndian(p[(is64 ? 56 : 44)..], segments);
    }

    public static void Segment(byte[] image, bool is64, int index, uint type, ulong offset, ulong virtualAddress, ulong physical, ulong fileSize, ulong memorySize)
    {
        Span<byte> p = image.AsSpan(64 + (index * (is64 ? 56 : 32)));
        Put(p, 0, type);
        if (is64)
        {
            Put(p, 4, 5);
            ulong[] fields = [offset, virtualAddress, physical, fileSize, memorySize, 4];
            for (int i = 0; i < fields.Length; i++)
                BinaryPrimitives.WriteUInt64LittleEndian(p[(8 + (i * 8))..], fields[i]);
        }
        else
        {
            ulong[] fields = [offset, virtualAddress, physical, fileSize, memorySize, 5, 4];
            for (int i = 0; i < fields.Length; i++)
                Put(p, 4 + (i * 4), (uint)fields[i]);
        }
    }

    public static void Put(Span<byte> p, int offset, uint value) => BinaryPrimitives.WriteUInt32LittleEndian(p[offset..], value);
}
