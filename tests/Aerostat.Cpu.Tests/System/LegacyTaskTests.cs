using System.Buffers.Binary;
using Aerostat.Memory;
using Aerostat.Processors;
using Aerostat.X86;
using Iced.Intel;
using Xunit;
using static Iced.Intel.AssemblerRegisters;

namespace Aerostat.Cpu.Tests;

/// <summary>Task gates (Intel SDM vol. 3 section 9.3) and virtual-8086 mode (section 21.2), without paging.</summary>
public class LegacyTaskTests : ProcessorTests
{
    private const ushort NewTask = 0x50;
    private const ulong NewTss = TestMachine.Tss + 0x200, NewStack = TestMachine.KernelStack - 0x400, Handler = TestMachine.UserCode + 0x800;

    // A second task whose code is at Handler, reached through a task gate in the IDT.
    private TestMachine WithTaskGate(int vector, Action<Assembler> handler)
    {
        TestMachine m = Machine(TestMode.Flat);
        byte[] tss = new byte[104];
        Word(tss, 0x20, (uint)Handler);
        Word(tss, 0x24, 2);
        Word(tss, 0x38, (uint)NewStack);
        Word(tss, 0x28, 0x1234);
        foreach (int at in (int[])[0x48, 0x50, 0x54])
            Word(tss, at, TestMachine.KernelSs);
        Word(tss, 0x4C, TestMachine.KernelCs32);
        m.Memory.Write(new GuestAddress(NewTss), tss);
        m.Memory.Write(new GuestAddress(TestMachine.Gdt + NewTask), 0x0000890000000067UL | (NewTss & 0xFFFFFF) << 16);
        // As LTR would have left it.
        m.Memory.Write(new GuestAddress(TestMachine.Gdt + TestMachine.TssSelector + 5), (byte)0x8B);
        m.Assemble(handler, (int)(Handler - TestMachine.UserCode), user: true);
        m.SetGate(vector, 0, NewTask, 0x85);
        return m;
    }

    private static void Word(byte[] bytes, int at, uint value) => BinaryPrimitives.WriteUInt32LittleEndian(bytes.AsSpan(at), value);

    private static uint Field(TestMachine m, ulong tss, int at) => m.Memory.Read<uint>(new GuestAddress(tss + (ulong)at));

    private static int TypeOf(TestMachine m, int selector) => m.Memory.Read<byte>(new GuestAddress(TestMachine.Gdt + (ulong)selector + 5)) & 15;

    /// <summary>An exception through a task gate: the old task is saved, the new one linked to it, and IRET goes back.</summary>
    [Fact]
    public void AnExceptionSwitchesTheTask()
    {
        using TestMachine m = WithTaskGate(Vector.InvalidOpcode, a =>
        {
            a.hlt();
            a.add(__dword_ptr[(uint)(TestMachine.Tss + 0x20)], 2);
            a.iretd();
            // Where the task goes on the next time it is switched to.
            a.hlt();
        });
        ulong start = m.Assemble(
            a =>
            {
                a.mov(ebx, 77);
                a.ud2();
                a.mov(ecx, ebx);
                a.int3();
            },
            user: true);
        m.State.Gpr[0] = 0xAAAA;
        ProcessorState r = m.Run(0, start).State;
        Assert.Equal((Handler + 1, 0x1234UL, NewStack, (ulong)NewTask), (r.Rip, r.Gpr[0], r.Gpr[4], r.Tr.Selector));
        Assert.Equal((ulong)RFlags.Nt, r.Rflags & RFlags.Nt);
        Assert.NotEqual(0UL, r.Cr0 & Cr0.Ts);
        Assert.Equal((start + 5, 0xAAAAUL, 77UL), (Field(m, TestMachine.Tss, 0x20), Field(m, TestMachine.Tss, 0x28), Field(m, TestMachine.Tss, 0x34)));
        Assert.Equal((TestMachine.TssSelector, 11, 11), ((ushort)Field(m, NewTss, 0), TypeOf(m, TestMachine.TssSelector), TypeOf(m, NewTask)));
        r.Activity = ActivityState.Running;
        m.Processor.SetState(r);
        TestResult back = m.Continue();
        Assert.Equal((Vector.Breakpoint, 77UL, 0xAAAAUL), (back.Vector, back.State.Gpr[1], back.State.Gpr[0]));
        Assert.Equal((TestMachine.TssSelector, 11, 9), (back.State.Tr.Selector, TypeOf(m, TestMachine.TssSelector), TypeOf(m, NewTask)));
        Assert.Equal(0UL, back.Rflags & RFlags.Nt);
        Assert.Equal(Handler + 9, Field(m, NewTss, 0x20));
    }

