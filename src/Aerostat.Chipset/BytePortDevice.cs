using Aerostat.Devices;

namespace Aerostat.Chipset;

/// <summary>
/// A device on the 8-bit ISA bus. The bus controller splits wider accesses into bytes at ascending ports; bytes that fall
/// outside the device read as ones and are lost on output.
/// </summary>
public abstract class BytePortDevice : IPortDevice
{
    /// <inheritdoc/>
    public uint ReadPort(ushort port, int size)
    {
        if (size > 1 && TryReadWide(port, size, out uint wide))
            return wide;
        uint value = ReadByte(port);
        for (int i = 1; i < size; i++)
            value |= (uint)(Decodes((ushort)(port + i)) ? ReadByte((ushort)(port + i)) : 0xFF) << (8 * i);
        return value;
    }

    /// <inheritdoc/>
    public void WritePort(ushort port, int size, uint value)
    {
        WriteByte(port, (byte)value);
        for (int i = 1; i < size; i++)
        {
            if (Decodes((ushort)(port + i)))
                WriteByte((ushort)(port + i), (byte)(value >> (8 * i)));
        }
    }

    /// <summary>Whether the device answers at <paramref name="port"/>; asked only for the upper bytes of wide accesses.</summary>
    private protected abstract bool Decodes(ushort port);

    /// <summary>For the rare register that must be read in one piece.</summary>
    private protected virtual bool TryReadWide(ushort port, int size, out uint value)
    {
        value = 0;
        return false;
    }

    /// <summary>Byte input.</summary>
    private protected abstract byte ReadByte(ushort port);

    /// <summary>Byte output.</summary>
    private protected abstract void WriteByte(ushort port, byte value);
}
