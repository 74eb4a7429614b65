namespace Aerostat.Guest.Drivers;

/// <summary>A device that the host offers.</summary>
public struct VmbusOffer
{
    /// <summary>The host's number; 0: no offer.</summary>
    public uint RelId;

    /// <summary>What kind of device it is.</summary>
    public ulong TypeLow;
    public ulong TypeHigh;

    /// <summary>Where its signals go.</summary>
    public uint Connection;

    /// <summary>The channel that has it, or null: there is no driver for it, or that has another one.</summary>
    public VmbusChannel? Channel;

    /// <summary>What people call it.</summary>
    public readonly string Name => TypeLow switch
    {
        0x4236_EA23_35FA_2E29 => "vss",
        0x4E78_9115_5716_4F39 => "heartbeat",
        0x4D96_5A45_A9A0_F4E7 => "kvp",
        0x4934_5213_0E0B_6031 => "shutdown",
        0x497B_D0AE_9527_E630 => "timesync",
        0x46E2_8985_5250_74DC => "dynamic memory",
        0x41C8_DEE4_34D1_4BE3 => "fcopy",
        _ => "unknown",
    };
}
