using Aerostat.Processors;
using Aerostat.X86;
using Iced.Intel;
using Xunit;
using static Iced.Intel.AssemblerRegisters;

namespace Aerostat.Cpu.Tests;

/// <summary>What a processor tells of the exceptions that led to a triple fault (Intel SDM vol. 3 table 7-5).</summary>
public sealed class TripleFaultTests
{
    private const ulong Missing = 0x7F_0000;

    // The frame of six words is checked as a whole, from its lowest address on.
    private const ulong Frame = Missing - 48;

    private static TestMachine Create(bool translated)
    {
        Assert.SkipWhen(translated && !TranslatorHypervisor.IsSupported, "the translator needs an x86-64 host");
        return new TestMachine(TestMode.Long, hypervisor: translated ? memory => new TranslatorHypervisor(memory, threshold: 0) : null);
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void APageFaultWithoutAnInterruptTable(bool translated)
    {
        using TestMachine m = Create(translated);
        m.State.Idtr = new DescriptorTableState(TestMachine.Idt, 0);
        ulong fault = 0;
        ulong code = m.Assemble(a =>
        {
            a.mov(ecx, 100);
            Label loop = a.CreateLabel();
            a.Label(ref loop);
            a.dec(ecx);
            a.jnz(loop);
            a.mov(rbx, (long)Missing);
            a.mov(__dword_ptr[rbx + 4], eax);
        });
        fault = code + 5 + 2 + 2 + 10;
        TestResult r = m.Run(0, code);
        Assert.Equal(ExitReason.Shutdown, r.Exit.Reason);
        Assert.Equal(
            [
                new DeliveredEvent(EventOrigin.Exception, Vector.PageFault, 2, Missing + 4, TestMachine.KernelCs64, m.Processor.GetState().Rip),
                // The gate's place in the IDT, with bit 1 for the IDT and bit 0 for an event from outside the program.
                new DeliveredEvent(EventOrigin.Exception, Vector.GeneralProtection, (Vector.PageFault << 3) | 3, null, TestMachine.KernelCs64, r.State.Rip),
                new DeliveredEvent(EventOrigin.Exception, Vector.DoubleFault, 0, null, TestMachine.KernelCs64, r.State.Rip),
                new DeliveredEvent(EventOrigin.Exception, Vector.GeneralProtection, (Vector.DoubleFault << 3) | 3, null, TestMachine.KernelCs64, r.State.Rip),
            ],
            m.Processor.FaultsBeforeShutdown);
        Assert.Equal(fault, m.Processor.FaultsBeforeShutdown[0].Rip);
    }

    /// <summary>CR2 is overwritten on the way; the first event keeps its own.</summary>
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void APageFaultWhoseHandlersStackIsMissing(bool translated)
    {
        using TestMachine m = Create(translated);
        ulong code = m.Assemble(a =>
        {
            a.mov(rsp, (long)Missing);
            a.mov(rbx, 0x66_0008L);
            a.mov(rax, __qword_ptr[rbx]);
        });
        // No stack of their own: the handlers use the one that is missing.
        m.SetGate(Vector.PageFault, TestMachine.Handlers, TestMachine.KernelCs64);
        m.SetGate(Vector.DoubleFault, TestMachine.Handlers, TestMachine.KernelCs64);
        TestResult r = m.Run(0, code);
        Assert.Equal(ExitReason.Shutdown, r.Exit.Reason);
        IReadOnlyList<DeliveredEvent> events = m.Processor.FaultsBeforeShutdown;
        Assert.Equal([Vector.PageFault, Vector.PageFault, Vector.DoubleFault, Vector.PageFault], events.Select(e => e.Vector));
        Assert.Equal([0x66_0008, Frame, null, Frame], events.Select(e => e.FaultAddress));
        Assert.Equal([0, 2, 0, 2], events.Select(e => (int)e.Error!.Value));
        Assert.All(events, e => Assert.Equal(code + 20, e.Rip));
        Assert.Equal(Frame, r.State.Cr2);
    }

    /// <summary>An interrupt is no exception, but it may be what began.</summary>
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void AnInstructionThatAsks(bool translated)
    {
        using TestMachine m = Create(translated);
        m.State.Idtr = new DescriptorTableState(TestMachine.Idt, 0);
        ulong code = m.Assemble(a => a.@int(0x80));
        Assert.Equal(ExitReason.Shutdown, m.Run(0, code).Exit.Reason);
        IReadOnlyList<DeliveredEvent> events = m.Processor.FaultsBeforeShutdown;
        Assert.Equal(new DeliveredEvent(EventOrigin.Exception, Vector.GeneralProtection, (0x80 << 3) | 2, null, TestMachine.KernelCs64, code), events[0]);
        Assert.Equal([Vector.GeneralProtection, Vector.GeneralProtection, Vector.DoubleFault, Vector.GeneralProtection], events.Select(e => e.Vector));
    }

    /// <summary>An earlier delivery that faulted and was served is not part of the story, and neither is one before a reset.</summary>
    [Fact]
    public void OnlyTheLastChainCounts()
    {
        using TestMachine m = Create(translated: false);
        m.SetGate(Vector.GeneralProtection, TestMachine.Handlers, TestMachine.KernelCs64, 0x0E, 1);
        ulong code = m.Assemble(a => a.mov(rax, __qword_ptr[rbx]));
        m.State.Gpr[3] = 0x8000_0000_0000_0000;
        Assert.Equal(Vector.DoubleFault, m.Run(0, code).Vector);
        Assert.Empty(m.Processor.FaultsBeforeShutdown);
        m.State.Idtr = new DescriptorTableState(TestMachine.Idt, 0);
        ulong undefined = m.Assemble(a => a.ud2(), 0x100);
        Assert.Equal(ExitReason.Shutdown, m.Run(0, undefined).Exit.Reason);
        // #UD is benign: the exception of its delivery takes its place.
        Assert.Equal(
            [Vector.InvalidOpcode, Vector.GeneralProtection, Vector.GeneralProtection, Vector.DoubleFault, Vector.GeneralProtection],
            m.Processor.FaultsBeforeShutdown.Select(e => e.Vector));
        m.Processor.Reset();
        Assert.Empty(m.Processor.FaultsBeforeShutdown);
    }
}
