using Aerostat.Memory;
using Aerostat.Processors;
using Xunit;

namespace Aerostat.Machine.Tests;

/// <summary>The KVM personality: clock, features, end of interrupts, hypercalls.</summary>
public sealed class KvmPersonalityTests
{
    [Theory]
    [InlineData(1_000_000_000)]
    [InlineData(2_300_000_000)]
    [InlineData(3_000_000_001)]
    [InlineData(24_000_000)]
    public void ScaleTurnsTicksIntoNanoseconds(long frequency)
    {
        (uint multiplier, int shift) = KvmPersonality.Scale(frequency);
        Assert.True(multiplier >= 1u << 31);
        ulong ticks = (ulong)frequency;
        ulong shifted = shift < 0 ? ticks >> -shift : ticks << shift;
        var nanoseconds = (long)((UInt128)shifted * multiplier >> 32);
        Assert.InRange(nanoseconds, 999_999_990, 1_000_000_000);
    }

    [Fact]
    public void CountersThatAgreeShareOneMoment()
    {
        Time time = new();
        KvmMasterClock clock = new(time);
        Counter first = new(time), second = new(time), moved = new(time) { Offset = 50_000_000 };
        time.Now = 5_000;
        KvmTimePair a = clock.Read(first);
        time.Now = 900_000;
        KvmTimePair b = clock.Read(second), c = clock.Read(moved);
        Assert.Equal(new KvmTimePair(5_000, 5_000, true), a);
        Assert.Equal(a, b);
        Assert.Equal(new KvmTimePair(50_900_000, 900_000, false), c);
        clock.Reset();
        Assert.Equal(new KvmTimePair(900_000, 900_000, true), clock.Read(first));
    }

    [Fact]
    public void SignatureAndFeaturesAreAnnounced()
    {
        CpuidTable table = IPersonality.AddCpuid("kvm", new CpuidTable(), 1, new FakeHypervisor());
        Assert.Equal(new CpuidResult(0x4000_0001, 0x4B4D564B, 0x564B4D56, 0x4D), table.Get(0x4000_0000, 3));
        Assert.Equal(1u << 3, table.Get(0x4000_0001, 0).Eax & 1u << 3);
        Assert.Equal(default, IPersonality.AddCpuid("none", new CpuidTable(), 1, new FakeHypervisor()).Get(0x4000_0000, 0));
    }

    [Fact]
    public void WithoutHypercallsNoneIsAnnounced()
    {
        CpuidTable table = IPersonality.AddCpuid("kvm", new CpuidTable(), 1, new FakeHypervisor { HypercallPort = 0xEC });
        Assert.Equal(0u, table.Get(0x4000_0001, 0).Eax & 1u << 11);
        // What needs steal time, asynchronous faults and the wake-up by hypercall are never there.
        Assert.Equal(0u, table.Get(0x4000_0001, 0).Eax & (1u << 4 | 1u << 5 | 1u << 7 | 1u << 9 | 1u << 13 | 1u << 14));
    }

    [Fact]
    public async Task TheGuestEndsInterruptsThroughMemory()
    {
        const uint msr = 0x4B56_4D04;
        const ulong apic = 0xFEE0_0000, flag = 0x2000;
        await RunAsync((h, machine) =>
        {
            Assert.False(h.WriteMsr(msr, flag | 3));
            Assert.False(h.WriteMsr(msr, 1UL << 40 | 1));
            Assert.True(h.WriteMsr(msr, flag | 1));
            Assert.True(h.ReadMsr(msr, out ulong value));
            Assert.Equal(flag | 1, value);
            h.WriteMmio(apic + 0xF0, 4, 0x1FF);
            h.WriteMmio(apic + 0x300, 4, 0x40031);
            Assert.Equal(0x31, h.AcknowledgeInterrupt());
            Assert.True(machine.Memory.TryRead(new GuestAddress(flag), out byte set));
            Assert.Equal(1, set);
            machine.Memory.TryWrite(new GuestAddress(flag), (byte)0);
            Assert.Equal(0UL, h.ReadMmio(apic + 0xA0, 4));
            // INIT and reset turn it off.
            h.WriteMsr(0x1B, 0xFEE0_0000);
            Assert.True(h.ReadMsr(msr, out value));
            Assert.Equal(flag, value);
        });
    }

