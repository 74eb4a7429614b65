namespace Aerostat.Guest.Drivers;

/// <summary>
/// The driver of Hyper-V's volume snapshot component, as it was proposed for Linux in March 2013: the host asks for a freeze and a thaw of all file systems, a
/// daemon does them, and the driver carries requests and answers between the two. There is one transaction at a time; what comes while it is under way, or before a
/// daemon has registered, stays in the ring.
/// </summary>
/// <remarks>
/// Beside what was proposed: an answer belongs to a request by its number, so that a late one is not taken for the next; a daemon that does not answer in time makes
/// the host hear of a failure, and what it freezes after that is thawed; a daemon that has left makes requests fail at once; what nobody here can do is answered so.
/// </remarks>
public sealed class VolumeSnapshotDriver : IntegrationDriver
{
    /// <summary>No file system has to be recovered when the copy is used (VSS_HBU_NO_AUTO_RECOVERY).</summary>
    public const uint NoAutoRecovery = 5;

    private const byte Create = 0, Delete = 1, HotBackup = 2, GetInformation = 3, Complete = 4, Freeze = 5, Thaw = 6;
    private const int FlagsAt = BodyAt + 8;
    private const uint Version5 = 5;

    private readonly DriverPlatform platform;
    private readonly SnapshotMailbox mailbox;
    private readonly ulong answerWithin;
    private uint number;
    private bool waits;
    private SnapshotOperation asked;
    private ulong askedAt;
    private bool daemonHasGone;

    /// <summary>Makes a driver.</summary>
    /// <param name="platform">What it may use.</param>
    /// <param name="mailbox">Where its daemon is.</param>
    /// <param name="answerWithin">Nanoseconds for the daemon's answer.</param>
    public VolumeSnapshotDriver(DriverPlatform platform, SnapshotMailbox mailbox, ulong answerWithin = 10_000_000_000)
        : base(0x4236_EA23_35FA_2E29, 0x40A4_CBBA_6E3A_AE96)
    {
        this.platform = platform;
        this.mailbox = mailbox;
        this.answerWithin = answerWithin;
    }

    public override string Name => "vss";

    /// <summary>A daemon is there.</summary>
    public bool IsRegistered { get; private set; }

    /// <summary>The last that the host has had confirmed was a freeze.</summary>
    public bool IsFrozen { get; private set; }

    public ulong Freezes { get; private set; }

    public ulong Thaws { get; private set; }

    /// <summary>Requests that failed.</summary>
    public ulong Failures { get; private set; }

    /// <summary>Requests that the daemon did not answer in time.</summary>
    public ulong TimedOut { get; private set; }

    /// <summary>Answers that nobody waited for.</summary>
    public ulong Spurious { get; private set; }

    protected override ushort MessageType => 5;

    // Operation and seven bytes of nothing, then flags.
    protected override int LeastBody => 12;

    // Once one has been there, the host is not kept waiting for the next.
    protected override bool IsReady => IsRegistered || daemonHasGone;

    protected override bool Speaks(uint version) => version == Version5;

    public override void Closed()
    {
        // Whoever would thaw is gone. The daemon works in its order, so this comes after a freeze that it has not begun yet.
        if (IsFrozen || (waits && asked == SnapshotOperation.Freeze))
            ThawUnasked();
        waits = IsFrozen = false;
        base.Closed();
    }

    /// <summary>Takes the daemon's answers; also to be called while the channel is closed.</summary>
    public void TakeAnswers()
    {
        while (mailbox.ToDriver.TryTake(out SnapshotMessage answer))
            Take(answer);
    }

    protected override void Work()
    {
        TakeAnswers();
        if (!waits || platform.Nanoseconds - askedAt <= answerWithin)
            return;
        TimedOut++;
        platform.Log("vss: the daemon does not answer");
        if (asked == SnapshotOperation.Freeze)
            ThawUnasked();
        End(Failed);
    }

    protected override void Requested(byte[] packet, int size)
    {
        switch (packet[BodyAt])
        {
            case Freeze:
                Ask(SnapshotOperation.Freeze);
                break;
            case Thaw:
                Ask(SnapshotOperation.Thaw);
                break;
            case HotBackup:
                LittleEndian.Write32(packet, FlagsAt, NoAutoRecovery);
                Ask(SnapshotOperation.HotBackup);
                break;
            case GetInformation:
                LittleEndian.Write32(packet, FlagsAt, 0);
                Answer(Succeeded);
                break;
            case Create or Delete or Complete:
                Answer(Succeeded);
                break;
            default:
                Failures++;
                Answer(NotSupported);
                break;
        }
    }

    private void Ask(SnapshotOperation operation)
    {
        asked = operation;
        askedAt = platform.Nanoseconds;
        if (++number == 0)
            number = 1;
        waits = true;
        if (!IsRegistered || !mailbox.ToDaemon.TryPut(new SnapshotMessage { Number = number, Operation = operation }))
            End(Failed);
    }

    private void Take(SnapshotMessage answer)
    {
        switch (answer.Operation)
        {
            case SnapshotOperation.Register:
                IsRegistered = true;
                return;
            case SnapshotOperation.Unregister:
                IsRegistered = false;
                daemonHasGone = true;
                if (waits)
                    End(Failed);
                return;
        }
        if (!waits || answer.Number != number || answer.Operation != asked)
            Spurious++;
        else
            End(answer.Status);
    }

    private void End(uint status)
    {
        waits = false;
        if (status != Succeeded)
            Failures++;
        else if (asked == SnapshotOperation.Freeze)
            Freezes++;
        else if (asked == SnapshotOperation.Thaw)
            Thaws++;
        if (asked == SnapshotOperation.Freeze && status == Succeeded)
            IsFrozen = true;
        else if (asked == SnapshotOperation.Thaw && status == Succeeded)
            IsFrozen = false;
        Answer(status);
    }

    private void ThawUnasked() => mailbox.ToDaemon.TryPut(new SnapshotMessage { Operation = SnapshotOperation.Thaw });
}
