namespace Aerostat.HyperV;

/// <summary>A message on its way to the guest (TLFS, 11.8.1).</summary>
/// <param name="Type">Never 0; bit 31 is set in those of the hypervisor itself.</param>
/// <param name="Sender">Port or partition that it comes from.</param>
/// <param name="Payload">At most 240 bytes.</param>
public sealed record SynicMessage(uint Type, ulong Sender, byte[] Payload)
{
    /// <summary>Most bytes of a payload.</summary>
    public const int MaxPayload = 240;

    /// <summary>Bytes of a slot in the message page.</summary>
    internal const int SlotSize = 256;

    internal const int TypeOffset = 0, SizeOffset = 4, FlagsOffset = 5, SenderOffset = 8, PayloadOffset = 16;
    internal const byte PendingFlag = 1;
}
