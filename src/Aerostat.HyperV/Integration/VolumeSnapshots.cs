using System.Buffers.Binary;
using System.Globalization;
using Aerostat.Devices;

namespace Aerostat.HyperV;

/// <summary>
/// The host's side of the volume snapshot component: asks the guest's driver, which asks its daemon, to freeze every file system, and to thaw them. One
/// transaction at a time; a deadline on every wait, in VM time; a thaw on every path. A driver answers after 15 minutes at most if its daemon does not, and
/// nothing in the guest ever thaws by itself.
/// </summary>
/// <remarks>The bus's thread, but for what says otherwise.</remarks>
public sealed class VolumeSnapshots : IntegrationComponent, IVolumeFreezer
{
    private const byte HotBackup = 2, FreezeOperation = 5, ThawOperation = 6;

    // A driver drops what is shorter than 12 bytes without a word.
    private const int BodySize = 40;
    private const int ThawAttempts = 3;

    private static readonly TimeSpan s_answerLimit = TimeSpan.FromSeconds(35), s_retryPause = TimeSpan.FromSeconds(1), s_leftoverPause = TimeSpan.FromSeconds(2);

    private volatile FreezePhase phase;
    private Transaction? current;
    private IDisposable? timer, watchdog, leftoverTimer;
    // The guest may still have frozen what nobody has seen thawed.
    private bool leftFrozen;
    // Why the latest freeze has come to nothing while nobody waited, for who asks for its thaw.
    private string? lost;
    private byte? waiting;
    private int thawAttempts;
    private bool thawTwice;

    /// <inheritdoc/>
    public override string Name => "vss";

    /// <inheritdoc/>
    public override ChannelOffer Offer { get; } = new(new("35fa2e29-ea23-4236-96ae-3a6ebacba440"), new("2450ee40-33bf-4fbd-892e-9fb06e9214cf"));

    /// <inheritdoc/>
    public string Dialect => "hyperv";

    /// <inheritdoc/>
    public FreezePhase Phase => phase;

    /// <inheritdoc/>
    public event Action<FreezePhase>? PhaseChanged;

    /// <summary>Told of each change of <see cref="Phase"/> in a line, for a journal. Set before the machine runs.</summary>
    public Action<string>? Journal { get; set; }

    /// <summary>Told when the guest must not be asked anything else (true), and when that is over.</summary>
    internal Action<bool>? Hold { get; set; }

    private protected override ushort MessageType => 5;

    // Below 5.0 there is no freeze among the messages.
    private protected override IReadOnlyList<ComponentVersion> MessageVersions { get; } = [new(5, 0)];

    private protected override IReadOnlyList<ComponentVersion> FrameworkVersions { get; } = [new(3, 0)];

    private sealed class Transaction(FreezeOptions options)
    {
        public FreezeOptions Options => options;
        public TaskCompletionSource Frozen { get; } = new(TaskCreationOptions.RunContinuationsAsynchronously);
        public TaskCompletionSource<FreezeResult> Thawed { get; } = new(TaskCreationOptions.RunContinuationsAsynchronously);
        public long Asked { get; set; }
        public long? FrozenAt { get; set; }
        public TimeSpan FreezeTime { get; set; }
        public bool ByWatchdog { get; set; }
        public string? Failure { get; set; }
        // Nobody waits for it: what an earlier one has left frozen is thawed.
        public bool IsForLeftovers { get; init; }
    }

    /// <inheritdoc/>
    public Task FreezeAsync(FreezeOptions options)
    {
        ArgumentNullException.ThrowIfNull(options);
        Transaction transaction = new(options);
        // Nobody may be left to look at it.
        _ = transaction.Thawed.Task.ContinueWith(static t => t.Exception, CancellationToken.None, TaskContinuationOptions.ExecuteSynchronously, TaskScheduler.Default);
        Bus.Post(() => Begin(transaction));
        return transaction.Frozen.Task;
    }

