namespace Aerostat.HyperV;

/// <summary>One of a processor's four synthetic timers (TLFS, 12.5). The controller that owns it locks, and looks at the clock.</summary>
internal sealed class SyntheticTimer
{
    private const ulong EnableBit = 1, PeriodicBit = 1 << 1, AutoEnableBit = 1 << 3, DirectBit = 1 << 12;

    // What can be written: flags, vector, direct mode, SINT. The rest is reserved and reads as zero.
    private const ulong WritableBits = 0x1FFF | 0xF_0000;

    // Shortest period, 100 ns units: what a guest may cost the host.
    private const ulong ShortestPeriod = 500;

    private ulong config;
    private ulong count;

    /// <summary>The register: bit 0 goes off when a one-shot timer has expired.</summary>
    public ulong Config => config;

    /// <summary>When it expires, or its period.</summary>
    public ulong Count => count;

    /// <summary>Reference time of the next expiry; <see cref="ulong.MaxValue"/>: it does not run.</summary>
    public ulong Due { get; private set; } = ulong.MaxValue;

    /// <summary>A message about an expiry waits for its slot.</summary>
    public bool MessagePending { get; set; }

    /// <summary>When the expiry was due that the message tells of.</summary>
    public ulong ExpiredAt { get; private set; }

    /// <summary>Whether it expires into a vector of the local APIC.</summary>
    public bool IsDirect => (config & DirectBit) != 0;

    /// <summary>That vector.</summary>
    public byte Vector => (byte)(config >> 4);

    /// <summary>Whether it expires into a message, and where.</summary>
    public int Sint => (int)(config >> 16) & 15;

    /// <summary>A write to the configuration register.</summary>
    public void WriteConfig(ulong value, ulong now)
    {
        config = value & WritableBits;
        MessagePending = false;
        // SINT 0 is for the hypervisor's own messages.
        if (!IsDirect && Sint == 0)
            config &= ~EnableBit;
        Start(now);
    }

    /// <summary>A write to the count register.</summary>
    public void WriteCount(ulong value, ulong now)
    {
        count = value;
        MessagePending = false;
        if (value == 0)
            config &= ~EnableBit;
        else if ((config & AutoEnableBit) != 0 && (IsDirect || Sint != 0))
            config |= EnableBit;
        Start(now);
    }

    /// <summary>Looks at the clock; true: it has expired.</summary>
    public bool Expire(ulong now)
    {
        if (Due > now)
            return false;
        ExpiredAt = Due;
        if ((config & PeriodicBit) == 0)
        {
            config &= ~EnableBit;
            Due = ulong.MaxValue;
            return true;
        }
        // Periods that nobody had time for are left out.
        ulong period = Math.Max(count, ShortestPeriod);
        Due = now + period - ((now - Due) % period);
        return true;
    }

    /// <summary>Off.</summary>
    public void Reset()
    {
        config = count = 0;
        MessagePending = false;
        Due = ulong.MaxValue;
    }

    /// <summary>Its state.</summary>
    public SyntheticTimerSavedState Save() => new() { Config = config, Count = count, Due = Due, MessagePending = MessagePending, ExpiredAt = ExpiredAt };

    /// <summary>Puts a state back.</summary>
    public void Restore(SyntheticTimerSavedState state)
    {
        config = state.Config & WritableBits;
        count = state.Count;
        Due = (config & EnableBit) != 0 ? state.Due : ulong.MaxValue;
        MessagePending = state.MessagePending;
        ExpiredAt = state.ExpiredAt;
    }

    private void Start(ulong now)
    {
        if ((config & EnableBit) == 0 || count == 0)
            Due = ulong.MaxValue;
        else if ((config & PeriodicBit) == 0)
            Due = count;
        else
            Due = now + Math.Min(Math.Max(count, ShortestPeriod), long.MaxValue);
    }
}

/// <summary>A synthetic timer at rest.</summary>
public sealed record SyntheticTimerSavedState
{
    /// <summary>Configuration register.</summary>
    public ulong Config { get; init; }
    /// <summary>Count register.</summary>
    public ulong Count { get; init; }
    /// <summary>Reference time of the next expiry.</summary>
    public ulong Due { get; init; }
    /// <summary>A message waits for its slot.</summary>
    public bool MessagePending { get; init; }
    /// <summary>When the expiry was due that it tells of.</summary>
    public ulong ExpiredAt { get; init; }
}
