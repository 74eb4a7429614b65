using Aerostat.Processors;

namespace Aerostat.Chipset;

// The timer (Intel SDM vol. 3, 11.5.4): one-shot and periodic down-counting, and TSC-deadline. The counter is never stepped: its
// value follows from the start time. The host timer is armed only for an expiry that would interrupt.
public sealed partial class LocalApic
{
    private const uint DeadlineMsr = 0x6E0;
    private const uint TimerModeMask = 3 << 17;
    private const uint TimerPeriodic = 1 << 17;
    private const uint TimerDeadline = 2 << 17;

    // A guest that asks for a shorter period gets coalesced interrupts instead of the host's whole timer thread.
    private const long ShortestPeriod = 50_000;

    private readonly Lock _timerLock = new();
    private readonly VmClock _clock;
    private readonly ITimestampCounter _timestamp;
    private readonly VmTimer _timer;
    private uint _divide;
    private uint _initialCount;
    private long _countStart;
    private bool _counting;
    private long _nextExpiry = long.MaxValue;
    private long _lastFired;
    private ulong _deadline;

    private bool IsPeriodic => (_lvt[LvtTimer] & TimerModeMask) == TimerPeriodic;

    private bool IsDeadlineMode => (_lvt[LvtTimer] & TimerModeMask) == TimerDeadline;

    private int DivideShift => (int)((_divide & 3 | _divide >> 1 & 4) + 1) & 7;

    private uint InitialCount
    {
        get
        {
            lock (_timerLock)
                return _initialCount;
        }
    }

    private void OnTimer()
    {
        bool fire;
        uint entry;
        lock (_timerLock)
        {
            _timer.Expired();
            if (_initPending)
                return;
            fire = Advance(_clock.Now);
            entry = _lvt[LvtTimer];
            Arm();
        }
        if (fire)
            FireTimer(entry);
    }

    private void OnTimestampAdjusted()
    {
        lock (_timerLock)
        {
            if (_deadline != 0)
                Arm();
        }
    }

    private void FireTimer(uint entry) => AcceptFixed((byte)entry, level: false);

    /// <summary>Passes every expiry up to now; true if there was one that the timer entry lets through.</summary>
    private bool Advance(long now)
    {
        if (IsDeadlineMode)
        {
            if (_deadline == 0 || _timestamp.Read() < _deadline)
                return false;
            _deadline = 0;
        }
        else
        {
            if (now < _nextExpiry)
                return false;
            _nextExpiry = IsPeriodic ? ExpiryAfter(now) : long.MaxValue;
        }
        _lastFired = now;
        return (_lvt[LvtTimer] & LvtMasked) == 0;
    }

    /// <summary>The first wrap of the running counter after <paramref name="now"/>; missed ones are coalesced.</summary>
    private long ExpiryAfter(long now)
    {
        long passed = Elapsed(now) / _initialCount;
        return VmClock.Add(_countStart, VmClock.TimeOfTick((passed + 1) * _initialCount << DivideShift, _options.TimerFrequencyHz));
    }

    /// <summary>Counter steps since the start.</summary>
    private long Elapsed(long now) => VmClock.Ticks(Math.Max(now - _countStart, 0), _options.TimerFrequencyHz) >> DivideShift;

    private void Arm()
    {
        if ((_lvt[LvtTimer] & LvtMasked) != 0)
        {
            _timer.Disarm();
            return;
        }
        if (!IsDeadlineMode)
        {
            _timer.Arm(IsPeriodic && _nextExpiry != long.MaxValue
                ? Math.Max(_nextExpiry, VmClock.Add(_lastFired, ShortestPeriod))
                : _nextExpiry);
            return;
        }
        if (_deadline == 0)
        {
            _timer.Disarm();
            return;
        }
        ulong counter = _timestamp.Read();
        ulong left = _deadline > counter ? _deadline - counter : 0;
        long wait = left > long.MaxValue / 2 ? long.MaxValue / 2 : VmClock.TimeOfTick((long)left, _timestamp.FrequencyHz);
        _timer.Arm(VmClock.Add(_clock.Now, wait));
    }