    /// <inheritdoc/>
    public Task<FreezeResult> ThawAsync()
    {
        TaskCompletionSource<FreezeResult> done = new(TaskCreationOptions.RunContinuationsAsynchronously);
        Bus.Post(() =>
        {
            if (current is not { } transaction)
            {
                done.TrySetException(new FreezeException(Interlocked.Exchange(ref lost, null) ?? "nothing is frozen"));
                return;
            }
            transaction.Thawed.Task.ContinueWith(
                t =>
                {
                    if (t.IsFaulted)
                        done.TrySetException(t.Exception!.InnerExceptions);
                    else
                        done.TrySetResult(t.Result);
                },
                CancellationToken.None, TaskContinuationOptions.ExecuteSynchronously, TaskScheduler.Default);
            if (phase == FreezePhase.Frozen)
                Thaw();
        });
        return done.Task;
    }

    private void Begin(Transaction transaction)
    {
        string? obstacle = leftFrozen ? "an earlier freeze was never confirmed to have ended: the guest is asked to thaw its file systems as soon as its daemon answers again"
            : current is not null || phase is not (FreezePhase.Idle or FreezePhase.Failed) ? "a freeze is under way already"
            : State switch
            {
                ComponentState.Absent => "the guest has no snapshot channel open: its kernel has no hv_utils, or has not loaded it",
                ComponentState.Negotiating => "the guest's driver has not agreed on a version yet",
                ComponentState.Incompatible => "the guest's driver speaks no version that has a freeze (it takes 5.0)",
                _ => null,
            };
        if (obstacle is not null)
        {
            transaction.Frozen.TrySetException(new FreezeException(obstacle));
            transaction.Thawed.TrySetException(new FreezeException(obstacle));
            return;
        }
        current = transaction;
        lost = null;
        Enter(FreezePhase.Probing);
        Hold?.Invoke(true);
        Ask(HotBackup, s_answerLimit, () => Fail("the guest's driver does not answer whether it can freeze"));
    }

    // One request is in the guest at a time; the answer to it may come late, and is then told by its number.
    private void Ask(byte operation, TimeSpan limit, Action late)
    {
        timer?.Dispose();
        Span<byte> body = stackalloc byte[BodySize];
        body.Clear();
        body[0] = operation;
        waiting = Request(body);
        timer = Bus.After(limit, late);
    }

    private protected override void Answered(byte number, uint status, ReadOnlySpan<byte> body)
    {
        if (number != waiting)
        {
            NoteSpurious();
            return;
        }
        waiting = null;
        timer?.Dispose();
        timer = null;
        switch (phase)
        {
            case FreezePhase.Probing when status == Succeeded && current!.IsForLeftovers:
                Thaw();
                break;
            case FreezePhase.Probing when status == Succeeded:
                current!.Asked = Bus.Clock.GetTimestamp();
                Enter(FreezePhase.Freezing);
                Ask(FreezeOperation, current.Options.Deadline, FreezeIsLate);
                break;
            case FreezePhase.Probing:
                Fail("no daemon answers in the guest: install hyperv-daemons (hv_vss_daemon) there and start it");
                break;
            case FreezePhase.Freezing when status == Succeeded:
                current!.FrozenAt = Bus.Clock.GetTimestamp();
                current.FreezeTime = Bus.Clock.GetElapsedTime(current.Asked, current.FrozenAt.Value);
                Enter(FreezePhase.Frozen);
                watchdog = Bus.After(current.Options.Watchdog, WatchdogThaws);
                current.Frozen.TrySetResult();
                break;
            case FreezePhase.Freezing:
                // The daemon has thawed what it had frozen; one more thaw does no harm.
                FailAndThaw($"the guest could not freeze its file systems (0x{status:x8}); its log says which");
                break;
            case FreezePhase.Thawing when status == Succeeded && thawTwice:
                // The answer may have been the freeze's own, late: only the next is certain.
                thawTwice = false;
                Thaw();
                break;
            case FreezePhase.Thawing when status == Succeeded:
                Finish();
                break;
            case FreezePhase.Thawing:
                thawTwice = false;
                // They may have been thawed before: by the daemon's own watchdog, or by a new daemon after one that was killed.
                current!.Failure ??= $"the guest does not confirm that its file systems were frozen until now (0x{status:x8}); its log says why";
                ThawAgain();
                break;
            default:
                NoteSpurious();
                break;
        }
    }

