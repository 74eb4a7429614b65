using Aerostat.Memory;

namespace Aerostat.VMware;

/// <summary>
/// The time that a vCPU wanted to run and had no processor of the host's, in ticks of its time-stamp counter, in 64 bytes of guest memory that the guest names
/// (Linux: struct vmware_steal_time). The host's figure for the vCPU's thread, looked at a few times a second.
/// </summary>
internal sealed class StealClock(GuestMemory memory, VmwareBackdoorOptions options, Func<int> thread)
{
    // To the guest's question.
    private const uint Disabled = 0, Enabled = 1, NotAvailable = uint.MaxValue;
    private const ulong Disable = 1, Size = 64;
    private static readonly TimeSpan s_period = TimeSpan.FromMilliseconds(50);

    private readonly Lock _gate = new();
    private ITimer? _timer;
    private ulong? _address;
    private TimeSpan? _seen;
    private ulong _published;

    /// <summary>Where it is told; null: nowhere.</summary>
    public ulong? Address
    {
        get
        {
            lock (_gate)
                return _address;
        }
    }

    /// <summary>What was told last.</summary>
    public ulong Published
    {
        get
        {
            lock (_gate)
                return _published;
        }
    }

    /// <summary>STEALCLOCK with an address in ESI:EDI, or 1 to turn it off. On the vCPU's thread. Answers EAX.</summary>
    public uint Configure(uint high, uint low)
    {
        ulong address = ((ulong)high << 32) | low;
        lock (_gate)
        {
            if (options.WaitOf(thread()) is not { } wait)
                return NotAvailable;
            if (address == Disable)
            {
                Stop();
                return Disabled;
            }
            if (address % Size != 0 || !memory.Contains(address, Size))
                return NotAvailable;
            _seen = wait;
            Start(address);
            return Enabled;
        }
    }

    private void Start(ulong address)
    {
        _address = address;
        _timer ??= options.Clock.CreateTimer(_ => Publish(), null, s_period, s_period);
    }

    private void Stop()
    {
        _timer?.Dispose();
        _timer = null;
        _address = null;
        _seen = null;
    }

    // On the timer's thread; not while the machine is paused. What was stolen before a restore is over.
    private void Publish()
    {
        lock (_gate)
        {
            if (_address is not { } address || options.WaitOf(thread()) is not { } wait)
                return;
            TimeSpan stolen = wait - (_seen ?? wait);
            _seen = wait;
            if (stolen <= TimeSpan.Zero)
                return;
            _published += (ulong)((UInt128)(ulong)stolen.Ticks * TimeSpan.NanosecondsPerTick * (UInt128)options.TscFrequencyHz / 1_000_000_000);
            memory.TryWrite(new GuestAddress(address), _published);
        }
    }

    public void Reset()
    {
        lock (_gate)
        {
            Stop();
            _published = 0;
        }
    }

    public void Restore(ulong? address, ulong published)
    {
        lock (_gate)
        {
            Stop();
            _published = published;
            if (address is { } at && at % Size == 0 && memory.Contains(at, Size))
                Start(at);
        }
    }
}
