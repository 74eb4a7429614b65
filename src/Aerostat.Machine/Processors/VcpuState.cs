namespace Aerostat.Machine;

/// <summary>What a <see cref="VcpuThread"/> is doing.</summary>
public enum VcpuState
{
    /// <summary>Not in the guest; waits for commands.</summary>
    Paused,
    /// <summary>In the guest, or asleep because the guest has halted.</summary>
    Running,
    /// <summary>The thread has ended.</summary>
    Stopped,
}