    // The driver takes no second packet while it works on the first: a thaw that is put into the ring now is done as soon as the freeze is.
    private void FreezeIsLate()
    {
        thawTwice = true;
        FailAndThaw($"the guest has not frozen its file systems within {current!.Options.Deadline.TotalSeconds.ToString("0.#", CultureInfo.InvariantCulture)} s");
    }

    private void WatchdogThaws()
    {
        if (phase != FreezePhase.Frozen)
            return;
        current!.ByWatchdog = true;
        Journal?.Invoke("the watchdog thaws the guest's file systems: nobody else did in time");
        Thaw();
    }

    private void FailAndThaw(string why)
    {
        current!.Failure = why;
        current.Frozen.TrySetException(new FreezeException(why));
        Thaw();
    }

    private void Thaw()
    {
        watchdog?.Dispose();
        watchdog = null;
        Enter(FreezePhase.Thawing);
        thawAttempts++;
        Ask(ThawOperation, s_answerLimit, ThawAgain);
    }

    private void ThawAgain()
    {
        waiting = null;
        if (thawAttempts < ThawAttempts && State == ComponentState.Ready)
        {
            timer?.Dispose();
            timer = Bus.After(s_retryPause, Thaw);
            return;
        }
        // The last resort: without its device the daemon thaws what it has frozen, and ends.
        Transaction transaction = current!;
        leftFrozen = true;
        Enter(FreezePhase.Failed);
        string why = "the guest does not confirm that it has thawed its file systems; its snapshot channel has been taken away so that its daemon lets go";
        transaction.Frozen.TrySetException(new FreezeException(why));
        transaction.Thawed.TrySetException(new FreezeException(why));
        Forget();
        Bus.Rescind(this);
    }

    private void Finish()
    {
        Transaction transaction = current!;
        if (transaction.Failure is { } failure)
            transaction.Thawed.TrySetException(new FreezeException(failure));
        else
            transaction.Thawed.TrySetResult(new FreezeResult(
                transaction.FreezeTime, transaction.FrozenAt is { } at ? Bus.Clock.GetElapsedTime(at) : default, transaction.ByWatchdog));
        leftFrozen = false;
        Forget();
        Enter(FreezePhase.Idle);
    }

    private void Fail(string why)
    {
        Transaction transaction = current!;
        transaction.Frozen.TrySetException(new FreezeException(why));
        transaction.Thawed.TrySetException(new FreezeException(why));
        Forget();
        if (!transaction.IsForLeftovers)
        {
            Enter(FreezePhase.Idle);
            return;
        }
        Enter(FreezePhase.Failed);
        leftoverTimer = Bus.After(s_leftoverPause, AskForLeftovers);
    }

    private void Forget()
    {
        timer?.Dispose();
        watchdog?.Dispose();
        timer = watchdog = null;
        waiting = null;
        current = null;
        thawAttempts = 0;
        thawTwice = false;
        Hold?.Invoke(false);
    }

    // A guest that has closed its channel has no daemon that holds anything, or is no more; but for one whose channel was taken away.
    private protected override void Lost()
    {
        leftoverTimer?.Dispose();
        leftoverTimer = null;
        if (current is { } transaction)
        {
            string why = phase == FreezePhase.Frozen || phase == FreezePhase.Thawing
                ? "the guest has closed its snapshot channel, or was reset, while its file systems were frozen"
                : "the guest has closed its snapshot channel, or was reset";
            lost = why;
            transaction.Frozen.TrySetException(new FreezeException(why));
            transaction.Thawed.TrySetException(new FreezeException(why));
            Forget();
        }
        if (phase != FreezePhase.Failed)
        {
            leftFrozen = false;
            Enter(FreezePhase.Idle);
        }
    }

    /// <inheritdoc/>
    protected internal override void GuestReset()
    {
        leftFrozen = false;
        Enter(FreezePhase.Idle);
    }

    private protected override void Ready()
    {
        if (leftFrozen)
            AskForLeftovers();
        else if (phase == FreezePhase.Failed)
            Enter(FreezePhase.Idle);
    }

    // A daemon that was killed has left everything frozen, and only another one can thaw it: it is waited for, and nothing else is asked meanwhile.
    private void AskForLeftovers()
    {
        leftoverTimer?.Dispose();
        leftoverTimer = null;
        if (!leftFrozen || State != ComponentState.Ready || current is not null)
            return;
        BeginForLeftovers();
        Enter(FreezePhase.Probing);
        Ask(HotBackup, s_answerLimit, () => Fail("the guest's driver does not answer"));
    }

    private void BeginForLeftovers()
    {
        current = new Transaction(new FreezeOptions()) { ByWatchdog = true, IsForLeftovers = true };
        // Nobody waits for it; that the guest had thawed by itself is no news.
        _ = current.Frozen.Task.ContinueWith(static t => t.Exception, CancellationToken.None, TaskContinuationOptions.ExecuteSynchronously, TaskScheduler.Default);
        _ = current.Thawed.Task.ContinueWith(static t => t.Exception, CancellationToken.None, TaskContinuationOptions.ExecuteSynchronously, TaskScheduler.Default);
        Hold?.Invoke(true);
    }

    private void Enter(FreezePhase next)
    {
        if (phase == next)
            return;
        phase = next;
        PhaseChanged?.Invoke(next);
        Journal?.Invoke(next switch
        {
            FreezePhase.Probing => "asks the guest whether it can freeze its file systems",
            FreezePhase.Freezing => "asks the guest to freeze its file systems",
            FreezePhase.Frozen => "the guest's file systems are frozen",
            FreezePhase.Thawing => "asks the guest to thaw its file systems",
            FreezePhase.Failed => "the guest does not confirm the thaw; its snapshot channel is taken away",
            _ => "nothing is frozen",
        });
    }

    /// <inheritdoc/>
    protected internal override string Save() => $"{base.Save()} {(int)phase}";

    /// <inheritdoc/>
    protected internal override void Restore(string? saved)
    {
        base.Restore(saved);
        string[] words = (saved ?? "").Split(' ');
        FreezePhase was = words.Length > 6 && Enum.TryParse(words[6], out FreezePhase p) && Enum.IsDefined(p) ? p : FreezePhase.Idle;
        // Whoever froze the guest that this one is a copy of is not here. It must not stay frozen.
        leftFrozen = was is FreezePhase.Freezing or FreezePhase.Frozen or FreezePhase.Thawing or FreezePhase.Failed;
        thawTwice = was is FreezePhase.Freezing or FreezePhase.Thawing;
        if (was == FreezePhase.Failed)
            phase = FreezePhase.Failed;
    }

    /// <inheritdoc/>
    protected internal override void Resumed() => ThawWhatWasLeft();

    /// <inheritdoc/>
    public void ThawLeftovers() => Bus.Post(() =>
    {
        // One under way ends in a thaw, too.
        if (current is not null)
            return;
        leftFrozen = true;
        ThawWhatWasLeft();
    });

    // The daemon that has frozen it is there.
    private void ThawWhatWasLeft()
    {
        if (!leftFrozen || State != ComponentState.Ready || current is not null)
            return;
        BeginForLeftovers();
        Journal?.Invoke("the machine was saved, or its monitor ended, while its file systems were frozen");
        Thaw();
    }
}
