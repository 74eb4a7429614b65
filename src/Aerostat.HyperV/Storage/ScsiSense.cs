namespace Aerostat.HyperV;

/// <summary>How a SCSI command went: nothing to say, or the sense key with additional code and qualifier (SPC-4, 4.5.6).</summary>
/// <param name="Key">Sense key; 0: the command is done.</param>
/// <param name="Code">Additional sense code, qualifier in the low byte.</param>
internal readonly record struct ScsiSense(byte Key, ushort Code)
{
    private const byte MediumError = 3, IllegalRequest = 5, DataProtect = 7;

    public static ScsiSense None => default;
    public static ScsiSense InvalidOperation => new(IllegalRequest, 0x2000);
    public static ScsiSense OutOfRange => new(IllegalRequest, 0x2100);
    public static ScsiSense InvalidField => new(IllegalRequest, 0x2400);
    public static ScsiSense InvalidParameter => new(IllegalRequest, 0x2600);
    public static ScsiSense WriteProtected => new(DataProtect, 0x2700);
    public static ScsiSense ReadFailed => new(MediumError, 0x1100);
    public static ScsiSense WriteFailed => new(MediumError, 0x0C00);

    /// <summary>Fixed format, 18 bytes (SPC-4, 4.5.3).</summary>
    public void Write(Span<byte> sense)
    {
        sense[..Length].Clear();
        sense[0] = 0x70;
        sense[2] = Key;
        sense[7] = Length - 8;
        sense[12] = (byte)(Code >> 8);
        sense[13] = (byte)Code;
    }

    public const int Length = 18;
}