    /// <summary>An error code is pushed on the new task's stack.</summary>
    [Fact]
    public void ErrorCodesGoToTheNewStack()
    {
        using TestMachine m = WithTaskGate(Vector.GeneralProtection, a => a.hlt());
        ulong start = m.Assemble(
            a =>
            {
                a.mov(eax, 0x1238);
                a.mov(ds, ax);
            },
            user: true);
        ProcessorState r = m.Run(0, start).State;
        Assert.Equal((Handler + 1, NewStack - 4), (r.Rip, r.Gpr[4]));
        Assert.Equal(0x1238U, m.Memory.Read<uint>(new GuestAddress(NewStack - 4)));
    }

    /// <summary>A gate to a task that is busy, or to something that is no task, is an exception of the old task.</summary>
    [Theory]
    [InlineData(0x00008B0000000067UL)]
    [InlineData(0x0000890000000066UL)]
    [InlineData(0x0000090000000067UL)]
    [InlineData(0x00CF93000000FFFFUL)]
    public void BadTasksAreRefused(ulong descriptor)
    {
        using TestMachine m = WithTaskGate(Vector.InvalidOpcode, a => a.hlt());
        m.Memory.Write(new GuestAddress(TestMachine.Gdt + NewTask), descriptor | (NewTss & 0xFFFFFF) << 16);
        TestResult r = m.Run(0, m.Assemble(a => a.ud2(), user: true));
        int expected = (descriptor & 0xFFFF) == 0x66 ? Vector.InvalidTss : (descriptor >> 47 & 1) == 0 ? Vector.SegmentNotPresent : Vector.GeneralProtection;
        // The external bit: the exception came from no INT instruction.
        Assert.Equal((expected, NewTask | 1UL, (ulong)TestMachine.TssSelector), (r.Vector, r.Error, r.State.Tr.Selector));
    }

    // Virtual-8086 code at UserCode, with DS = ES at Data.
    private static TestResult RunVm86(TestMachine m, int iopl, params byte[] code)
    {
        m.Code(0, code);
        ProcessorState s = m.State;
        s.Rflags = 2 | RFlags.Vm | RFlags.If | (ulong)(iopl << 12);
        s.Rip = 0;
        ushort[] selectors = [(ushort)(TestMachine.Data >> 4), (ushort)(TestMachine.UserCode >> 4), 0x4200, (ushort)(TestMachine.Data >> 4), 0x1111, 0x2222];
        for (int i = 0; i < 6; i++)
            s.Segments[i] = new SegmentState(selectors[i], (ulong)selectors[i] << 4, 0xFFFF, 0xF3);
        s.Gpr[4] = 0x100;
        m.Processor.SetState(s);
        return m.Continue();
    }

    // In the frame above EFLAGS: ESP, SS, ES, DS, FS, GS.
    private static uint[] Above(TestMachine m, TestResult r, bool error) =>
        [.. Enumerable.Range(0, 6).Select(i => m.Memory.Read<uint>(new GuestAddress(r.State.Gpr[4] + (error ? 16UL : 12) + (ulong)(i * 4))))];

