namespace Aerostat.Virtio;

/// <summary>The transport's interrupts, as a device raises them. Called under the device's lock.</summary>
public interface IVirtioInterrupts
{
    /// <summary>Buffers of a queue have been used.</summary>
    void RaiseQueue(int queue);

    /// <summary>Configuration space or the NEEDS_RESET bit has changed.</summary>
    void RaiseConfiguration();

    /// <summary>The device has been reset: vectors and causes are forgotten.</summary>
    void DriverReset();
}
