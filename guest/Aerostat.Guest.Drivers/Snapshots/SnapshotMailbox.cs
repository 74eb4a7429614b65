namespace Aerostat.Guest.Drivers;

/// <summary>What the driver wants of the daemon, by the numbers that the host uses (Linux, include/uapi/linux/hyperv.h).</summary>
public enum SnapshotOperation
{
    /// <summary>Whether somebody is there.</summary>
    HotBackup = 2,

    Freeze = 5,
    Thaw = 6,

    /// <summary>The daemon is there; said by it.</summary>
    Register = 128,

    /// <summary>The daemon ends; said by it.</summary>
    Unregister = 129,
}

/// <summary>A message between driver and daemon.</summary>
public struct SnapshotMessage
{
    /// <summary>The driver's number for a request; the answer has the same. 0: nobody waits for an answer.</summary>
    public uint Number;

    public SnapshotOperation Operation;

    /// <summary>In an answer: 0, or what the host is told.</summary>
    public uint Status;
}

/// <summary>Messages in their order, a few at most.</summary>
public sealed class SnapshotQueue
{
    private const int Capacity = 8;

    private readonly SnapshotMessage[] messages = new SnapshotMessage[Capacity];
    private int first;
    private int count;

    public int Count => count;

    /// <summary>False: it is full.</summary>
    public bool TryPut(SnapshotMessage message)
    {
        if (count == Capacity)
            return false;
        messages[(first + count++) % Capacity] = message;
        return true;
    }

    public bool TryTake(out SnapshotMessage message)
    {
        message = default;
        if (count == 0)
            return false;
        message = messages[first];
        first = (first + 1) % Capacity;
        count--;
        return true;
    }

    public void Clear() => count = 0;
}

/// <summary>What lies between the snapshot driver and its daemon: a queue each way. What is asked is done in its order, so a thaw is never before the freeze that it follows.</summary>
public sealed class SnapshotMailbox
{
    public SnapshotQueue ToDaemon { get; } = new();

    public SnapshotQueue ToDriver { get; } = new();
}
