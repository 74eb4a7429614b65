namespace Aerostat.Guest.Drivers;

/// <summary>A PCI function: its identity, capabilities, base addresses and MSI-X (PCI Local Bus 3.0, chapter 6 and section 6.8.2).</summary>
public sealed class PciFunction(DriverPlatform platform, uint function)
{
    private const int Command = 4, Status = 6, HeaderType = 14, FirstBar = 0x10, FirstCapability = 0x34, MostCapabilities = 48;
    private const byte MsixCapability = 0x11;

    /// <summary>Bus, device and function: bits 15 to 8, 7 to 3, 2 to 0.</summary>
    public uint Function => function;

    public ushort Vendor => (ushort)Read(0, 2);

    public ushort Device => (ushort)Read(2, 2);

    public bool HasMoreFunctions => (Read(HeaderType, 1) & 0x80) != 0;

    public bool IsBridge => (Read(HeaderType, 1) & 0x7F) == 1;

    public uint Read(int offset, int size) => platform.ReadPciConfig(function, offset, size);

    public void Write(int offset, int size, uint value) => platform.WritePciConfig(function, offset, size, value);

    /// <summary>Lets the device decode memory and use the bus itself.</summary>
    public void Enable() => Write(Command, 2, Read(Command, 2) | 6);

    /// <summary>Where a memory window begins, or 0 when it has none (a port window among them).</summary>
    public ulong BaseAddress(int index)
    {
        uint low = Read(FirstBar + (index * 4), 4);
        if ((low & 1) != 0)
            return 0;
        ulong high = (low & 6) == 4 && index < 5 ? Read(FirstBar + (index * 4) + 4, 4) : 0;
        return (high << 32) | (low & ~15u);
    }

    /// <summary>The next capability with an id after <paramref name="after"/> (0: from the first), or 0.</summary>
    public int FindCapability(byte id, int after)
    {
        if ((Read(Status, 2) & 0x10) == 0)
            return 0;
        int at = (int)Read(after == 0 ? FirstCapability : after + 1, 1) & ~3;
        // A list that a hostile device closes to a ring ends too.
        for (int i = 0; i < MostCapabilities && at >= 0x40; i++)
        {
            if (Read(at, 1) == id)
                return at;
            at = (int)Read(at + 1, 1) & ~3;
        }
        return 0;
    }

    /// <summary>Sends the first message of the table to where the platform takes interrupts; false: there is none to send.</summary>
    public bool EnableMessages()
    {
        int at = FindCapability(MsixCapability, 0);
        if (at == 0 || !platform.GetInterruptMessage(out ulong address, out uint data))
            return false;
        uint table = Read(at + 4, 4);
        ulong window = BaseAddress((int)(table & 7));
        if (window == 0)
            return false;
        window += table & ~7u;
        platform.WriteRegister(window, 4, (uint)address);
        platform.WriteRegister(window + 4, 4, (uint)(address >> 32));
        platform.WriteRegister(window + 8, 4, data);
        platform.WriteRegister(window + 12, 4, 0);
        Write(at + 2, 2, (Read(at + 2, 2) & 0x3FFF) | 0x8000);
        return true;
    }
}
