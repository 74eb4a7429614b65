using Aerostat.Memory;
using Aerostat.Processors;

namespace Aerostat.VMware.Tests;

/// <summary>A clock that goes on when it is told to, and calls the timers that are due then.</summary>
internal sealed class ManualClock : TimeProvider
{
    private readonly List<Timer> timers = [];

    public long Milliseconds { get; private set; }

    public DateTimeOffset Epoch { get; init; } = new(2026, 11, 21, 12, 0, 0, TimeSpan.Zero);

    public override long TimestampFrequency => 1000;

    public override long GetTimestamp() => Milliseconds;

    public override DateTimeOffset GetUtcNow() => Epoch + TimeSpan.FromMilliseconds(Milliseconds);

    public void Advance(long milliseconds)
    {
        Milliseconds += milliseconds;
        foreach (Timer timer in timers.ToArray())
            timer.Call();
    }

    public override ITimer CreateTimer(TimerCallback callback, object? state, TimeSpan dueTime, TimeSpan period)
    {
        Timer timer = new(this, () => callback(state));
        timer.Change(dueTime, period);
        timers.Add(timer);
        return timer;
    }

    private sealed class Timer(ManualClock owner, Action callback) : ITimer
    {
        private double due;
        private TimeSpan period;

        public void Call()
        {
            if (owner.Milliseconds < due)
                return;
            due = period > TimeSpan.Zero ? owner.Milliseconds + period.TotalMilliseconds : double.PositiveInfinity;
            callback();
        }

        public bool Change(TimeSpan dueTime, TimeSpan period)
        {
            due = dueTime < TimeSpan.Zero ? double.PositiveInfinity : owner.Milliseconds + dueTime.TotalMilliseconds;
            this.period = period;
            return true;
        }

        public void Dispose() => owner.timers.Remove(this);

        public ValueTask DisposeAsync()
        {
            Dispose();
            return default;
        }
    }
}

/// <summary>A guest's registers and memory, and the machine's side of the ports.</summary>
internal sealed class World : IDisposable
{
    public const ulong MiB = 1 << 20;
    public const uint BalloonMagic = 0x456C_6D6F, BackdoorMagic = 0x564D_5868;

    public World(ulong targetBytes = 0, Func<int, TimeSpan?>? wait = null)
    {
        Balloon = new VmwareBalloon(Memory, Clock, targetBytes);
        Tools = new GuestTools(Clock);
        Backdoor = new VmwareBackdoor(
            new VmwareBackdoorOptions
            {
                Uuid = Guid.Parse("00112233-4455-6677-8899-aabbccddeeff"),
                MemoryBytes = Memory.TotalBytes,
                TscFrequencyHz = 5_000_000_000,
                ApicFrequencyHz = 25_000_000,
                X2Apic = true,
                Clock = Clock,
                HostClock = Clock,
                WaitOf = wait ?? (_ => null),
            },
            Tools);
        Vcpu = new VmwareVcpu(Backdoor, Balloon, Memory, new Counter(Clock), () => 7);
    }

    public ManualClock Clock { get; } = new();

    /// <summary>16 MiB and, after a hole, 3 MiB, of which the last is no whole large page.</summary>
    public GuestMemory Memory { get; } = new(new MemoryRegion(new(0), 16 * MiB, "low"), new MemoryRegion(new(18 * MiB), 3 * MiB, "high"));

    public VmwareBalloon Balloon { get; }

    public GuestTools Tools { get; }

    public VmwareBackdoor Backdoor { get; }

    public VmwareVcpu Vcpu { get; }

    public ulong[] Registers { get; } = new ulong[16];

    public ulong Rcx => Registers[1];

    public ulong Rbx => Registers[3];

    /// <summary>A command to the balloon; answers EAX.</summary>
    public uint Command(uint command, ulong first = 0, ulong second = 0)
    {
        Array.Clear(Registers);
        (Registers[0], Registers[1], Registers[2], Registers[3], Registers[6]) = (BalloonMagic, command, VmwareBalloon.Port, first, second);
        Assert.True(Vcpu.Call(VmwareBalloon.Port, 0, Registers));
        Assert.Equal(Registers[0], (uint)Registers[0]);
        return (uint)Registers[0];
    }

    /// <summary>A command to the backdoor; answers EAX.</summary>
    public uint Call(uint command, int privilege = 3, ulong ebx = 0, ulong esi = 0, ulong edi = 0)
    {
        (Registers[0], Registers[1], Registers[2], Registers[3], Registers[6], Registers[7]) = (BackdoorMagic, command, VmwareBackdoor.Port, ebx, esi, edi);
        Assert.True(Vcpu.Call(VmwareBackdoor.Port, privilege, Registers));
        return (uint)Registers[0];
    }

    /// <summary>Bytes of the guest that the host holds memory for.</summary>
    public ulong Held => Memory.AllocatedBytes;

    public void Dispose() => Memory.Dispose();

    private sealed class Counter(ManualClock clock) : ITimestampCounter
    {
        public long FrequencyHz => 5_000_000_000;

        public event Action? Adjusted
        {
            add { }
            remove { }
        }

        public ulong Read() => (ulong)clock.Milliseconds * 5_000_000;
    }
}
