using System.Buffers.Binary;
using System.Text;
using Aerostat.Processors;

namespace Aerostat.HyperV.Tests;

/// <summary>What processors share: identity, hypercalls, time, crash reports; and guests that mean no good.</summary>
public sealed class PartitionTests
{
    private const ulong Fast = 1 << 16;

    [Fact]
    public void TheGuestSeesHyperVAndNothingElse()
    {
        CpuidTable table = HyperVCpuid.Add(new CpuidTable(), 2, remoteFlush: true);
        CpuidResult first = table.Get(0x4000_0000, 0);
        byte[] name = new byte[12];
        BinaryPrimitives.WriteUInt32LittleEndian(name, first.Ebx);
        BinaryPrimitives.WriteUInt32LittleEndian(name.AsSpan(4), first.Ecx);
        BinaryPrimitives.WriteUInt32LittleEndian(name.AsSpan(8), first.Edx);
        Assert.Equal("Microsoft Hv", Encoding.ASCII.GetString(name));
        Assert.InRange(first.Eax, 0x4000_0005u, 0x4000_FFFFu);
        // Partition IDs, CPU management and isolation send Linux down other paths.
        Assert.Equal(0u, table.Get(0x4000_0003, 0).Ebx & (1u << 0 | 1u << 1 | 1u << 12 | 1u << 22));
        Assert.Equal(default, table.Get(0x4000_0100, 0));
        Assert.Equal(0u, HyperVCpuid.Add(new CpuidTable(), 2, remoteFlush: false).Get(0x4000_0004, 0).Eax & (1 << 2));
    }

    [Fact]
    public void TheHypercallPageNeedsAnIdentityAndGivesBackWhatItCovered()
    {
        using PartitionFixture f = new();
        Memory.GuestAddress page = new(PartitionFixture.HypercallPage);
        f.Memory.Write(page, 0x1122_3344_5566_7788UL);
        f.Write(0, HyperVMsr.Hypercall, page.Value | 1);
        Assert.Equal(0UL, f.Read(0, HyperVMsr.Hypercall) & 1);
        Assert.False(f[0].Hypercall(new ulong[16], wide: true));
        f.EnableHypercalls();
        byte[] code = new byte[8];
        f.Memory.TryRead(page, code);
        Assert.Equal([0xF3, 0x0F, 0x1E, 0xFA, 0x0F, 0x01, 0xC1, 0xC3], code);
        f.Write(1, HyperVMsr.GuestOsId, 0);
        Assert.Equal(0x1122_3344_5566_7788UL, f.Memory.Read<ulong>(page));
        Assert.Equal(0UL, f.Read(0, HyperVMsr.Hypercall) & 1);
        Assert.False(f[0].Hypercall(new ulong[16], wide: true));
        f.Write(0, HyperVMsr.GuestOsId, 1);
        Assert.False(f[0].WriteMsr(HyperVMsr.Hypercall, 0xFFFF_F000_0000_0001));
        f.Write(0, HyperVMsr.Hypercall, page.Value | 3);
        f.Write(0, HyperVMsr.Hypercall, 0);
        Assert.Equal(page.Value | 3, f.Read(0, HyperVMsr.Hypercall));
    }

    [Fact]
    public void PageAndRegisterTellTheSameTime()
    {
        using PartitionFixture f = new();
        f.Counters[0].Move(12_345_678);
        f.Counters[1].Move(12_345_678);
        f.Write(0, HyperVMsr.ReferenceTsc, PartitionFixture.TscPage | 1);
        Memory.GuestAddress page = new(PartitionFixture.TscPage);
        uint sequence = f.Memory.Read<uint>(page);
        Assert.False(sequence is 0 or uint.MaxValue);
        for (int i = 0; i < 1000; i++)
        {
            f.Time.Advance(TimeSpan.FromTicks(137 * i));
            ulong computed = Math.BigMul(f.Counters[i & 1].Read(), f.Memory.Read<ulong>(page + 8), out _) + f.Memory.Read<ulong>(page + 16);
            Assert.Equal(computed, f.Read(1 - (i & 1), HyperVMsr.TimeRefCount));
        }
        ulong before = f.Read(0, HyperVMsr.TimeRefCount);
        f.Counters[1].Move(5_000_000);
        Assert.Equal(0u, f.Memory.Read<uint>(page));
        Assert.InRange(f.Read(1, HyperVMsr.TimeRefCount), before, before + 10);
        f.Write(0, HyperVMsr.ReferenceTsc, 0);
        Assert.Equal(0UL, f.Memory.Read<ulong>(page + 8));
    }

