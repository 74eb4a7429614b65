using Aerostat.Memory;
using Aerostat.Processors;
using Aerostat.X86;
using Xunit;
using static Iced.Intel.AssemblerRegisters;

namespace Aerostat.Cpu.Tests;

/// <summary>The allocation gate: a warm guest costs no managed memory, whatever it does.</summary>
public sealed class AllocationTests
{
    private const ulong Device = 0x4000_0000;
    private const int WarmRounds = 3_000, Rounds = 40_000;

    /// <summary>
    /// Rounds of calls, memory, strings, vectors, branches, CPUID, MSRs, system calls, page faults, port I/O and MMIO, with an interrupt in each
    /// round; far more than ten million instructions are counted.
    /// </summary>
    [Theory]
    [InlineData("interpreter")]
    [InlineData("translator")]
    public void AWarmGuestAllocatesNothing(string accelerator)
    {
        Outside outside = new();
        using TestMachine m = new(TestMode.Long, hypervisor: memory => accelerator == "translator"
            ? new TranslatorHypervisor(memory, TranslationState.DefaultThreshold, hotThreshold: WarmRounds / 2) : new InterpreterHypervisor(memory));
        IVirtualProcessor processor = m.Processor;
        outside.Processor = processor;
        m.Tables.Map(Device, 0x8000_0000, 0x1000, PageTableEntry.P | PageTableEntry.W | PageTableEntry.A | PageTableEntry.D);
        ulong interrupt = m.Assemble(
            a =>
            {
                a.inc(r12);
                a.iretq();
            },
            offset: 0xC00);
        ulong fault = m.Assemble(
            a =>
            {
                // The error code, then on behind the two bytes of the access.
                a.add(rsp, 8);
                a.add(__qword_ptr[rsp], 3);
                a.iretq();
            },
            offset: 0xD00);
        m.SetGate(0x40, interrupt, TestMachine.KernelCs64, ist: 1);
        m.SetGate(Vector.PageFault, fault, TestMachine.KernelCs64, ist: 1);
        ulong code = m.Assemble(a =>
        {
            Iced.Intel.Label round = a.CreateLabel(), inner = a.CreateLabel(), function = a.CreateLabel(), start = a.CreateLabel();
            a.jmp(start);
            a.Label(ref function);
            a.push(rbx);
            a.mov(rbx, __[rsp + 8]);
            a.pop(rbx);
            a.ret();
            a.Label(ref start);
            a.sti();
            a.Label(ref round);
            a.mov(ebx, 100);
            a.Label(ref inner);
            a.mov(rax, __[(uint)TestMachine.Data]);
            a.imul(rax, rax, 77);
            a.mov(__[(uint)TestMachine.Data + 8], rax);
            a.dec(ebx);
            a.jne(inner);
            a.call(function);
            a.mov(edi, (uint)TestMachine.Data);
            a.mov(ecx, 16);
            a.rep.stosq();
            a.movdqu(xmm1, __[rdi]);
            a.paddd(xmm1, xmm1);
            a.xor(eax, eax);
            a.cpuid();
            a.rdtsc();
            a.mov(ecx, 0xC000_0101);
            a.rdmsr();
            a.wrmsr();
            a.mov(rax, cr3);
            a.mov(cr3, rax);
            a.mov(edi, 0x7000_0000);
            a.mov(rax, __[rdi]);
            a.mov(edi, (uint)Device);
            a.mov(eax, __[rdi]);
            a.mov(__[rdi + 4], eax);
            a.@in(eax, 0x60);
            a.@out(0x61, eax);
            // The next interrupt.
            a.mov(al, 1);
            a.@out(0x70, al);
            a.inc(r13);
            a.jmp(round);
        });

        m.Enter(0, code);
        processor.SetState(m.State);
        outside.LeaveAfter = WarmRounds;
        Assert.Equal(ExitReason.HandlerRequest, processor.Run(outside).Reason);
        // What the tiers of the host's own compiler cost is not the guest's doing; nor is the first round after it.
        Thread.Sleep(300);
        outside.LeaveAfter = 100;
        Assert.Equal(ExitReason.HandlerRequest, processor.Run(outside).Reason);
        outside.LeaveAfter = Rounds;
        long before = GC.GetAllocatedBytesForCurrentThread(), instructions = processor.Counters.Instructions;
        before = GC.GetAllocatedBytesForCurrentThread();
        ProcessorExit exit = processor.Run(outside);
        long allocated = GC.GetAllocatedBytesForCurrentThread() - before;
        Assert.Equal(ExitReason.HandlerRequest, exit.Reason);
        Assert.Equal(0, allocated);
        Assert.True(processor.Counters.Instructions - instructions > 10_000_000);
        ProcessorState state = processor.GetState();
        Assert.Equal((ulong)(WarmRounds + 100 + Rounds), state.Gpr[13] + 1);
        Assert.InRange(state.Gpr[12], (ulong)Rounds, state.Gpr[13] + 1);
    }

    /// <summary>The outside world, without memory of what it has seen.</summary>
    private sealed class Outside : IExitHandler
    {
        public IVirtualProcessor? Processor { get; set; }

        public int LeaveAfter { get; set; }

        public ulong TaskPriority { get; set; }

        public bool LocalApicEnabled => true;

        public bool LeaveRequested => LeaveAfter == 0;

        public uint ReadPort(ushort port, int size) => port;

        public void WritePort(ushort port, int size, uint value)
        {
            if (port != 0x70)
                return;
            LeaveAfter--;
            Processor!.SetInterruptRequest(true);
        }

        public ulong ReadMmio(ulong address, int size) => address;

        public void WriteMmio(ulong address, int size, ulong value)
        {
        }

        public bool ReadMsr(uint index, out ulong value)
        {
            value = 0;
            return false;
        }

        public bool WriteMsr(uint index, ulong value) => false;

        public bool Hypercall(IVirtualProcessor processor, Span<ulong> registers) => false;

        public int AcknowledgeInterrupt()
        {
            Processor!.SetInterruptRequest(false);
            return 0x40;
        }
    }
}
