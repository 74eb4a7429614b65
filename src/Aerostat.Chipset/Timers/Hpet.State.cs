using Aerostat.Interrupts;
using Aerostat.State;

namespace Aerostat.Chipset;

/// <summary>An HPET at rest.</summary>
[SavedState("hpet", 1)]
public sealed record HpetSavedState
{
    /// <summary>General configuration.</summary>
    public ulong Configuration { get; init; }
    /// <summary>General interrupt status.</summary>
    public uint Status { get; init; }
    /// <summary>Main counter.</summary>
    public ulong Counter { get; init; }
    /// <summary>Nanoseconds since the counter took this value.</summary>
    public long Remainder { get; init; }
    /// <summary>The 8254's input.</summary>
    public bool PitLevel { get; init; }
    /// <summary>The RTC's input.</summary>
    public bool RtcLevel { get; init; }
    /// <summary>Comparators 0..2.</summary>
    public HpetComparatorState[] Comparators { get; init; } = [];
}

/// <summary>One comparator at rest.</summary>
public sealed record HpetComparatorState
{
    /// <summary>Configuration, writable bits.</summary>
    public ulong Configuration { get; init; }
    /// <summary>Comparator value.</summary>
    public ulong Value { get; init; }
    /// <summary>Period.</summary>
    public ulong Period { get; init; }
    /// <summary>Ticks to the next match; null: none.</summary>
    public long? UntilMatch { get; init; }
    /// <summary>It holds its interrupt line.</summary>
    public bool Asserted { get; init; }
    /// <summary>Periodic matches that the guest has yet to get.</summary>
    public int Waiting { get; init; }
}

public sealed partial class Hpet
{
    /// <inheritdoc/>
    public HpetSavedState Save()
    {
        lock (_lock)
        {
            CatchUp();
            Arm();
            long ticks = Ticks;
            return new HpetSavedState
            {
                Configuration = _configuration,
                Status = _status,
                Counter = Counter,
                Remainder = IsEnabled ? _clock.Now - _start - ticks * TickNanoseconds : 0,
                PitLevel = _pitLevel,
                RtcLevel = _rtcLevel,
                Comparators = [.. _timers.Select(t => new HpetComparatorState
                {
                    Configuration = t.Configuration,
                    Value = t.Value,
                    Period = t.Period,
                    UntilMatch = t.Next == Never ? null : t.Next - ticks,
                    Asserted = t.Asserted is not null,
                    Waiting = t.Ticks.Waiting,
                })],
            };
        }
    }

    /// <inheritdoc/>
    public void Restore(HpetSavedState state)
    {
        lock (_lock)
        {
            _configuration = state.Configuration & (ConfigEnable | ConfigLegacy);
            _status = state.Status & (1 << TimerCount) - 1;
            _base = state.Counter;
            _start = _clock.Now - Math.Clamp(state.Remainder, 0, TickNanoseconds - 1);
            _pitLevel = state.PitLevel;
            _rtcLevel = state.RtcLevel;
            for (int i = 0; i < TimerCount; i++)
            {
                HpetComparatorState saved = i < state.Comparators.Length ? state.Comparators[i] : new();
                Comparator timer = _timers[i];
                timer.Configuration = saved.Configuration & TimerWritable;
                timer.Value = saved.Value & timer.Mask;
                timer.Period = saved.Period & timer.Mask;
                timer.Next = IsEnabled && saved.UntilMatch is long wait ? wait : Never;
                timer.LastMatch = long.MinValue / 2;
                timer.Asserted = null;
                timer.Ticks.Waiting = saved.Waiting;
            }
            for (int i = 0; i < TimerCount; i++)
            {
                if (i < state.Comparators.Length && state.Comparators[i].Asserted)
                    _timers[i].Asserted = LineOf(i);
            }
            foreach (IInterruptLine? line in _routes)
                line?.Set(_timers.Any(t => t.Asserted == line));
            if (IsLegacy)
            {
                _irq0.Set(_timers[0].Asserted == _irq0);
                _irq8.Set(_timers[1].Asserted == _irq8);
            }
            UpdateLegacy();
            UpdateLines();
            _timer.Expired();
            Arm();
        }
    }
}