    [Fact]
    public void ACrashIsReportedWithItsMessage()
    {
        using PartitionFixture f = new();
        byte[] log = Encoding.ASCII.GetBytes("<4>one\n<0>Kernel panic - not syncing: test\u0007\n");
        f.Memory.Write(new(PartitionFixture.Input), log);
        for (uint i = 0; i < 5; i++)
            f.Write(0, HyperVMsr.CrashP0 + i, i == 3 ? PartitionFixture.Input : i == 4 ? (ulong)log.Length : i);
        f.Write(1, HyperVMsr.CrashControl, 3UL << 62);
        GuestCrash crash = Assert.Single(f.Crashes);
        Assert.Contains("Kernel panic - not syncing: test", crash.Summary, StringComparison.Ordinal);
        Assert.DoesNotContain('\u0007', crash.Message!);
        f.Write(0, HyperVMsr.CrashP4, ulong.MaxValue);
        f.Write(0, HyperVMsr.CrashP0 + 3, ulong.MaxValue - 10);
        f.Write(0, HyperVMsr.CrashControl, 3UL << 62);
        Assert.Null(f.Crashes[1].Message);
    }

    private sealed class Ports : IMessagePort, IEventPort
    {
        public List<(uint Type, byte[] Payload)> Messages { get; } = [];
        public List<int> Flags { get; } = [];

        public HypercallStatus Post(uint type, ReadOnlySpan<byte> payload)
        {
            Messages.Add((type, payload.ToArray()));
            return HypercallStatus.Success;
        }

        public HypercallStatus Signal(int flag)
        {
            Flags.Add(flag);
            return HypercallStatus.Success;
        }
    }

    private static ulong Post(PartitionFixture f, uint connection, uint type, uint size, ulong at = PartitionFixture.Input)
    {
        f.Memory.Write(new(PartitionFixture.Input), connection);
        f.Memory.Write(new(PartitionFixture.Input + 8), type);
        f.Memory.Write(new(PartitionFixture.Input + 12), size);
        return f.Call(0x5C, at);
    }

    [Fact]
    public void MessagesAndEventsReachTheirPorts()
    {
        using PartitionFixture f = new();
        f.EnableHypercalls();
        Ports ports = new();
        Assert.True(f.Partition.Connections.Add(1, (IMessagePort)ports));
        Assert.True(f.Partition.Connections.Add(2, (IEventPort)ports));
        Assert.False(f.Partition.Connections.Add(2, (IEventPort)ports));
        Assert.Equal(0UL, Post(f, 1, 1, 240));
        Assert.Equal(240, Assert.Single(ports.Messages).Payload.Length);
        Assert.Equal(0UL, f.Call(0x5D | Fast, 2 | (7UL << 32)));
        Assert.Equal([7], ports.Flags);
        Assert.Equal(
            (18UL, 17UL, 5UL, 5UL, 5UL, 5UL),
            (Post(f, 9, 1, 8), Post(f, 2, 1, 8), Post(f, 1, 1, 241), Post(f, 1, 0, 8), Post(f, 1, 0x8000_0000, 8), Post(f, 0x0100_0001, 1, 8)));
        Assert.Equal((4UL, 4UL, 5UL), (Post(f, 1, 1, 8, PartitionFixture.Input + 4), f.Call(0x5C, PartitionFixture.Input + 0xF80), f.Call(0x5C, 1UL << 40)));
        Assert.Equal((18UL, 17UL, 5UL, 5UL, 5UL), (f.Call(0x5D | Fast, 9), f.Call(0x5D | Fast, 1), f.Call(0x5D | Fast, 1UL << 24), f.Call(0x5D | Fast, 2 | (2048UL << 32)), f.Call(0x5D | Fast, 2 | (1UL << 48))));
        Assert.Equal((2UL, 2UL, 3UL, 3UL, 3UL), (f.Call(0x46), f.Call(0x8002), f.Call(0x5C | Fast), f.Call(0x5D | Fast | (1UL << 32)), f.Call(0x5D | Fast | (1UL << 17))));
        Assert.Equal((3UL, 3UL, 3UL), (f.Call(0x5D | (1UL << 27)), f.Call(0x5D | (1UL << 44)), f.Call(0x5D | (1UL << 63))));
    }

