using System.Buffers.Binary;

namespace Aerostat.Loader;

/// <summary>A multiboot 1 header (Multiboot Specification 0.6.96 section 3.1).</summary>
internal sealed record MultibootHeader(uint Offset, uint Flags, uint HeaderAddress, uint LoadAddress, uint LoadEnd, uint BssEnd, uint Entry)
{
    public const int SearchLength = 8192;
    public const uint Magic = 0x1BADB002;

    /// <summary>Flag 16: the address fields say how to load the file, whatever its format.</summary>
    public const uint AddressFields = 1 << 16;

    // Bits 0..15 are requirements: 0 page-aligned modules and 1 memory information are met, 2 (a video mode) and the rest are not.
    private const uint MetRequirements = 3;

    public static MultibootHeader? Find(BootFile file, ReadOnlySpan<byte> head)
    {
        for (int i = 0; i + 12 <= head.Length; i += 4)
        {
            if (BinaryPrimitives.ReadUInt32LittleEndian(head[i..]) != Magic)
                continue;
            uint flags = BinaryPrimitives.ReadUInt32LittleEndian(head[(i + 4)..]);
            if (unchecked(Magic + flags + BinaryPrimitives.ReadUInt32LittleEndian(head[(i + 8)..])) != 0)
                continue;
            if ((flags & 0xFFFF & ~MetRequirements) != 0)
                throw new BootException($"kernel {file.Name} requires multiboot features 0x{flags & 0xFFFF & ~MetRequirements:x}{((flags & 4) != 0 ? " (a video mode)" : "")}, which are not offered; build it without them");
            if ((flags & AddressFields) == 0)
                return new MultibootHeader((uint)i, flags, 0, 0, 0, 0, 0);
            if (i + 32 > head.Length)
                throw new BootException($"kernel {file.Name} is truncated inside its multiboot header; get a complete copy");
            ReadOnlySpan<byte> a = head[(i + 12)..];
            return new MultibootHeader(
                (uint)i,
                flags,
                BinaryPrimitives.ReadUInt32LittleEndian(a),
                BinaryPrimitives.ReadUInt32LittleEndian(a[4..]),
                BinaryPrimitives.ReadUInt32LittleEndian(a[8..]),
                BinaryPrimitives.ReadUInt32LittleEndian(a[12..]),
                BinaryPrimitives.ReadUInt32LittleEndian(a[16..]));
        }
        return null;
    }
}
