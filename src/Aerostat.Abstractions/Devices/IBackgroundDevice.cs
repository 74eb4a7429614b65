namespace Aerostat.Devices;

/// <summary>A device with threads of its own, which write to guest memory and raise interrupts.</summary>
public interface IBackgroundDevice
{
    /// <summary>
    /// Finishes what is under way and starts nothing new until <see cref="Resume"/>. When this returns, none of the device's threads touches
    /// guest memory. Called when no vCPU is in the guest.
    /// </summary>
    void Quiesce();

    /// <summary>Goes on.</summary>
    void Resume();

    /// <summary>Ends the threads, for good. Guest memory is there until this returns.</summary>
    void Stop();
}

/// <summary>Where devices say what went wrong, for people. Any thread; returns at once. The device limits how much it says.</summary>
public interface IDeviceLog
{
    /// <summary>Takes one line.</summary>
    /// <param name="device">The device's name.</param>
    /// <param name="message">What happened.</param>
    void Warn(string device, string message);
}
