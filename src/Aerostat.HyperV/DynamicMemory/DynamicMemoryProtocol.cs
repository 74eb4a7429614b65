using System.Buffers.Binary;

namespace Aerostat.HyperV;

/// <summary>Messages of dynamic memory. The numbers are the protocol's.</summary>
internal enum DynamicMemoryMessage : ushort
{
    VersionRequest = 1,
    VersionResponse = 2,
    Capabilities = 3,
    CapabilitiesResponse = 4,
    Status = 5,
    BalloonRequest = 6,
    BalloonResponse = 7,
    UnballoonRequest = 8,
    UnballoonResponse = 9,
    HotAddRequest = 10,
    HotAddResponse = 11,
    Information = 12,
}

/// <summary>
/// The messages (Linux, drivers/hv/hv_balloon.c): type, size, and a number of the sender's in eight bytes, then what is below. Ranges of pages are one word:
/// first page in bits 39..0, number of pages in bits 63..40.
/// </summary>
internal static class DynamicMemoryProtocol
{
    public const int HeaderSize = 8, RangesAt = 16, LargestMessage = 4096, MostRanges = (LargestMessage - RangesAt) / 8;
    public const ulong MostPagesOfRange = (1 << 24) - 1;

    /// <summary>Versions spoken: of Windows 10, 8 and 7.</summary>
    public static bool IsKnown(uint version) => version is 0x2_0000 or 0x1_0000 or 3;

    /// <summary>The least that a message of the guest's has, so that all its fields are there.</summary>
    public static int LeastSize(DynamicMemoryMessage type) => type switch
    {
        DynamicMemoryMessage.VersionRequest or DynamicMemoryMessage.BalloonResponse or DynamicMemoryMessage.HotAddResponse => 16,
        DynamicMemoryMessage.Capabilities => 16,
        DynamicMemoryMessage.Status => 24,
        DynamicMemoryMessage.UnballoonResponse => HeaderSize,
        _ => int.MaxValue,
    };

    public static void WriteHeader(Span<byte> message, DynamicMemoryMessage type, uint number)
    {
        BinaryPrimitives.WriteUInt16LittleEndian(message, (ushort)type);
        BinaryPrimitives.WriteUInt16LittleEndian(message[2..], (ushort)message.Length);
        BinaryPrimitives.WriteUInt32LittleEndian(message[4..], number);
    }

    public static ulong Range(ulong first, ulong count) => first | count << 40;

    public static (ulong First, ulong Count) Range(ulong word) => (word & ((1UL << 40) - 1), word >> 40);
}
