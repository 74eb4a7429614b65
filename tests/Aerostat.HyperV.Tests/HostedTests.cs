using Aerostat.Interrupts;
using Aerostat.Memory;
using Aerostat.Processors;

namespace Aerostat.HyperV.Tests;

/// <summary>A partition on a hypervisor that keeps the local APICs and answers VMCALL itself, as a host's KVM does.</summary>
public sealed class HostedTests
{
    private const byte Port = 0xEC;
    private const ulong AutomaticEnd = 1 << 17, Masked = 1 << 16;

    [Fact]
    public void HypercallsAreMadeWithThePort()
    {
        using PartitionFixture f = new(hypercallPort: Port);
        f.EnableHypercalls();
        Assert.Equal([0xF3, 0x0F, 0x1E, 0xFA, 0xE7, Port, 0xC3, 0], Code(f));
        Assert.NotEqual(0UL, f.Call(0xFFFF));
    }

    /// <summary>The page of a guest that was saved elsewhere calls in the way of the hypervisor that goes on with it; what it covers stays.</summary>
    [Fact]
    public void ARestoredPageCallsInTheWayOfItsNewHypervisor()
    {
        using PartitionFixture before = new();
        before.Memory.Write(new(PartitionFixture.HypercallPage), 0x1122_3344_5566_7788UL);
        before.EnableHypercalls();
        byte[] page = new byte[GuestAddress.PageSize];
        before.Memory.TryRead(new(PartitionFixture.HypercallPage), page);
        using PartitionFixture after = new(hypercallPort: Port);
        after.Memory.Write(new(PartitionFixture.HypercallPage), page);
        after.Partition.Restore(before.Partition.Save());
        Assert.Equal([0xF3, 0x0F, 0x1E, 0xFA, 0xE7, Port, 0xC3, 0], Code(after));
        after.Write(0, HyperVMsr.GuestOsId, 0);
        Assert.Equal(0x1122_3344_5566_7788UL, after.Memory.Read<ulong>(new(PartitionFixture.HypercallPage)));
        using PartitionFixture none = new(hypercallPort: Port);
        none.Memory.Write(new(PartitionFixture.HypercallPage), 5UL);
        using PartitionFixture without = new();
        none.Partition.Restore(without.Partition.Save());
        Assert.Equal(5UL, none.Memory.Read<ulong>(new(PartitionFixture.HypercallPage)));
    }

    [Fact]
    public void InterruptsGoToTheHypervisorsLocalApics()
    {
        Apics apics = new();
        using PartitionFixture f = new(apics: apics);
        f.EnableSynic(1);
        Assert.True(f[1].Post(2, new SynicMessage(1, 77, [1, 2, 3, 4])));
        f[1].Signal(2, 9);
        Assert.Equal([(0xFEE0_1000UL, 0xF3u), (0xFEE0_1000UL, 0xF3u)], apics.Sent);
        // A cluster IPI by hypercall: vector, then processors.
        f.EnableHypercalls();
        Assert.Equal(0UL, f.Call(0x0B | 1 << 16, 0x41, 0b11));
        Assert.Equal([(0xFEE0_0000UL, 0x41u), (0xFEE0_1000UL, 0x41u)], apics.Sent[2..]);
        Assert.Equal((ulong)apics.TimerFrequencyHz, f.Read(0, HyperVMsr.ApicFrequency));
    }

    /// <summary>What only the machine's own local APICs can do is not announced, and is an error where it is used all the same.</summary>
    [Fact]
    public void ShortcutsIntoLocalApicsAreNotThere()
    {
        using PartitionFixture f = new(apics: new Apics());
        foreach (uint index in (uint[])[HyperVMsr.Eoi, HyperVMsr.Icr, HyperVMsr.Tpr])
            Assert.False(f[0].WriteMsr(index, 0) || f[0].ReadMsr(index, out _));
        Assert.False(f[0].WriteMsr(HyperVMsr.Sint0 + 2, 0xF3 | AutomaticEnd));
        Assert.True(f[0].WriteMsr(HyperVMsr.Sint0 + 2, 0xF3 | AutomaticEnd | Masked));
        // Linux writes this register on every processor; nothing is lent.
        f.Write(0, HyperVMsr.VpAssistPage, 0x15_0001);
        Assert.Equal((0x15_0001UL, false), (f.Read(0, HyperVMsr.VpAssistPage), f[0].Save().EndsByFlag));

        CpuidTable own = HyperVCpuid.Add(new CpuidTable(), 2, remoteFlush: false), hosted = HyperVCpuid.Add(new CpuidTable(), 2, remoteFlush: false, hostedApics: true);
        Assert.Equal(1u << 3 | 1u << 4, own.Get(0x4000_0003, 0).Eax ^ hosted.Get(0x4000_0003, 0).Eax);
        Assert.Equal(1u << 19, own.Get(0x4000_0003, 0).Edx ^ hosted.Get(0x4000_0003, 0).Edx);
        Assert.Equal(1u << 5 | 1u << 9, hosted.Get(0x4000_0004, 0).Eax);
    }

    private static byte[] Code(PartitionFixture f)
    {
        byte[] code = new byte[8];
        f.Memory.TryRead(new(PartitionFixture.HypercallPage), code);
        return code;
    }

    private sealed class Apics : IHostedLocalApics
    {
        public List<(ulong Address, uint Data)> Sent { get; } = [];

        public long TimerFrequencyHz => 123_000_000;

        public Action<byte>? EndOfInterrupt { get; set; }

        public int Send(ulong address, uint data)
        {
            Sent.Add((address, data));
            return 1;
        }

        public void Watch(ReadOnlySpan<(ulong Address, uint Data)> messages)
        {
        }

        public HostedLocalApicState Read(int index) => new(0, 0, new byte[1024]);

        public void Write(int index, HostedLocalApicState state)
        {
        }

        public void HoldTime()
        {
        }

        public void ReleaseTime()
        {
        }
    }
}
