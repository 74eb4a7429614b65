namespace Aerostat.Guest.Drivers;

/// <summary>What a daemon does with what it is asked; the last two are for tests of the other side.</summary>
public enum DaemonConduct
{
    Works,

    /// <summary>Every request fails.</summary>
    Fails,

    /// <summary>Requests are taken, and neither done nor answered until it works again.</summary>
    Hangs,
}

/// <summary>
/// The daemon that freezes and thaws the mounted file systems for the snapshot driver. A task of its own: it is called at times, takes what is in its mailbox, and
/// answers. A freeze that fails half-way is undone before it is answered; when the daemon ends, nothing stays frozen.
/// </summary>
public sealed class SnapshotDaemon(DriverPlatform platform, SnapshotMailbox mailbox)
{
    private const int MostFileSystems = 4;

    private readonly FileSystem?[] fileSystems = new FileSystem?[MostFileSystems];
    private int count;

    public bool IsRunning { get; private set; }

    public DaemonConduct Conduct { get; set; }

    /// <summary>It has frozen what is mounted.</summary>
    public bool HoldsFrozen { get; private set; }

    /// <summary>Requests that were done.</summary>
    public ulong Done { get; private set; }

    /// <summary>Adds a file system, which is frozen when it is mounted; false: there are too many.</summary>
    public bool Add(FileSystem fileSystem)
    {
        if (count == MostFileSystems)
            return false;
        fileSystems[count++] = fileSystem;
        return true;
    }

    /// <summary>Begins, and tells the driver.</summary>
    public void Start()
    {
        if (IsRunning)
            return;
        IsRunning = true;
        mailbox.ToDaemon.Clear();
        mailbox.ToDriver.TryPut(new SnapshotMessage { Operation = SnapshotOperation.Register });
    }

    /// <summary>Ends, thaws what it has frozen, and tells the driver.</summary>
    public void Stop()
    {
        if (!IsRunning)
            return;
        IsRunning = false;
        if (HoldsFrozen)
            Thaw();
        mailbox.ToDriver.TryPut(new SnapshotMessage { Operation = SnapshotOperation.Unregister });
    }

    /// <summary>Does what is in the mailbox.</summary>
    public void Service()
    {
        while (IsRunning && Conduct != DaemonConduct.Hangs && mailbox.ToDaemon.TryTake(out SnapshotMessage request))
        {
            bool done = Conduct != DaemonConduct.Fails && Do(request.Operation);
            if (done)
                Done++;
            request.Status = done ? IntegrationDriver.Succeeded : IntegrationDriver.Failed;
            if (request.Number != 0)
                mailbox.ToDriver.TryPut(request);
        }
    }

    private bool Do(SnapshotOperation operation) => operation switch
    {
        // What is frozen already need not be frozen, and what is not frozen need not be thawed.
        SnapshotOperation.Freeze => HoldsFrozen || Freeze(),
        SnapshotOperation.Thaw => !HoldsFrozen || Thaw(),
        SnapshotOperation.HotBackup => true,
        _ => false,
    };

    private bool Freeze()
    {
        for (int i = 0; i < count; i++)
        {
            if (fileSystems[i] is not { IsMounted: true } fileSystem)
                continue;
            FileSystemError error = fileSystem.Freeze();
            if (error == FileSystemError.None)
                continue;
            platform.Log("snapshot daemon: a file system does not freeze, error ", (ulong)error);
            Thaw();
            return false;
        }
        HoldsFrozen = true;
        return true;
    }

    private bool Thaw()
    {
        for (int i = 0; i < count; i++)
            fileSystems[i]?.Thaw();
        HoldsFrozen = false;
        return true;
    }
}
