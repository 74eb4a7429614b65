using Aerostat.Devices;
using Aerostat.Guest.Drivers;
using Aerostat.Memory;
using Aerostat.Virtio;
using Aerostat.VMware;

namespace Aerostat.Guest.Tests;

/// <summary>
/// A guest (the balloon's driver, and programs that take pages, write and free them), our device, and a host that wants something, each an actor. At every switch and
/// after each step of the device: no page is both the host's and the guest's, and every program reads what it has written. At the end: all counts agree.
/// </summary>
internal sealed class BalloonWorld : IFreePageHints, IDisposable
{
    private const int Memory = 16 << 20, PageSize = DriverPlatform.PageSize, MostPrograms = 3, MostRounds = 600;

    private readonly HostPlatform platform = new(Memory);
    private readonly Scheduler scheduler;
    private readonly VirtioBalloon? device;
    private readonly VmwareBalloon? vmware;
    private readonly BalloonDriver driver;
    // Of each program's page: what was written, and when it was taken.
    private readonly Dictionary<ulong, (ulong Value, int At, int Order)> programs = [];
    private readonly Queue<ulong> oldest = new();
    private readonly int own;
    private int askedAt;
    private ulong values = 1;
    private bool hostIsDone;
    private int hints;

    /// <param name="scheduler">Where its actors go.</param>
    /// <param name="dialect">"virtio", "2018", "vmware", "vmware batched".</param>
    /// <param name="wishes">What the host wants, one after the other: pages, or a word.</param>
    /// <param name="reporting">Whether free pages are reported.</param>
    /// <param name="early">The queue whose buffers the driver takes back before the device gives them: a fault to be found. -1: none; <see cref="EarlyTransport.Resets"/>: resets.</param>
    public BalloonWorld(Scheduler scheduler, string dialect, string[] wishes, bool reporting = false, int early = -1)
    {
        this.scheduler = scheduler;
        VirtioTransport? transport;
        if (dialect.StartsWith("vmware", StringComparison.Ordinal))
        {
            vmware = platform.Vmware = new VmwareBalloon(platform.Memory, TimeProvider.System);
            transport = VmwareTransport.Open(platform, dialect.EndsWith("batched", StringComparison.Ordinal));
        }
        else
        {
            device = new VirtioBalloon("balloon", new BalloonDeviceOptions { Reporting = reporting, DeflateOnOom = true }, new VirtioContext(platform.Memory, platform) { Step = StepOfDevice });
            transport = VirtioPciTransport.Open(platform, platform.Attach(device));
        }
        if (early != -1)
            transport = new EarlyTransport(transport!, early);
        driver = new BalloonDriver(platform, transport!, dialect == "2018");
        if (driver.Start() is { } wrong)
            throw new InvalidOperationException(wrong);
        own = platform.TakenPages;
        platform.Step = () => scheduler.Step();
        scheduler.Check = Check;
        scheduler.Add("guest", RunGuest);
        scheduler.Add("host", () =>
        {
            foreach (string wish in wishes)
                Want(wish);
            hostIsDone = true;
        });
        if (device is not null)
            scheduler.AddServer("device", () => device.HasWork, () => device.TryRunWork());
    }

    /// <summary>Hints that were taken.</summary>
    public int Hints => hints;

    public ulong Resets => driver.Resets;

    public void Hint(GuestAddress address, ulong length)
    {
        hints++;
        // What was in use when hints were asked for, and has been since, was never free: a write to it before then is in nobody's log.
        foreach ((ulong page, (_, int at, _)) in programs)
            if (page >= address.Value && page < address.Value + length && at < askedAt)
                throw new InvalidOperationException($"page 0x{page:x} is named as free, and was in use all the time");
    }

    public void Finished(bool complete)
    {
    }

    public void Dispose()
    {
        device?.Stop();
        platform.Dispose();
    }

    private void StepOfDevice()
    {
        Check();
        scheduler.Step();
    }

    private void Want(string wish)
    {
        // Others go on for a while between two wishes.
        for (int i = 0; i < 4; i++)
            scheduler.Step(wait: true);
        switch (wish)
        {
            case "wait":
                for (int i = 0; i < 8; i++)
                    scheduler.Step(wait: true);
                break;
            case "hints":
                askedAt = scheduler.Choices.Count;
                device!.TryStartHints(this);
                break;
            case "enough":
                device!.StopHints(release: false);
                break;
            case "done":
                device!.StopHints(release: true);
                break;
            case "statistics":
                device!.RequestStatistics();
                break;
            case "reset":
                vmware?.RequestReset();
                if (device is not null)
                    lock (device.Gate)
                        device.Break("the test wants so");
                break;
            default:
                ulong bytes = ulong.Parse(wish, System.Globalization.CultureInfo.InvariantCulture) * PageSize;
                device?.SetTarget(bytes);
                vmware?.SetTarget(bytes);
                break;
        }
    }