    private static void WriteWords(PartitionFixture f, params ulong[] words)
    {
        for (int i = 0; i < words.Length; i++)
            f.Memory.Write(new(PartitionFixture.Input + ((ulong)i * 8)), words[i]);
    }

    [Fact]
    public void InterruptsGoToTheProcessorsNamed()
    {
        using PartitionFixture f = new(3);
        f.EnableHypercalls();
        Assert.Equal(0UL, f.Call(0x0B | Fast, 0x40, 0b1_0000_0101));
        Assert.Equal((0x40, -1, 0x40), (f.TakeInterrupt(0), f.TakeInterrupt(1), f.TakeInterrupt(2)));
        WriteWords(f, 0x41, 0b010);
        Assert.Equal(0UL, f.Call(0x0B, PartitionFixture.Input));
        Assert.Equal((-1, 0x41, -1), (f.TakeInterrupt(0), f.TakeInterrupt(1), f.TakeInterrupt(2)));
        WriteWords(f, 0x42, 0, 0b101, 0b100, 1);
        Assert.Equal(0UL, f.Call(0x15 | (2UL << 17), PartitionFixture.Input));
        Assert.Equal((-1, -1, 0x42), (f.TakeInterrupt(0), f.TakeInterrupt(1), f.TakeInterrupt(2)));
        WriteWords(f, 0x43, 1, 0);
        Assert.Equal(0UL, f.Call(0x15, PartitionFixture.Input));
        Assert.Equal((0x43, 0x43, 0x43), (f.TakeInterrupt(0), f.TakeInterrupt(1), f.TakeInterrupt(2)));
        WriteWords(f, 0x43, 0, 0b100, 1);
        Assert.Equal(0UL, f.Call(0x15 | (1UL << 17), PartitionFixture.Input));
        Assert.Equal(-1, f.TakeInterrupt(0));
        Assert.Equal((5UL, 5UL, 5UL), (f.Call(0x0B | Fast, 15, 1), f.Call(0x0B | Fast, 256, 1), f.Call(0x0B | Fast, 0x40 | (1UL << 32), 1)));
        // Two banks announced, one given; and an unknown format.
        WriteWords(f, 0x43, 0, 0b11, 1);
        Assert.Equal(3UL, f.Call(0x15 | (1UL << 17), PartitionFixture.Input));
        WriteWords(f, 0x43, 2, 1, 1);
        Assert.Equal(5UL, f.Call(0x15 | (1UL << 17), PartitionFixture.Input));
    }

