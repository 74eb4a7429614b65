using Aerostat.Devices;
using Aerostat.Interrupts;
using Aerostat.State;

namespace Aerostat.Chipset;

/// <summary>
/// The PC's programmable interval timer: Intel 8254 data sheet (231164). Counter 0 drives IRQ 0, counter 2 is reached through
/// <see cref="SystemControlPortB"/>.
/// <para>Not emulated: the one clock between the write of a count and its loading, a new count in modes 2 and 3 waiting for the
/// end of the period, DRAM refresh by counter 1 (it counts, nothing listens). The low phases of OUT 0 are not shown on IRQ 0
/// in the periodic modes: each period gives one pulse. Pulses that come before the guest has taken the last one follow when it has
/// (<see cref="TickQueue"/>); a real 8254's would be lost.</para>
/// </summary>
public sealed class Pit : BytePortDevice, IDevice, ISavable<PitSavedState>
{
    // A count of 1 or 2 asks for half a million interrupts a second; the guest gets what a host thread can do.
    private const long ShortestPeriod = 50_000;

    private readonly Lock _lock = new();
    private readonly VmClock _clock;
    private readonly VmTimer _timer;
    private readonly IInterruptLine _irq;
    private readonly PitChannel[] _channels;
    private bool _level;
    private long _edge = long.MaxValue;
    private long _lastPulse = long.MinValue / 2;
    private TickQueue _ticks;

    /// <summary>Makes a timer whose counters have not been programmed.</summary>
    /// <param name="irq0">OUT 0.</param>
    /// <param name="time">VM time.</param>
    public Pit(IInterruptLine irq0, TimeProvider time)
    {
        _irq = irq0;
        _clock = new VmClock(time);
        _timer = new VmTimer(_clock, OnTimer);
        _channels = [new(_clock), new(_clock), new(_clock)];
        if (irq0 is ITickLine tick)
            tick.Taken = () => OnTaken(tick);
    }

    /// <inheritdoc/>
    public string Name => "pit";

    /// <summary>Gate of counter 2, bit 0 of port 0x61.</summary>
    public bool Gate2
    {
        get
        {
            lock (_lock)
                return _channels[2].Gate;
        }
        set
        {
            lock (_lock)
                _channels[2].SetGate(value);
        }
    }

    /// <summary>OUT 2, bit 5 of port 0x61.</summary>
    public bool Output2
    {
        get
        {
            lock (_lock)
                return _channels[2].Output(_clock.Now);
        }
    }

    /// <inheritdoc/>
    public void Reset()
    {
        lock (_lock)
        {
            foreach (PitChannel channel in _channels)
                channel.Reset();
            _ticks.Waiting = 0;
            _lastPulse = long.MinValue / 2;
            Update();
        }
    }

    private protected override bool Decodes(ushort port) => port is >= 0x40 and <= 0x43;

    private protected override byte ReadByte(ushort port)
    {
        lock (_lock)
            // The control port cannot be read.
            return port == 0x43 ? (byte)0 : _channels[port & 3].Read();
    }

    private protected override void WriteByte(ushort port, byte value)
    {
        lock (_lock)
        {
            if (port != 0x43)
            {
                _channels[port & 3].WriteCount(value);
                if ((port & 3) == 0)
                {
                    _ticks.Waiting = 0;
                    Update();
                }
                return;
            }
            int select = value >> 6;
            if (select < 3)
            {
                _channels[select].WriteControl(value);
                // A latch command programs nothing.
                if (select == 0 && (value & 0x30) != 0)
                {
                    _ticks.Waiting = 0;
                    Update();
                }
                return;
            }
            for (int i = 0; i < 3; i++)
            {
                if ((value & 2 << i) != 0)
                    _channels[i].ReadBack(value);
            }
        }
    }

    private void OnTimer()
    {
        lock (_lock)
        {
            _timer.Expired();
            long now = _clock.Now;
            if (now >= _edge)
            {
                PitChannel channel = _channels[0];
                switch (channel.Mode)
                {
                    case 2 or 3:
                        // The host may be late: every period counts, unless they come faster than the host can follow.
                        _lastPulse = now;
                        _ticks.Send(_irq, channel.Period >= ShortestPeriod ? channel.PeriodsSince(_edge, now) : 1);
                        break;
                    case 4 or 5:
                        _lastPulse = now;
                        _irq.Pulse();
                        break;
                }
            }
            Update();
        }
    }

    /// <summary>The guest has taken a tick; on a vCPU's thread.</summary>
    private void OnTaken(ITickLine line)
    {
        lock (_lock)
            _ticks.Resend(line);
    }

    /// <summary>Drives the wire to its steady level and arms the timer for the next edge.</summary>
    private void Update()
    {
        long now = _clock.Now;
        PitChannel channel = _channels[0];
        bool level = channel.Mode is 0 or 1 && channel.Output(now);
        if (level != _level)
        {
            _level = level;
            _irq.Set(level);
        }
        _edge = channel.NextEdge(now);
        _timer.Arm(_edge == long.MaxValue ? _edge : Math.Max(_edge, _lastPulse + ShortestPeriod));
    }

    /// <inheritdoc/>
    public PitSavedState Save()
    {
        lock (_lock)
            return new PitSavedState { Channels = [.. _channels.Select(c => c.Save())], Output = _level, Waiting = _ticks.Waiting };
    }

    /// <inheritdoc/>
    public void Restore(PitSavedState state)
    {
        lock (_lock)
        {
            for (int i = 0; i < _channels.Length; i++)
                _channels[i].Restore(i < state.Channels.Length ? state.Channels[i] : new PitChannelState { Gate = i != 2 });
            _level = state.Output;
            _ticks.Waiting = state.Waiting;
            _irq.Set(_level);
            _lastPulse = long.MinValue / 2;
            _timer.Expired();
            Update();
        }
    }
}

/// <summary>An 8254 at rest.</summary>
[SavedState("pit", 1)]
public sealed record PitSavedState
{
    /// <summary>Counters 0..2.</summary>
    public PitChannelState[] Channels { get; init; } = [];
    /// <summary>Level driven on IRQ 0.</summary>
    public bool Output { get; init; }
    /// <summary>Periodic ticks that the guest has yet to get.</summary>
    public int Waiting { get; init; }
}