    private void RunGuest()
    {
        for (int round = 0; ; round++)
        {
            for (int i = 0; i < 4 && driver.Service(); i++)
            {
            }
            RunPrograms(round);
            platform.Pass(TimeSpan.FromMilliseconds(300));
            if (hostIsDone && IsAtRest())
                return;
            if (round == MostRounds)
                throw new InvalidOperationException($"not at rest: {driver.Pages} pages, target {driver.Target}, held for hints {driver.HintState?.Held}; {string.Join("; ", platform.Lines)}");
            scheduler.Step(wait: true);
        }
    }

    private void RunPrograms(int round)
    {
        CheckPrograms();
        if (oldest.Count == MostPrograms || (round % 3 == 2 && oldest.Count > 0))
        {
            ulong page = oldest.Dequeue();
            programs.Remove(page, out var was);
            platform.FreePages(page, was.Order);
            return;
        }
        // Large blocks are what is reported and named; of these the first page is looked at.
        int order = round % 2 == 0 ? 0 : 9;
        ulong taken = platform.AllocatePages(order);
        if (taken == 0)
        {
            driver.ReleaseForOom();
            return;
        }
        programs.Add(taken, (values, scheduler.Choices.Count, order));
        // One program keeps its page from the beginning to the end.
        if (values > 1)
            oldest.Enqueue(taken);
        platform.Write64(taken, values);
        platform.Write64(taken + PageSize - 8, values++);
    }

    private bool IsAtRest()
    {
        if (!driver.IsSettled || driver.Target != 0 || (driver.HintState?.Held ?? 0) != 0 || (driver.ReportingState?.IsUnderWay ?? false))
            return false;
        // The hints' page for commands comes with the first run.
        int taken = platform.TakenPages - programs.Values.Sum(p => 1 << p.Order);
        if (taken != own && taken != own + (hints > 0 || driver.HintState is { Runs: > 0 } ? 1 : 0))
            throw new InvalidOperationException($"{taken} pages are taken at rest, not {own}");
        BalloonReport report = device?.GetReport() ?? vmware!.GetReport();
        return report.ActualBytes == 0 && report.GuestActualBytes == 0 && Given().Length == 0;
    }

    private ulong[] Given() => device?.Save().Given ?? vmware!.Save().Locked;

    private void Check()
    {
        ulong[] runs = Given();
        for (int i = 0; i < runs.Length; i += 2)
            for (ulong page = runs[i]; page < runs[i] + runs[i + 1]; page++)
                if (!platform.IsTaken(page) || programs.ContainsKey(page * PageSize))
                    throw new InvalidOperationException($"page 0x{page * PageSize:x} is the host's and the guest's");
        CheckPrograms();
    }

    private void CheckPrograms()
    {
        Span<byte> bytes = stackalloc byte[8];
        foreach ((ulong page, (ulong value, _, _)) in programs)
            foreach (ulong at in (ReadOnlySpan<ulong>)[page, page + PageSize - 8])
            {
                platform.Memory.TryRead(new GuestAddress(at), bytes);
                ulong there = BitConverter.ToUInt64(bytes);
                if (there != value)
                    throw new InvalidOperationException($"a program reads {there} at 0x{at:x}, where it has written {value}");
            }
    }
}

/// <summary>A transport with a fault: of one queue the driver gets buffers back before the device gives them.</summary>
internal sealed class EarlyTransport(VirtioTransport inner, int early) : VirtioTransport
{
    /// <summary>Not a queue: a reset is over as soon as it is asked for.</summary>
    public const int Resets = 99;

    private bool reset;

    public override string Name => inner.Name;

    public override uint Status
    {
        get => reset ? 0 : inner.Status;
        set
        {
            inner.Status = value;
            reset = value == 0 && early == Resets;
        }
    }

    public override ulong Offered => inner.Offered;

    public override void Accept(ulong features) => inner.Accept(features);

    public override DriverQueue? OpenQueue(int index, int most) => inner.OpenQueue(index, most) is { } queue ? index == early ? new Queue(queue) : queue : null;

    public override uint ReadConfig(int offset) => inner.ReadConfig(offset);

    public override void WriteConfig(int offset, uint value) => inner.WriteConfig(offset, value);

    private sealed class Queue(DriverQueue inner) : DriverQueue
    {
        private readonly Queue<uint> early = new();
        // Those that the driver has had back, and the device has not given yet.
        private readonly List<uint> had = [];

        public override int Room => inner.Room;

        public override bool IsBroken => inner.IsBroken;

        public override bool Add(uint token, ulong readable, uint readableLength, ulong writable, uint writableLength) =>
            inner.Add(token, readable, readableLength, writable, writableLength) && Note(token);

        public override bool AddParts(uint token, ulong[] addresses, uint[] lengths, int readable, int count) => inner.AddParts(token, addresses, lengths, readable, count) && Note(token);

        public override void Kick() => inner.Kick();

        public override bool TryTake(out uint token)
        {
            if (early.TryDequeue(out token))
            {
                had.Add(token);
                return true;
            }
            while (inner.TryTake(out token))
                if (!had.Remove(token))
                    return true;
            return false;
        }

        private bool Note(uint token)
        {
            early.Enqueue(token);
            return true;
        }
    }
}