    [Fact]
    public void FlushesReachTheProcessorsNamed()
    {
        using PartitionFixture f = new(3);
        f.EnableHypercalls();
        WriteWords(f, 0x1234, 2, 0b110);
        Assert.Equal(0UL, f.Call(0x02, PartitionFixture.Input));
        WriteWords(f, 0x1234, 1, 0);
        Assert.Equal(0UL, f.Call(0x02, PartitionFixture.Input));
        WriteWords(f, 0x1234, 0, 0b001, 0x7000_0000, 0x8000_0000);
        Assert.Equal(2UL << 32, f.Call(0x03 | (2UL << 32), PartitionFixture.Input));
        WriteWords(f, 0x1234, 0, 0, 1, 0b011);
        Assert.Equal(0UL, f.Call(0x13 | (1UL << 17), PartitionFixture.Input));
        WriteWords(f, 0x1234, 0, 0, 1, 0b100, 0x7000_0000);
        Assert.Equal(1UL << 32, f.Call(0x14 | (1UL << 17) | (1UL << 32), PartitionFixture.Input));
        Assert.Equal([0b110, ulong.MaxValue, 0b001, 0b011, 0b100], f.Flushed);
        WriteWords(f, 0, 0x10, 1);
        Assert.Equal(5UL, f.Call(0x02, PartitionFixture.Input));
        // A list without entries, and one that runs over its page.
        Assert.Equal((3UL, 4UL), (f.Call(0x03, PartitionFixture.Input), f.Call(0x03 | (600UL << 32), PartitionFixture.Input)));
    }

    [Fact]
    public void NothingThatAGuestDoesThrows()
    {
        int seed = int.TryParse(Environment.GetEnvironmentVariable("AEROSTAT_SEED"), out int given) ? given : 20261121;
        Random random = new(seed);
        using PartitionFixture f = new(3);
        uint[] known = [.. Enumerable.Range(0, 0x120).Select(i => 0x4000_0000u + (uint)i)];
        ulong[] pages = [0, PartitionFixture.MessagePage, PartitionFixture.EventPage, PartitionFixture.Input, 0x00FF_F000, 0x0100_0000, 1UL << 40, ulong.MaxValue & ~0xFFFUL];
        ulong[] codes = [0x02, 0x03, 0x0B, 0x13, 0x14, 0x15, 0x5C, 0x5D];
        ulong Value() => random.Next(5) switch
        {
            0 => (ulong)random.NextInt64(),
            1 => pages[random.Next(pages.Length)] | (uint)random.Next(4),
            2 => (ulong)random.Next(0x20000),
            3 => (ulong)random.Next(1 << 20),
            _ => f.Partition.ReferenceTime + (ulong)random.Next(1000),
        };
        for (int i = 0; i < 200_000; i++)
        {
            int at = random.Next(3);
            uint msr = known[random.Next(known.Length)];
            switch (random.Next(6))
            {
                case 0 or 1:
                    f[at].WriteMsr(msr, Value());
                    break;
                case 2:
                    f[at].ReadMsr(msr, out _);
                    break;
                case 3:
                    f.Time.Advance(TimeSpan.FromTicks(random.Next(2000)));
                    f.Apics[at].AcknowledgeInterrupt();
                    break;
                case 4:
                    ulong[] registers = [.. Enumerable.Range(0, 16).Select(_ => Value())];
                    registers[1] = codes[random.Next(codes.Length)] | (random.Next(3) == 0 ? (ulong)random.NextInt64() << 16 : (ulong)random.Next(2) << 16);
                    f[at].Hypercall(registers, random.Next(8) != 0);
                    break;
                default:
                    f[at].Post(random.Next(16), new SynicMessage(1, 0, new byte[random.Next(241)]));
                    f[at].Signal(random.Next(16), random.Next(2048));
                    break;
            }
            if (i % 5000 == 0)
            {
                HyperVProcessorSavedState state = f[at].Save();
                f[at].Restore(state);
                f.Partition.Restore(f.Partition.Save());
                f.Crashes.Clear();
                f.Flushed.Clear();
            }
        }
        f.Partition.Reset();
        Assert.All(Enumerable.Range(0, 3), i => Assert.Equal(0, f[i].Waiting(2)));
    }
}
