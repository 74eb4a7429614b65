using Aerostat.Devices;

namespace Aerostat.Machine;

/// <summary>What devices complain of goes into the journal too, so that it can be read later. The devices limit how much that is.</summary>
internal sealed class JournaledLog(MachineJournal journal, IDeviceLog? next) : IDeviceLog
{
    /// <inheritdoc/>
    public void Warn(string device, string message)
    {
        journal.Write("device-warning", $"has a complaint from {device}: {message}");
        next?.Warn(device, message);
    }
}
