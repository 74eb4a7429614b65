namespace Aerostat.Guest.Drivers;

/// <summary>
/// The driver of a memory balloon (virtio 1.2, 5.5), on any transport. It never waits: <see cref="Service"/> does what can be done and returns. Free page
/// hints are in BalloonHints, reporting in BalloonReporting.
/// </summary>
/// <remarks>
/// Beside the standard it speaks what VMware's transport of 2010 wanted: HOST_MAY_REFUSE, by which each buffer of frames has a part for the host to write, a
/// byte a frame, OK or not. What the host says is checked: a queue that answers garbage is given up, a reset begins everything anew.
/// </remarks>
public sealed class BalloonDriver
{
    public const ulong MustTellHost = 1, Statistics = 2, DeflateOnOom = 4, Hints = 8, PagePoison = 16, Reporting = 32;

    /// <summary>The host may refuse single pages. It was proposed in 2010 as bit 2, which means something else now: only VMware's transport offers it, by a bit that no device has.</summary>
    public const ulong HostMayRefuse = 1UL << 63;

    /// <summary>What a host that may refuse answers for a page that it takes.</summary>
    public const byte PageOk = 1;

    private const int FramesAtOnce = 256, OomPages = 256, PageShift = 12, MostRefused = 16;
    private const ulong RetryAfter = 200_000_000, AnswerWithin = 1_000_000_000;

    // The page with everything small that the device reads or writes.
    private const uint FramesAt = 0, AnswersAt = 1024, StatisticsAt = 2048;
    private const int TargetAt = 0, ActualAt = 4, CommandIdAt = 8, PoisonAt = 12;
    private const uint StatisticsSize = 10;

    private readonly DriverPlatform platform;
    private readonly VirtioTransport transport;
    private readonly PageLedger ledger;
    private readonly uint[] refused = new uint[FramesAtOnce];
    private readonly bool hintsOf2018;
    private DriverQueue? inflate;
    private DriverQueue? deflate;
    private DriverQueue? statistics;
    private BalloonHints? hints;
    // The command id, and of which configuration it is.
    private uint command;
    private int generation;
    private bool commandIsKnown;
    private BalloonReporting? reporting;
    private ulong page;
    private ulong features;
    private uint underway;
    private bool inflating;
    private bool deflating;
    private ulong retryAt;
    private ulong resetAt;
    private uint reported;
    private bool running;

    /// <summary>Makes a driver; <see cref="Start"/> does the rest.</summary>
    /// <param name="platform">What it may use.</param>
    /// <param name="transport">Where its device is.</param>
    /// <param name="hintsOf2018">Free page hints in the form of June 2018.</param>
    public BalloonDriver(DriverPlatform platform, VirtioTransport transport, bool hintsOf2018 = false)
    {
        this.platform = platform;
        this.transport = transport;
        this.hintsOf2018 = hintsOf2018;
        ledger = new PageLedger(platform.TotalPages);
    }

    public bool IsRunning => running;

    public ulong Features => features;

    public string Transport => transport.Name;

    /// <summary>Pages in the balloon.</summary>
    public uint Pages => ledger.Count;

    /// <summary>Pages that the host wants in it.</summary>
    public uint Target { get; private set; }

    /// <summary>Pages that the host did not take, or did not give back.</summary>
    public ulong Refused { get; private set; }

    /// <summary>Requests for statistics that were answered.</summary>
    public ulong Answers { get; private set; }

    public ulong OomDeflated { get; private set; }

    public ulong Resets { get; private set; }

    /// <summary>Free page hints, when they were negotiated.</summary>
    public BalloonHints? HintState => hints;

    public BalloonReporting? ReportingState => reporting;

    /// <summary>The balloon has what the host wants, and nothing is under way.</summary>
    public bool IsSettled => !inflating && !deflating && ledger.Count == Target;

