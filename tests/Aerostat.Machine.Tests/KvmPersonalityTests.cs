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
        CpuidTable table = IPersonality.AddCpuid("kvm", new CpuidTable(), hypercalls: true);
        Assert.Equal(new CpuidResult(0x4000_0001, 0x4B4D564B, 0x564B4D56, 0x4D), table.Get(0x4000_0000, 3));
        Assert.Equal(1u << 3, table.Get(0x4000_0001, 0).Eax & 1u << 3);
        Assert.Equal(default, IPersonality.AddCpuid("none", new CpuidTable(), hypercalls: true).Get(0x4000_0000, 0));
    }

    [Fact]
    public void WithoutHypercallsNoneIsAnnounced()
    {
        CpuidTable table = IPersonality.AddCpuid("kvm", new CpuidTable(), hypercalls: false);
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

    // What the guest does, on a vCPU's thread.
    private static async Task RunAsync(Action<IExitHandler, VirtualMachine> body)
    {
        FakeHypervisor hypervisor = new();
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