    [Fact]
    public async Task HypercallsAnswer()
    {
        await RunAsync((h, machine) =>
        {
            ulong Call(ulong number, ulong rbx = 0, ulong rcx = 0)
            {
                ulong[] registers = new ulong[16];
                (registers[0], registers[3], registers[1]) = (number, rbx, rcx);
                Assert.True(h.Hypercall(null!, registers));
                return registers[0];
            }
            Assert.Equal(0UL, Call(1));
            Assert.Equal(unchecked((ulong)-1000L), Call(ulong.MaxValue));
            Assert.Equal(unchecked((ulong)-95L), Call(9, 0x3000, 1));
            Assert.Equal(unchecked((ulong)-14L), Call(9, 1UL << 40));
            long before = DateTimeOffset.UtcNow.ToUnixTimeSeconds();
            Assert.Equal(0UL, Call(9, 0x3000));
            Assert.True(machine.Memory.TryRead(new GuestAddress(0x3000), out long seconds));
            Assert.True(machine.Memory.TryRead(new GuestAddress(0x3008), out long nanoseconds));
            // VM time runs with the host's, and began after the machine was built.
            Assert.InRange(seconds, before - 60, before + 60);
            Assert.InRange(nanoseconds, 0, 999_999_999);
        });
    }

    /// <summary>kvmclock's two structures in memory, by either pair of registers; the version is odd only while they change.</summary>
    [Theory]
    [InlineData(0x4B56_4D01u, 0x4B56_4D00u)]
    [InlineData(0x12u, 0x11u)]
    public async Task TheClockIsInMemory(uint systemTime, uint wallClock)
    {
        const ulong At = 0x2000, WallAt = 0x3000, Nowhere = 1UL << 40;
        await RunAsync((h, machine) =>
        {
            Span<byte> time = stackalloc byte[32];
            uint last = 0;
            for (int i = 0; i < 3; i++)
            {
                Assert.True(h.WriteMsr(systemTime, At | 1));
                Assert.True(h.ReadMsr(systemTime, out ulong value));
                Assert.Equal(At | 1, value);
                Assert.True(machine.Memory.TryRead(new GuestAddress(At), time));
                uint version = BitConverter.ToUInt32(time);
                Assert.True(version > last && version % 2 == 0);
                last = version;
                // The counter stands still at zero, at a frequency of 1 GHz.
                Assert.Equal(0UL, BitConverter.ToUInt64(time[8..]));
                (uint multiplier, int shift) = KvmPersonality.Scale(1_000_000_000);
                Assert.Equal((multiplier, (sbyte)shift), (BitConverter.ToUInt32(time[24..]), (sbyte)time[28]));
                Assert.Equal(0, BitConverter.ToUInt16(time[30..]));
            }
            // Off: nothing more is written there.
            machine.Memory.TryWrite(new GuestAddress(At), new byte[32]);
            Assert.True(h.WriteMsr(systemTime, At));
            Assert.True(machine.Memory.TryRead(new GuestAddress(At), time));
            Assert.Equal(new byte[32], time.ToArray());
            Assert.True(h.WriteMsr(wallClock, WallAt));
            Span<byte> wall = stackalloc byte[12];
            Assert.True(machine.Memory.TryRead(new GuestAddress(WallAt), wall));
            Assert.Equal(2u, BitConverter.ToUInt32(wall));
            Assert.InRange(BitConverter.ToUInt32(wall[4..]), DateTimeOffset.UtcNow.ToUnixTimeSeconds() - 600, DateTimeOffset.UtcNow.ToUnixTimeSeconds());
            Assert.InRange(BitConverter.ToUInt32(wall[8..]), 0u, 999_999_999u);
            // Where there is no memory nothing is written, and nothing happens.
            Assert.True(h.WriteMsr(systemTime, Nowhere | 1));
            Assert.True(h.WriteMsr(wallClock, Nowhere));
        });
    }