    /// <summary>Takes the device; null, or what is wrong.</summary>
    public string? Start()
    {
        running = false;
        if (page == 0 && (page = platform.AllocatePages(0)) == 0)
            return "no page for the driver";
        if (!transport.Reset(platform))
            return "the device does not come out of reset";
        transport.Status = VirtioTransport.Acknowledge;
        transport.Status |= VirtioTransport.Driver;
        ulong known = MustTellHost | Statistics | DeflateOnOom | Hints | Reporting | HostMayRefuse | VirtioTransport.Version1 | (platform.PoisonPattern != 0 ? PagePoison : 0);
        features = transport.Offered & known;
        transport.Accept(features);
        transport.Status |= VirtioTransport.FeaturesOk;
        if ((transport.Status & VirtioTransport.FeaturesOk) == 0)
            return Fail("the device does not accept our features");
        if (Has(PagePoison))
            transport.WriteConfig(PoisonAt, platform.PoisonPattern);

        // Queues are numbered as their features come, without gaps.
        int index = 2;
        inflate = transport.OpenQueue(0, FramesAtOnce);
        deflate = transport.OpenQueue(1, FramesAtOnce);
        statistics = Has(Statistics) ? transport.OpenQueue(index++, 16) : null;
        DriverQueue? hintQueue = Has(Hints) ? transport.OpenQueue(index++, 1024) : null;
        DriverQueue? reportQueue = Has(Reporting) ? transport.OpenQueue(index, 256) : null;
        if (inflate is null || deflate is null || (Has(Statistics) && statistics is null) || (Has(Hints) && hintQueue is null) || (Has(Reporting) && reportQueue is null))
            return Fail("the device lacks a queue");
        if (hintQueue is null)
            hints = null;
        else if (hints is null)
            hints = new BalloonHints(platform, hintQueue, hintsOf2018);
        else
            hints.Restart(hintQueue);
        if (reportQueue is null)
            reporting = null;
        else if (reporting is null)
            reporting = new BalloonReporting(platform, reportQueue);
        else
            reporting.Restart(reportQueue);
        transport.Status |= VirtioTransport.DriverOk;
        commandIsKnown = false;
        running = true;
        inflating = deflating = false;
        if (statistics is not null)
            SendStatistics();
        return null;
    }

    // Only what the device has told of counts: QEMU's shows no id at all while it takes hints.
    private void LookAtCommand()
    {
        int now = transport.Generation;
        if (hints is null || (commandIsKnown && now >= 0 && now == generation))
            return;
        commandIsKnown = true;
        generation = now;
        command = transport.ReadConfig(CommandIdAt);
    }

    /// <summary>Does what can be done; to be called after each interrupt of the device, and at times.</summary>
    /// <returns>Whether there is more to do without waiting for an interrupt.</returns>
    public bool Service()
    {
        if (!running || inflate is null || deflate is null)
            return false;
        transport.Poll();
        if (transport.ResetPending)
        {
            if (platform.Nanoseconds >= resetAt)
                BeginAnew();
            return false;
        }
        if (inflate.IsBroken || deflate.IsBroken)
            return GiveUp();
        while (inflate.TryTake(out _))
            FinishInflate();
        while (deflate.TryTake(out _))
            FinishDeflate();
        if (statistics is not null && statistics.TryTake(out _))
        {
            Answers++;
            SendStatistics();
        }
        LookAtCommand();
        reporting?.Service(hints is null || !hints.IsWanted(command));
        bool more = hints?.Service(command, reporting?.IsUnderWay ?? false) ?? false;
        Target = transport.ReadConfig(TargetAt);
        if (!inflating && !deflating && !transport.ResetPending)
        {
            if (ledger.Count < Target && platform.Nanoseconds >= retryAt)
                BeginInflate(Target - ledger.Count);
            else if (ledger.Count > Target)
                BeginDeflate(ledger.Count - Target);
        }
        if (ledger.Count != reported && !inflating && !deflating)
            transport.WriteConfig(ActualAt, reported = ledger.Count);
        return more || ((inflating || deflating) && transport.AnswersAtOnce);
    }

    /// <summary>Somebody found no page: gives some back if the host allows it (DEFLATE_ON_OOM), and blocks held for hints.</summary>
    /// <returns>Whether there are more free pages than before.</returns>
    public bool ReleaseForOom()
    {
        bool released = hints?.ReleaseForOom() ?? false;
        if (!running || deflate is null || !Has(DeflateOnOom) || !Finish() || ledger.Count == 0)
            return released;
        uint before = ledger.Count;
        BeginDeflate(OomPages);
        bool finished = Finish();
        OomDeflated += before - ledger.Count;
        transport.WriteConfig(ActualAt, reported = ledger.Count);
        retryAt = platform.Nanoseconds + RetryAfter;
        return released || (finished && ledger.Count < before);
    }

    // The one place that waits, for the caller has no memory to go on with: until the host has answered for what is under way, and not for ever.
    private bool Finish()
    {
        ulong begun = platform.Nanoseconds;
        while (inflating || deflating)
        {
            if (inflate is null || deflate is null || inflate.IsBroken || deflate.IsBroken || platform.Nanoseconds - begun > AnswerWithin)
                return false;
            while (inflate.TryTake(out _))
                FinishInflate();
            while (deflate.TryTake(out _))
                FinishDeflate();
        }
        return true;
    }

    private bool Has(ulong feature) => (features & feature) != 0;

    private string Fail(string why)
    {
        transport.Status |= VirtioTransport.Failed;
        return why;
    }

