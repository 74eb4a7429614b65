using Aerostat.Chipset;
using Aerostat.Interrupts;
using Aerostat.Memory;
using Aerostat.Processors;
using Xunit;

namespace Aerostat.HyperV.Tests;

/// <summary>A partition with a few processors, memory, and time that moves only when a test moves it.</summary>
internal sealed class PartitionFixture : IDisposable
{
    public const ulong MessagePage = 0x10_0000, EventPage = 0x11_0000, HypercallPage = 0x12_0000, TscPage = 0x13_0000, Input = 0x14_0000;

    public PartitionFixture(int processors = 2, GuestMemory? memory = null, byte? hypercallPort = null, IHostedLocalApics? apics = null)
    {
        Memory = memory ?? GuestMemory.CreatePc(16 << 20);
        InterruptFabric fabric = new() { Hosted = apics };
        Counters = [.. Enumerable.Range(0, processors).Select(_ => new Counter(Time))];
        Apics = [.. Enumerable.Range(0, processors).Select(i => new LocalApic(new LocalApicOptions { Id = i }, new Pins(), Counters[i], fabric, Time))];
        foreach (LocalApic apic in Apics.Where(a => !a.IsHosted))
            apic.WriteMmio(0xF0, 4, 0x1FF);
        Partition = new HyperVPartition([.. Counters.Zip(Apics, (c, a) => new PartitionProcessor(c, a))], Memory, Time, new PartitionOptions
        {
            HypercallPort = hypercallPort,
            FlushTranslations = Flushed.Add,
            Crashed = Crashes.Add,
            ReportFree = (address, length) => ReportFree?.Invoke(address, length) ?? false,
        });
    }

    public GuestMemory Memory { get; }
    public ManualTime Time { get; } = new();
    public Counter[] Counters { get; }
    public LocalApic[] Apics { get; }
    public HyperVPartition Partition { get; }
    public List<ulong> Flushed { get; } = [];
    public List<GuestCrash> Crashes { get; } = [];
    public Func<GuestAddress, ulong, bool>? ReportFree { get; set; }

    public HyperVProcessor this[int index] => Partition.Processors[index];

    /// <summary>As a guest's kernel does on each processor.</summary>
    public void EnableSynic(int index, int sint = 2, uint vector = 0xF3, ulong flags = 0)
    {
        Write(index, HyperVMsr.Simp, (MessagePage + ((ulong)index << 12)) | 1);
        Write(index, HyperVMsr.Siefp, (EventPage + ((ulong)index << 12)) | 1);
        Write(index, HyperVMsr.Sint0 + (uint)sint, vector | flags);
        Write(index, HyperVMsr.SControl, 1);
    }

    public void EnableHypercalls()
    {
        Write(0, HyperVMsr.GuestOsId, 0x8100UL << 48);
        Write(0, HyperVMsr.Hypercall, HypercallPage | 1);
    }

    public void Write(int index, uint msr, ulong value) => Assert.True(this[index].WriteMsr(msr, value), $"MSR 0x{msr:x} does not take 0x{value:x}");

    public ulong Read(int index, uint msr)
    {
        Assert.True(this[index].ReadMsr(msr, out ulong value), $"there is no MSR 0x{msr:x}");
        return value;
    }

    public ulong Call(ulong control, ulong input = 0, ulong output = 0)
    {
        ulong[] registers = new ulong[16];
        registers[1] = control;
        registers[2] = input;
        registers[8] = output;
        Assert.True(this[0].Hypercall(registers, wide: true));
        return registers[0];
    }

    public uint MessageType(int index, int sint = 2) => Memory.Read<uint>(new(MessagePage + ((ulong)index << 12) + ((ulong)sint * 256)));

    public byte MessageFlags(int index, int sint = 2) => Memory.Read<byte>(new(MessagePage + ((ulong)index << 12) + ((ulong)sint * 256) + 5));

    public ulong Payload(int index, int sint = 2, int at = 0) => Memory.Read<ulong>(new(MessagePage + ((ulong)index << 12) + ((ulong)sint * 256) + 16 + (ulong)at));

    /// <summary>The guest has read the message: frees the slot, and says so if more wait.</summary>
    public void TakeMessage(int index, int sint = 2)
    {
        Memory.Write(new(MessagePage + ((ulong)index << 12) + ((ulong)sint * 256)), 0u);
        if (MessageFlags(index, sint) != 0)
            Write(index, HyperVMsr.Eom, 0);
    }

    /// <summary>Takes an interrupt and ends it; -1: none waits.</summary>
    public int TakeInterrupt(int index)
    {
        int vector = Apics[index].AcknowledgeInterrupt();
        if (vector >= 0)
            Apics[index].WriteEndOfInterrupt();
        return vector;
    }

    public void Dispose() => Memory.Dispose();

    private sealed class Pins : IProcessorPins
    {
        public void SetInterruptRequest(bool asserted)
        {
        }

        public void RaiseNmi()
        {
        }

        public void RaiseInit()
        {
        }

        public void RaiseStartup(byte vector)
        {
        }
    }

    /// <summary>A time-stamp counter of 1 GHz that a test may move.</summary>
    internal sealed class Counter(ManualTime time) : ITimestampCounter
    {
        private long moved;

        public long FrequencyHz => 1_000_000_000;

        public event Action? Adjusted;

        public ulong Read() => (ulong)(time.GetTimestamp() + moved);

        public void Move(long by)
        {
            moved += by;
            Adjusted?.Invoke();
        }
    }
}

/// <summary>VM time that moves only when a test moves it.</summary>
internal sealed class ManualTime : TimeProvider
{
    private readonly List<Alarm> alarms = [];
    private long now = 1_000_000;

    public override long TimestampFrequency => 1_000_000_000;

    public override long GetTimestamp() => now;

    public override DateTimeOffset GetUtcNow() => DateTimeOffset.UnixEpoch.AddYears(50).AddTicks(now / 100);

    public override ITimer CreateTimer(TimerCallback callback, object? state, TimeSpan dueTime, TimeSpan period)
    {
        Alarm alarm = new(this, () => callback(state));
        alarm.Change(dueTime, period);
        lock (alarms)
            alarms.Add(alarm);
        return alarm;
    }

    public void Advance(TimeSpan by)
    {
        long end = now + (by.Ticks * 100);
        while (true)
        {
            Alarm? next;
            lock (alarms)
                next = alarms.Where(a => a.Due <= end).MinBy(a => a.Due);
            if (next is null)
                break;
            now = Math.Max(now, next.Due);
            next.Ring();
        }
        now = end;
    }

    private sealed class Alarm(ManualTime owner, Action call) : ITimer
    {
        private TimeSpan every;

        public long Due { get; private set; } = long.MaxValue;

        public void Ring()
        {
            Due = every > TimeSpan.Zero ? Due + (every.Ticks * 100) : long.MaxValue;
            call();
        }

        public bool Change(TimeSpan dueTime, TimeSpan period)
        {
            every = period;
            Due = dueTime < TimeSpan.Zero ? long.MaxValue : owner.now + (dueTime.Ticks * 100);
            return true;
        }

        public void Dispose() => Due = long.MaxValue;

        public ValueTask DisposeAsync()
        {
            Dispose();
            return default;
        }
    }
}
