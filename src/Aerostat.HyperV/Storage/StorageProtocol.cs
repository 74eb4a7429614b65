using System.Buffers.Binary;

namespace Aerostat.HyperV;

/// <summary>What the guest asks of a storage controller. The numbers are the protocol's.</summary>
internal enum StorageOperation : uint
{
    Complete = 1,
    ExecuteSrb = 3,
    ResetLun = 4,
    ResetAdapter = 5,
    ResetBus = 6,
    BeginInitialization = 7,
    EndInitialization = 8,
    QueryVersion = 9,
    QueryProperties = 10,
    CreateSubChannels = 13,
}

/// <summary>
/// Packets of the synthetic storage controller (Linux, drivers/scsi/storvsc_drv.c; there is no public specification): operation, flags, status, and for SCSI
/// requests a block of 36 bytes, or 52 from version 5.1 on.
/// </summary>
internal static class StorageProtocol
{
    public const int LeastPacket = 48, PacketSize = 64;
    public const int StatusAt = 8, BodyAt = 12;
    public const uint Success = 0, RevisionMismatch = 0xC000_0059, NotSupported = 0xC000_00BB, NotReady = 0xC000_00A3;

    // Of a SCSI request.
    public const int SrbStatusAt = 14, ScsiStatusAt = 15, PathAt = 17, TargetAt = 18, LunAt = 19, CommandLengthAt = 20, SenseLengthAt = 21, TransferAt = 24, CommandAt = 28;
    public const int LongestCommand = 16, LongestSense = 20;
    public const byte SrbSuccess = 1, SrbError = 4, SrbInvalidRequest = 6, SrbInvalidLun = 0x20, SrbSenseValid = 0x80;

    /// <summary>6.2, 6.0, 5.1, 4.2 and 2.0: of Windows 10, 8.1, 8, 7 and Server 2008.</summary>
    public static bool IsKnown(ushort version) => version is 0x602 or 0x600 or 0x501 or 0x402 or 0x200;

    public static StorageOperation Operation(ReadOnlySpan<byte> packet) => (StorageOperation)BinaryPrimitives.ReadUInt32LittleEndian(packet);

    /// <summary>Makes a request's packet the completion of it.</summary>
    public static void Complete(Span<byte> packet, uint status)
    {
        BinaryPrimitives.WriteUInt32LittleEndian(packet, (uint)StorageOperation.Complete);
        BinaryPrimitives.WriteUInt32LittleEndian(packet[4..], 0);
        BinaryPrimitives.WriteUInt32LittleEndian(packet[StatusAt..], status);
    }
}