    /// <summary>Steal time is off, and with it all else that is not announced: the registers do not exist.</summary>
    [Fact]
    public async Task StealTimeIsOff()
    {
        Assert.Equal(0u, IPersonality.AddCpuid("kvm", new CpuidTable(), 1, new FakeHypervisor()).Get(0x4000_0001, 0).Eax & 1u << 5);
        await RunAsync((h, _) =>
        {
            // Asynchronous page faults, steal time, the polling control, the acknowledgement of asynchronous faults, migration control.
            foreach (uint index in (uint[])[0x4B56_4D02, 0x4B56_4D03, 0x4B56_4D05, 0x4B56_4D06, 0x4B56_4D07, 0x4B56_4D08])
            {
                Assert.False(h.ReadMsr(index, out ulong value));
                Assert.False(h.WriteMsr(index, 0x2001));
                Assert.False(h.WriteMsr(index, 0));
            }
        });
    }

    [Fact]
    public async Task IpisAreSentByHypercall()
    {
        const ulong Apic = 0xFEE0_0000;
        await RunAsync((h, _) =>
        {
            ulong Send(ulong low, ulong high, ulong first, ulong command)
            {
                ulong[] registers = new ulong[16];
                (registers[0], registers[3], registers[1], registers[2], registers[6]) = (10, low, high, first, command);
                Assert.True(h.Hypercall(null!, registers));
                return registers[0];
            }
            h.WriteMmio(Apic + 0xF0, 4, 0x1FF);
            // One of them is there.
            Assert.Equal(1UL, Send(ulong.MaxValue, ulong.MaxValue, 0, 0x41));
            Assert.Equal(0x41, h.AcknowledgeInterrupt());
            Assert.Equal(0UL, Send(~1UL, ulong.MaxValue, 0, 0x42));
            Assert.Equal(0UL, Send(ulong.MaxValue, ulong.MaxValue, uint.MaxValue, 0x42));
            // INIT does not go this way.
            Assert.Equal(0UL, Send(1, 0, 0, 0x500));
            Assert.Equal(-1, h.AcknowledgeInterrupt());
        });
    }

    /// <summary>Where a port stands for the instructions, it is a port like any other to guests of this kind, and RAX stays as it is.</summary>
    [Fact]
    public async Task ThePortForHypercallsIsNotForThisPersonality()
    {
        await RunAsync(
            (h, _) =>
            {
                ulong[] registers = [1, .. new ulong[15]];
                Assert.False(h.Hypercall(null!, registers));
                Assert.Equal(1UL, registers[0]);
            },
            new FakeHypervisor { HypercallPort = 0xEC });
    }

    // What the guest does, on a vCPU's thread.
    private static async Task RunAsync(Action<IExitHandler, VirtualMachine> body, FakeHypervisor? hypervisor = null)
    {
        hypervisor ??= new();
        await using VirtualMachine machine = new(new MachineOptions { MemoryBytes = 4 << 20, Boot = new RealModeBootOptions(new byte[] { 0xF4 }) }, hypervisor.Accelerator);
        TaskCompletionSource done = new(TaskCreationOptions.RunContinuationsAsynchronously);
        hypervisor.Processors[0].Steps.Enqueue(h =>
        {
            try
            {
                body(h, machine);
                done.SetResult();
            }
            catch (Exception e)
            {
                done.SetException(e);
            }
            return new(ExitReason.Interrupted);
        });
        await machine.StartAsync();
        await done.Task;
    }

    private sealed class Time : TimeProvider
    {
        public long Now { get; set; }

        public override long TimestampFrequency => 1_000_000_000;

        public override long GetTimestamp() => Now;
    }

    private sealed class Counter(Time time) : ITimestampCounter
    {
        public long Offset { get; init; }

        public long FrequencyHz => 1_000_000_000;

        public event Action? Adjusted
        {
            add { }
            remove { }
        }

        public ulong Read() => (ulong)(time.Now + Offset);
    }
}
