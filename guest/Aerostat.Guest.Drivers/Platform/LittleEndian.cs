namespace Aerostat.Guest.Drivers;

/// <summary>Numbers in arrays of bytes, least significant byte first.</summary>
public static class LittleEndian
{
    public static ushort Read16(byte[] bytes, int at) => (ushort)(bytes[at] | (bytes[at + 1] << 8));

    public static uint Read32(byte[] bytes, int at) => Read16(bytes, at) | ((uint)Read16(bytes, at + 2) << 16);

    public static ulong Read64(byte[] bytes, int at) => Read32(bytes, at) | ((ulong)Read32(bytes, at + 4) << 32);

    public static void Write16(byte[] bytes, int at, ushort value)
    {
        bytes[at] = (byte)value;
        bytes[at + 1] = (byte)(value >> 8);
    }

    public static void Write32(byte[] bytes, int at, uint value)
    {
        Write16(bytes, at, (ushort)value);
        Write16(bytes, at + 2, (ushort)(value >> 16));
    }

    public static void Write64(byte[] bytes, int at, ulong value)
    {
        Write32(bytes, at, (uint)value);
        Write32(bytes, at + 4, (uint)(value >> 32));
    }
}