    // Pages that are in the balloon stay there: whether the host still has them is not known.
    private bool GiveUp()
    {
        running = false;
        platform.Log("balloon: given up, for the host does not keep to the protocol");
        return false;
    }

    // The host has forgotten what it took: its pages are ours again without a word to it.
    private void BeginAnew()
    {
        platform.Log("balloon: the host wants a reset; pages taken back: ", ledger.Count);
        Resets++;
        // A host that wants the next one at once does not keep us busy with it.
        resetAt = platform.Nanoseconds + AnswerWithin;
        // Until the device is out of its reset it may be at work on what it has been given.
        bool anew = transport.CompleteReset();
        if (anew && !transport.Reset(platform))
        {
            GiveUp();
            return;
        }
        hints?.Abandon();
        reporting?.Abandon();
        if (inflating || deflating)
            for (uint i = 0; i < underway; i++)
                platform.FreePages((ulong)Frame(i) << PageShift, 0);
        while (ledger.Count > 0)
            platform.FreePages((ulong)ledger.Pop() << PageShift, 0);
        inflating = deflating = false;
        reported = 0;
        if (!anew)
            return;
        string? wrong = Start();
        if (wrong is not null)
            platform.Log(wrong);
    }

    private uint Frame(uint i) => platform.Read(page + FramesAt + (4 * i), 4);

    private void BeginInflate(uint wanted)
    {
        if (inflate is null)
            return;
        uint count = 0;
        while (count < FramesAtOnce && count < wanted)
        {
            ulong taken = platform.AllocatePages(0);
            if (taken == 0)
                break;
            platform.Write(page + FramesAt + (4 * count++), 4, (uint)(taken >> PageShift));
        }
        if (count < FramesAtOnce && count < wanted)
        {
            retryAt = platform.Nanoseconds + RetryAfter;
            if (count == 0)
                return;
        }
        underway = count;
        inflating = Send(inflate);
        if (!inflating)
            for (uint i = 0; i < count; i++)
                platform.FreePages((ulong)Frame(i) << PageShift, 0);
    }

    private void BeginDeflate(uint wanted)
    {
        if (deflate is null)
            return;
        uint count = 0;
        while (count < FramesAtOnce && count < wanted && ledger.Count > 0)
            platform.Write(page + FramesAt + (4 * count++), 4, ledger.Pop());
        underway = count;
        deflating = Send(deflate);
        if (!deflating)
            while (count > 0)
                ledger.Push(Frame(--count));
    }

    private bool Send(DriverQueue queue)
    {
        bool added = queue.Add(0, page + FramesAt, 4 * underway, page + AnswersAt, Has(HostMayRefuse) ? underway : 0);
        if (added)
            queue.Kick();
        return added;
    }

    private bool IsTaken(uint i) => !Has(HostMayRefuse) || platform.Read(page + AnswersAt + i, 1) == PageOk;

    private void FinishInflate()
    {
        int refusedCount = 0;
        for (uint i = 0; i < underway; i++)
            if (IsTaken(i))
                ledger.Push(Frame(i));
            else
                refused[refusedCount++] = Frame(i);
        // Kept until now, so that the same page was not offered again.
        for (int i = 0; i < refusedCount; i++)
            platform.FreePages((ulong)refused[i] << PageShift, 0);
        Refused += (ulong)refusedCount;
        if (refusedCount >= MostRefused || refusedCount == underway)
            retryAt = platform.Nanoseconds + RetryAfter;
        inflating = false;
    }

    // With MUST_TELL_HOST pages may be used only now; without it they could have been before.
    private void FinishDeflate()
    {
        for (uint i = 0; i < underway; i++)
            if (IsTaken(i))
            {
                platform.FreePages((ulong)Frame(i) << PageShift, 0);
            }
            else
            {
                refused[0] = Frame(i);
                ledger.Push(refused[0]);
                Refused++;
            }
        deflating = false;
    }

    // Tag and value, 10 bytes each (5.5.6.3): free memory, all memory, what could be had without harm.
    private void SendStatistics()
    {
        if (statistics is null)
            return;
        ulong inBalloon = Has(DeflateOnOom) ? 0 : ledger.Count;
        Statistic(0, 4, platform.FreePageCount << PageShift);
        Statistic(1, 5, (platform.TotalPages - inBalloon) << PageShift);
        Statistic(2, 6, platform.FreePageCount << PageShift);
        if (statistics.Add(0, page + StatisticsAt, 3 * StatisticsSize, 0, 0))
            statistics.Kick();
    }

    private void Statistic(uint index, uint tag, ulong value)
    {
        ulong at = page + StatisticsAt + (index * StatisticsSize);
        platform.Write(at, 2, tag);
        platform.Write(at + 2, 4, (uint)value);
        platform.Write(at + 6, 4, (uint)(value >> 32));
    }
}