    private void WriteDeadline(ulong value)
    {
        bool fire = false;
        uint entry;
        lock (_timerLock)
        {
            entry = _lvt[LvtTimer];
            if (!IsDeadlineMode)
                return;
            fire = Advance(0);
            _deadline = value;
            fire |= Advance(0);
            Arm();
        }
        if (fire)
            FireTimer(entry);
    }

    private ulong ReadDeadline()
    {
        bool fire;
        uint entry;
        ulong value;
        lock (_timerLock)
        {
            entry = _lvt[LvtTimer];
            if (!IsDeadlineMode)
                return 0;
            fire = Advance(0);
            value = _deadline;
        }
        if (fire)
            FireTimer(entry);
        return value;
    }

    private uint ReadCurrentCount()
    {
        lock (_timerLock)
            return CurrentCount(_clock.Now);
    }

    private uint CurrentCount(long now)
    {
        if (!_counting || _initialCount == 0 || IsDeadlineMode)
            return 0;
        long elapsed = Elapsed(now);
        if (IsPeriodic)
            return (uint)(_initialCount - elapsed % _initialCount);
        return elapsed >= _initialCount ? 0 : (uint)(_initialCount - elapsed);
    }

    private void WriteInitialCount(uint value)
    {
        bool fire;
        uint entry;
        lock (_timerLock)
        {
            long now = _clock.Now;
            fire = Advance(now);
            entry = _lvt[LvtTimer];
            // In TSC-deadline mode the register is ignored (11.5.4.1).
            if (!IsDeadlineMode)
            {
                _initialCount = value;
                Start(now);
            }
        }
        if (fire)
            FireTimer(entry);
    }

    private void Start(long now)
    {
        _counting = _initialCount != 0;
        _countStart = now;
        _lastFired = now - ShortestPeriod;
        _nextExpiry = _counting ? ExpiryAfter(now) : long.MaxValue;
        Arm();
    }

    private void WriteDivide(uint value)
    {
        bool fire;
        uint entry;
        lock (_timerLock)
        {
            long now = _clock.Now;
            fire = Advance(now);
            entry = _lvt[LvtTimer];
            uint left = CurrentCount(now);
            _divide = value;
            Rebase(now, left);
        }
        if (fire)
            FireTimer(entry);
    }

    /// <summary>Chooses the start time so that the counter shows <paramref name="left"/> now.</summary>
    private void Rebase(long now, uint left)
    {
        _counting = left != 0;
        if (_counting)
        {
            long passed = (long)(_initialCount - left) << DivideShift;
            _countStart = now - VmClock.TimeOfTick(passed, _options.TimerFrequencyHz);
        }
        _nextExpiry = _counting ? ExpiryAfter(now) : long.MaxValue;
        Arm();
    }

    private void WriteTimerEntry(uint value)
    {
        if ((_svr & SoftwareEnable) == 0)
            value |= LvtMasked;
        if (!_options.TscDeadline)
            value &= ~TimerDeadline;
        bool fire;
        uint entry;
        lock (_timerLock)
        {
            long now = _clock.Now;
            fire = Advance(now);
            entry = _lvt[LvtTimer];
            uint left = CurrentCount(now);
            uint change = entry ^ value;
            bool wasPeriodic = IsPeriodic;
            Volatile.Write(ref _lvt[LvtTimer], value);
            if ((change & TimerDeadline) != 0)
            {
                // Going into or out of TSC-deadline mode disarms (11.5.4.1).
                _deadline = 0;
                _counting = false;
                _nextExpiry = long.MaxValue;
                Arm();
            }
            else if (wasPeriodic != IsPeriodic)
            {
                // The counter runs on from where it is.
                Rebase(now, left);
            }
            else
            {
                Arm();
            }
        }
        if (fire)
            FireTimer(entry);
    }

    private void StopTimer()
    {
        lock (_timerLock)
        {
            _divide = 0;
            _initialCount = 0;
            _counting = false;
            _nextExpiry = long.MaxValue;
            _deadline = 0;
            _timer.Disarm();
        }
    }
}
