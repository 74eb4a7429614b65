namespace Aerostat.Guest.Drivers;

/// <summary>A queue of buffers to a device, whatever carries them there.</summary>
public abstract class DriverQueue
{
    /// <summary>Buffers that could still be added.</summary>
    public abstract int Room { get; }

    /// <summary>The device said what it must not, and nothing of this queue is believed any more.</summary>
    public abstract bool IsBroken { get; }

    /// <summary>Adds one buffer: a part that the device reads, then a part that it writes; either may be empty. False: there is no room.</summary>
    /// <param name="token">Comes back with the buffer.</param>
    public abstract bool Add(uint token, ulong readable, uint readableLength, ulong writable, uint writableLength);

    /// <summary>Adds one buffer of several parts: first those that the device reads, then those that it writes. False: there is no room.</summary>
    public abstract bool AddParts(uint token, ulong[] addresses, uint[] lengths, int readable, int count);

    /// <summary>Tells the device.</summary>
    public abstract void Kick();

    /// <summary>The next buffer that the device has done with; false: none.</summary>
    public abstract bool TryTake(out uint token);
}
