using System.Globalization;
using Aerostat.Devices;
using Aerostat.Platform;

namespace Aerostat.Machine;

/// <summary>
/// Carries a <see cref="BalloonPolicy"/> out: asks it every two seconds of VM time, sets the target, and writes every decision that changes
/// something, with what it came from, to the journal.
/// </summary>
public sealed class BalloonController : IDisposable
{
    private readonly IBalloon _balloon;
    private readonly BalloonPolicy _policy;
    private readonly ulong _memoryBytes;
    private readonly MachineJournal _journal;
    private readonly TimeProvider _clock;
    private readonly Func<HostPressure> _host;
    private readonly ITimer _timer;
    private readonly Lock _gate = new();
    private PolicyState _state = PolicyState.Start;
    private PolicyDecision? _last;
    private bool _manual;
    private int _busy;

    /// <summary>Starts.</summary>
    /// <param name="balloon">The balloon.</param>
    /// <param name="policy">What decides.</param>
    /// <param name="memoryBytes">The machine's memory.</param>
    /// <param name="journal">Where decisions are told.</param>
    /// <param name="clock">VM time.</param>
    /// <param name="host">Reads how short the host is.</param>
    internal BalloonController(IBalloon balloon, BalloonPolicy policy, ulong memoryBytes, MachineJournal journal, TimeProvider clock, Func<HostPressure>? host = null)
    {
        (_balloon, _policy, _memoryBytes, _journal, _clock, _host) = (balloon, policy, memoryBytes, journal, clock, host ?? ReadHost);
        _timer = clock.CreateTimer(_ => Wake(), null, BalloonPolicy.Interval, BalloonPolicy.Interval);
    }

    /// <summary>What decides.</summary>
    public BalloonPolicy Policy => _policy;

    /// <summary>The latest decision; null: none yet.</summary>
    public PolicyDecision? Last
    {
        get
        {
            lock (_gate)
                return _last;
        }
    }

    /// <summary>Somebody has set the target by hand, and the policy rests until it is told to go on.</summary>
    public bool IsResting
    {
        get
        {
            lock (_gate)
                return _manual;
        }
    }

    /// <summary>Rests, or goes on.</summary>
    public void Rest(bool rest)
    {
        lock (_gate)
        {
            if (_manual == rest)
                return;
            _manual = rest;
            _state = PolicyState.Start;
        }
        _journal.Write("balloon-policy", rest ? "has a balloon target set by hand; the policy rests" : "is under its balloon policy again");
    }

    /// <summary>The host as it is now (proc_pressure(5), proc_meminfo(5), control groups).</summary>
    public static HostPressure ReadHost()
    {
        HostMemory memory = HostMemory.Read();
        return new HostPressure(memory.LimitBytes is { } limit ? Math.Min(limit, memory.TotalBytes) : memory.TotalBytes, memory.UsableBytes, HostMemory.ReadPressure());
    }

    /// <summary>Judges now, besides every two seconds.</summary>
    public void Step()
    {
        PolicyDecision decision;
        BalloonReport report;
        HostPressure host;
        lock (_gate)
        {
            if (_manual)
                return;
            report = _balloon.GetReport();
            host = _host();
            decision = _policy.Decide(_state, new PolicyInputs(_clock.GetElapsedTime(0), _memoryBytes, report, host));
            _state = decision.State;
            PolicyReason? before = _last?.Reason;
            _last = decision;
            bool changes = decision.TargetBytes != report.TargetBytes;
            if (changes)
                _balloon.SetTarget(decision.TargetBytes);
            if (changes || before != decision.Reason)
                _journal.Write("balloon-policy", Describe(decision, report, host));
        }
        _balloon.RequestStatistics();
    }

    /// <summary>Ends.</summary>
    public void Dispose() => _timer.Dispose();

    private static string Describe(PolicyDecision d, BalloonReport report, HostPressure host)
    {
        static string Size(ulong? bytes) => bytes is { } b ? string.Create(CultureInfo.InvariantCulture, $"{b >> 20} MiB") : "unknown";
        return string.Create(CultureInfo.InvariantCulture,
            $"{BalloonPolicy.Code(d.Reason)}: balloon target {Size(report.TargetBytes)} -> {Size(d.TargetBytes)}, actual {Size(report.ActualBytes)} ({report.Reason.Code()}); guest keeps {Size(d.KeptBytes)}, uses {Size(d.UsedBytes)}, available {Size(d.AvailableBytes)}, reserve {Size(d.ReserveBytes)}; host available {Size(host.AvailableBytes)} of {Size(host.TotalBytes)}, pressure {(host.SomePercent is { } p ? $"{p:0.0} %" : "unknown")}");
    }

    // On the timer's thread, which others wait for.
    private void Wake()
    {
        if (Interlocked.Exchange(ref _busy, 1) != 0)
            return;
        _ = Task.Run(() =>
        {
            try
            {
                Step();
            }
            catch (Exception e) when (e is IOException or UnauthorizedAccessException or ObjectDisposedException or FormatException)
            {
                _journal.Write("balloon-policy", $"cannot be judged: {e.Message}");
            }
            finally
            {
                Volatile.Write(ref _busy, 0);
            }
        });
    }
}
