namespace Aerostat.Guest.Drivers;

/// <summary>
/// What drives a device behind a channel. It is registered with the bus once, and told when a channel of its kind is open and when that is gone, which may happen
/// at any time: the host takes the device back, writes nonsense, or the bus is left.
/// </summary>
/// <param name="typeLow">The kind of device, a GUID's first eight bytes.</param>
/// <param name="typeHigh">Its last eight.</param>
/// <param name="ringPages">Pages of each direction's ring: one for its indices, the rest for packets.</param>
/// <param name="longestPacket">Bytes of payload that are taken; a multiple of eight.</param>
public abstract class VmbusDriver(ulong typeLow, ulong typeHigh, int ringPages, int longestPacket)
{
    /// <summary>"vss".</summary>
    public abstract string Name { get; }

    public ulong TypeLow => typeLow;

    public ulong TypeHigh => typeHigh;

    public int RingPages => ringPages;

    public int LongestPacket => longestPacket;

    /// <summary>The channel is open.</summary>
    public abstract void Opened(VmbusChannel channel);

    /// <summary>The channel is gone, with all that was under way.</summary>
    public abstract void Closed();

    /// <summary>Does what can be done and returns; called while the channel is open.</summary>
    public abstract void Service();
}