    /// <summary>Segments are real-mode segments; an exception leaves the mode with all of them on the stack, and data segments null.</summary>
    [Fact]
    public void Vm86HasItsOwnFrame()
    {
        using TestMachine m = Machine(TestMode.Flat);
        m.State.Gpr[0] = 0xBEEF;
        // mov [0x10], ax; push ax; ud2
        TestResult r = RunVm86(m, 0, 0xA3, 0x10, 0x00, 0x50, 0x0F, 0x0B);
        Assert.Equal((Vector.InvalidOpcode, 4UL, TestMachine.UserCode >> 4), (r.Vector, r.Rip, r.Cs));
        Assert.Equal((ulong)RFlags.Vm, r.Rflags & RFlags.Vm);
        Assert.Equal([0xFE, 0x4200, (uint)(TestMachine.Data >> 4), (uint)(TestMachine.Data >> 4), 0x1111, 0x2222], Above(m, r, error: false));
        Assert.Equal((0xBEEF, 0xBEEF), (m.Memory.Read<ushort>(new GuestAddress(TestMachine.Data + 0x10)), m.Memory.Read<ushort>(new GuestAddress(0x420FE))));
        Assert.Equal((TestMachine.KernelCs32, TestMachine.KernelSs), (r.State.Segments[1].Selector, r.State.Segments[2].Selector));
        foreach (int i in (int[])[0, 3, 4, 5])
            Assert.Equal((0, SegmentState.Unusable), (r.State.Segments[i].Selector, r.State.Segments[i].Attributes & SegmentState.Unusable));
        Assert.Equal(0UL, r.State.Rflags & RFlags.Vm);
    }

    /// <summary>CLI, STI, PUSHF, POPF, INT n and IRET need an I/O privilege level of 3; HLT and MOV CR are never allowed.</summary>
    [Theory]
    [InlineData(0, Vector.GeneralProtection, new byte[] { 0xFA })]
    [InlineData(0, Vector.GeneralProtection, new byte[] { 0xFB })]
    [InlineData(0, Vector.GeneralProtection, new byte[] { 0x9C })]
    [InlineData(0, Vector.GeneralProtection, new byte[] { 0x9D })]
    [InlineData(0, Vector.GeneralProtection, new byte[] { 0xCD, 0x04 })]
    [InlineData(0, Vector.GeneralProtection, new byte[] { 0xCF })]
    [InlineData(3, Vector.GeneralProtection, new byte[] { 0xF4 })]
    [InlineData(3, Vector.GeneralProtection, new byte[] { 0x0F, 0x20, 0xC0 })]
    [InlineData(3, Vector.Breakpoint, new byte[] { 0xFA, 0xFB, 0x9C, 0x58, 0xCC })]
    [InlineData(3, Vector.Overflow, new byte[] { 0xCD, 0x04 })]
    [InlineData(3, Vector.InvalidOpcode, new byte[] { 0x0F, 0x00, 0xD8 })]
    public void SensitiveInstructions(int iopl, int vector, byte[] code)
    {
        using TestMachine m = Machine(TestMode.Flat);
        TestResult r = RunVm86(m, iopl, code);
        Assert.Equal((vector, 0UL), (r.Vector, r.Error));
        Assert.NotEqual(0UL, r.Rflags & RFlags.Vm);
    }

    /// <summary>IRET from the handler goes back into the mode, with all the segments from the stack.</summary>
    [Fact]
    public void IretGoesBack()
    {
        using TestMachine m = Machine(TestMode.Flat);
        m.Assemble(
            a =>
            {
                a.add(__dword_ptr[esp], 2);
                a.iretd();
            },
            0x800,
            user: true);
        m.SetGate(Vector.InvalidOpcode, TestMachine.UserCode + 0x800, TestMachine.KernelCs32, 0x8E);
        m.State.Gpr[0] = 0x5A5A;
        // ud2; mov fs:[0x20], ax; int3
        TestResult r = RunVm86(m, 0, 0x0F, 0x0B, 0x64, 0xA3, 0x20, 0x00, 0xCC);
        Assert.Equal((Vector.Breakpoint, 7UL), (r.Vector, r.Rip));
        Assert.Equal(0x5A5A, m.Memory.Read<ushort>(new GuestAddress(0x11130)));
    }
}

/// <summary>The same through the translator.</summary>
public sealed class TranslatedLegacyTaskTests : LegacyTaskTests
{
    private protected override bool Translated => true;
}
