using Aerostat.Processors;
using Xunit;

namespace Aerostat.Machine.Tests;

/// <summary>The clock of the KVM personality.</summary>
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
        CpuidTable table = IPersonality.AddCpuid("kvm", new CpuidTable());
        Assert.Equal(new CpuidResult(0x4000_0001, 0x4B4D564B, 0x564B4D56, 0x4D), table.Get(0x4000_0000, 3));
        Assert.Equal(1u << 3, table.Get(0x4000_0001, 0).Eax & 1u << 3);
        Assert.Equal(default, IPersonality.AddCpuid("none", new CpuidTable()).Get(0x4000_0000, 0));
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
