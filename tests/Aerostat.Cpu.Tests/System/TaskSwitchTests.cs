using System.Buffers.Binary;
using Aerostat.Memory;
using Aerostat.Processors;
using Aerostat.X86;
using Xunit;
using static Iced.Intel.AssemblerRegisters;

namespace Aerostat.Cpu.Tests;

/// <summary>JMP, CALL and IRET between tasks (Intel SDM vol. 3 sections 9.3 to 9.6); task gates of interrupts are in <see cref="LegacyTaskTests"/>.</summary>
public class TaskSwitchTests : ProcessorTests
{
    private const ushort NewTask = 0xC8, TaskGate = 0xD0, NewLdt = 0xD8;
    private const uint NewTss = 0x3A00, NewStack = 0xB000, NewCode = 0x6000;
    private const ushort OldTask = SystemGuest.TssSelector;

    private SystemGuest WithTask(int dpl = 0)
    {
        SystemGuest g = Guest(GuestMode.Protected32);
        g.State.Gdtr = new DescriptorTableState(SystemGuest.Gdt, 0xFF);
        g.WriteDescriptor(NewTask, SystemGuest.Segment(NewTss, 0x67, (uint)(0x89 | dpl << 5), 0));
        g.WriteDescriptor(TaskGate, (ulong)NewTask << 16 | 0xE5UL << 40);
        g.WriteDescriptor(NewLdt, SystemGuest.Segment(SystemGuest.Ldt, 0xF, 0x82, 0));
        byte[] tss = new byte[104];
        Set(tss, 0x20, NewCode);
        Set(tss, 0x24, 2 | (uint)RFlags.Cf);
        for (int i = 0; i < 8; i++)
            Set(tss, 0x28 + (i * 4), i == 4 ? NewStack : 0x1111_1111u * (uint)(i + 1));
        ushort[] selectors = [SystemGuest.UserData, SystemGuest.Code32, SystemGuest.Data0, SystemGuest.Data0, 0, SystemGuest.DataReadOnly];
        for (int i = 0; i < 6; i++)
            Set(tss, 0x48 + (i * 4), selectors[i]);
        g.Memory.Write(new GuestAddress(NewTss), tss);
        g.Place(NewCode, 32, a => a.hlt());
        Point(g, NewTask);
        g.State.Gpr[3] = SystemGuest.Data;
        return g;
    }

    private static void Set(byte[] tss, int at, uint value) => BinaryPrimitives.WriteUInt32LittleEndian(tss.AsSpan(at), value);

    private static void Point(SystemGuest g, ushort selector) => g.Memory.Write(new GuestAddress(SystemGuest.Data + 4), selector);

    private static uint Old(SystemGuest g, uint at) => g.Memory.Read<uint>(new GuestAddress(SystemGuest.Tss + at));

    private static void New(SystemGuest g, uint at, uint value) => g.Memory.Write(new GuestAddress(NewTss + at), value);

    private static int TypeOf(SystemGuest g, int selector) => (int)(g.ReadDescriptor(selector) >> 40) & 15;

    [Fact]
    public void AJumpExchangesTheWholeState()
    {
        using SystemGuest g = WithTask();
        g.State.Dr[7] = 0x5FF;
        g.State.Dr[0] = g.State.Dr[1] = g.State.Dr[2] = g.State.Dr[3] = 0x3F_0000;
        g.State.Gpr[6] = 0x1234_5678;
        g.Run(a =>
        {
            a.stc();
            a.jmp(__fword_ptr[ebx]);
        }).Ended();
        // What was, in the old TSS: EIP behind the JMP, flags, registers, selectors.
        Assert.Equal((SystemGuest.Code + 3, 3u, 0x1234_5678u, SystemGuest.Stack), (Old(g, 0x20), Old(g, 0x24) & 0xFFFF, Old(g, 0x40), Old(g, 0x38)));
        Assert.Equal((SystemGuest.Code32, SystemGuest.Data0), ((ushort)Old(g, 0x4C), (ushort)Old(g, 0x50)));
        // What is, out of the new one.
        ProcessorState r = g.Result;
        Assert.Equal((NewCode + 1, NewTask, NewTss, (ulong)NewStack), (r.Rip, r.Tr.Selector, r.Tr.Base, r.Gpr[4]));
        for (int i = 0; i < 8; i++)
            if (i != 4)
                Assert.Equal(0x1111_1111u * (uint)(i + 1), r.Gpr[i]);
        Assert.Equal((SystemGuest.UserData, SystemGuest.Code32, SystemGuest.Data0, 0, SystemGuest.DataReadOnly), (r.Segments[0].Selector, r.Segments[1].Selector, r.Segments[2].Selector, r.Segments[4].Selector, r.Segments[5].Selector));
        Assert.Equal(SegmentState.Unusable, r.Segments[4].Attributes & SegmentState.Unusable);
        Assert.Equal((2UL | RFlags.Cf, Cr0.Ts), (r.Rflags, r.Cr0 & Cr0.Ts));
        // Local breakpoints are off, global ones are not.
        Assert.Equal(0x4AAUL, r.Dr[7] & 0x4FF);
        Assert.Equal((9, 11, 0u), (TypeOf(g, OldTask), TypeOf(g, NewTask), g.Memory.Read<uint>(new GuestAddress(NewTss)) & 0xFFFF));
    }

    [Theory]
    [InlineData(NewTask, false)]
    [InlineData(TaskGate, false)]
    [InlineData(TaskGate, true)]
    public void ACallIsReturnedFrom(ushort selector, bool user)
    {
        using SystemGuest g = WithTask();
        Point(g, selector);
        g.Place(NewCode, 32, a =>
        {
            a.pushfd();
            a.pop(eax);
            a.mov(__dword_ptr[SystemGuest.Data + 16], eax);
            a.iretd();
            // Where the task goes on at the next switch.
            a.hlt();
        });
        if (user)
        {
            // What the way back loads must be the user's.
            g.AsUser();
            g.State.Segments[4] = g.State.Segments[5] = new SegmentState(0, 0, 0, SegmentState.Unusable);
        }
        g.State.Gpr[7] = 77;
        g.Run(a =>
        {
            a.call(__fword_ptr[ebx]);
            a.lea(eax, __[edi + 1]);
            a.ud2();
        }).Raised(Vector.InvalidOpcode);
        Assert.Equal((78UL, 77UL, OldTask), (g.Rax, g.Result.Gpr[7], g.Result.Tr.Selector));
        Assert.Equal(user ? SystemGuest.UserCode32 : SystemGuest.Code32, g.Frame[1]);
        if (user)
            Assert.Equal([SystemGuest.UserStack, SystemGuest.UserData], g.Frame[3..]);
        // Linked, nested while it lasted, free again afterwards.
        Assert.NotEqual(0u, g.Memory.Read<uint>(new GuestAddress(SystemGuest.Data + 16)) & (uint)RFlags.Nt);
        Assert.Equal((OldTask, 11, 9), (g.Memory.Read<ushort>(new GuestAddress(NewTss)), TypeOf(g, OldTask), TypeOf(g, NewTask)));
        Assert.Equal(0UL, g.Frame[2] & RFlags.Nt);
        Assert.Equal(NewCode + 8, g.Memory.Read<uint>(new GuestAddress(NewTss + 0x20)));
        Assert.Equal(0u, g.Memory.Read<uint>(new GuestAddress(NewTss + 0x24)) & (uint)RFlags.Nt);
    }

    [Fact]
    public void SixteenBitTasks()
    {
        using SystemGuest g = WithTask();
        g.WriteDescriptor(NewTask, SystemGuest.Segment(NewTss, 0x2B, 0x81, 0));
        ushort[] words = new ushort[22];
        (words[7], words[8]) = ((ushort)NewCode, 2);
        for (int i = 0; i < 8; i++)
            words[9 + i] = i == 4 ? (ushort)NewStack : (ushort)(0x101 * (i + 1));
        (words[17], words[18], words[19], words[20]) = (SystemGuest.UserData, SystemGuest.Code32, SystemGuest.Data0, SystemGuest.Data0);
        g.Memory.Write(new GuestAddress(NewTss), System.Runtime.InteropServices.MemoryMarshal.AsBytes<ushort>(words));
        g.Run(a => a.jmp(__fword_ptr[ebx])).Ended();
        Assert.Equal((NewCode + 1UL, (ulong)NewStack, 0x101UL, 0x808UL), (g.Result.Rip, g.Result.Gpr[4] & 0xFFFF, g.Rax & 0xFFFF, g.Result.Gpr[7] & 0xFFFF));
        Assert.Equal((0, 0, 3), (g.Result.Segments[4].Selector, g.Result.Segments[5].Selector, TypeOf(g, NewTask)));
    }

    [Fact]
    public void TheLocalTableIsTheTasks()
    {
        using SystemGuest g = WithTask();
        New(g, 0x60, NewLdt);
        New(g, 0x54, 4); // DS out of the local table
        g.Run(a => a.jmp(__fword_ptr[ebx])).Ended();
        Assert.Equal((NewLdt, (ulong)SystemGuest.Ldt, 0x1234UL), (g.Result.Ldtr.Selector, g.Result.Ldtr.Base, g.Result.Segments[3].Base));
    }

    [Fact]
    public void TheTrapBitIsADebugException()
    {
        using SystemGuest g = WithTask();
        New(g, 0x64, 1);
        g.Run(a => a.jmp(__fword_ptr[ebx])).Raised(Vector.Debug);
        Assert.Equal((NewCode, NewTask, 1UL << 15), ((uint)g.Frame[0], g.Result.Tr.Selector, g.Result.Dr[6] & (1 << 15)));
    }

    /// <summary>Before the switch is made its faults are the old task's, at the instruction.</summary>
    [Theory]
    [InlineData("busy", Vector.GeneralProtection, (uint)NewTask)]
    [InlineData("short", Vector.InvalidTss, (uint)NewTask)]
    [InlineData("absent", Vector.SegmentNotPresent, (uint)NewTask)]
    [InlineData("level", Vector.GeneralProtection, (uint)NewTask)]
    [InlineData("absent gate", Vector.SegmentNotPresent, (uint)TaskGate)]
    [InlineData("gate to data", Vector.GeneralProtection, (uint)SystemGuest.Data0)]
    [InlineData("gate to a local table", Vector.GeneralProtection, 4u)]
    public void FaultsOfTheOldTask(string wrong, int vector, uint error)
    {
        using SystemGuest g = WithTask();
        ulong type = wrong == "busy" ? 0x8Bu : wrong == "absent" ? 9u : 0x89;
        g.WriteDescriptor(NewTask, SystemGuest.Segment(NewTss, wrong == "short" ? 0x66u : 0x67, (uint)type, 0));
        if (wrong.Contains("gate", StringComparison.Ordinal))
        {
            Point(g, TaskGate);
            ushort to = wrong == "gate to data" ? SystemGuest.Data0 : wrong == "gate to a local table" ? (ushort)4 : NewTask;
            g.WriteDescriptor(TaskGate, (ulong)to << 16 | (wrong == "absent gate" ? 5UL : 0x85) << 40);
        }
        if (wrong == "level")
            g.AsUser();
        g.Run(a => a.call(__fword_ptr[ebx])).Raised(vector, error);
        Assert.Equal((SystemGuest.Code, OldTask, 11), ((uint)g.Frame[0], g.Result.Tr.Selector, TypeOf(g, OldTask)));
        Assert.Equal(0UL, g.Result.Cr0 & Cr0.Ts);
    }

    /// <summary>Afterwards they are the new task's. The handler is the old task itself, behind its JMP.</summary>
    [Theory]
    [InlineData(0x4C, 0u, Vector.InvalidTss)] // CS null
    [InlineData(0x4C, (uint)SystemGuest.Data0, Vector.InvalidTss)]
    [InlineData(0x4C, (uint)SystemGuest.CodeAbsent, Vector.SegmentNotPresent)]
    [InlineData(0x50, 0u, Vector.InvalidTss)] // SS
    [InlineData(0x50, (uint)SystemGuest.DataReadOnly, Vector.InvalidTss)]
    [InlineData(0x50, (uint)SystemGuest.DataAbsent, Vector.StackFault)]
    [InlineData(0x54, (uint)SystemGuest.CodeExecuteOnly, Vector.InvalidTss)] // DS
    [InlineData(0x54, (uint)SystemGuest.DataAbsent, Vector.SegmentNotPresent)]
    [InlineData(0x60, (uint)SystemGuest.Data0, Vector.InvalidTss)] // LDT
    [InlineData(0x60, 4u, Vector.InvalidTss)]
    public void FaultsOfTheNewTask(int field, uint value, int vector)
    {
        using SystemGuest g = WithTask();
        New(g, (uint)field, value);
        g.Memory.Write(new GuestAddress(SystemGuest.Idt + (ulong)(vector * 8)), (ulong)OldTask << 16 | 0x85UL << 40);
        g.Run(a =>
        {
            a.jmp(__fword_ptr[ebx]);
            a.pop(eax);
        }).Ended();
        Assert.Equal((value & ~3u, OldTask), ((uint)g.Rax, g.Result.Tr.Selector));
        Assert.Equal(NewTask, g.Memory.Read<ushort>(new GuestAddress(SystemGuest.Tss)));
        Assert.Equal((11, 11), (TypeOf(g, OldTask), TypeOf(g, NewTask)));
    }

    [Fact]
    public void TheNewInstructionPointerIsChecked()
    {
        using SystemGuest g = WithTask();
        New(g, 0x4C, SystemGuest.Code16);
        New(g, 0x20, 0x1_0000);
        g.Run(a => a.jmp(__fword_ptr[ebx])).Raised(Vector.GeneralProtection);
        Assert.Equal((NewTask, 0x1_0000UL), (g.Result.Tr.Selector, g.Frame[0]));
    }

    /// <summary>IRET with NT goes by the link, which must name a busy task.</summary>
    [Theory]
    [InlineData((int)NewTask)] // not busy
    [InlineData((int)SystemGuest.Data0)]
    public void ALinkToNoTaskIsRefused(int link)
    {
        using SystemGuest g = WithTask();
        g.State.Rflags |= RFlags.Nt;
        g.Memory.Write(new GuestAddress(SystemGuest.Tss), (ushort)link);
        g.Run(a => a.iretd()).Raised(Vector.InvalidTss, (uint)link);
        Assert.Equal(OldTask, g.Result.Tr.Selector);
    }

    /// <summary>With paging, CR3 comes out of the TSS, and what the old tables said is forgotten.</summary>
    [Fact]
    public void TheAddressSpaceIsTheTasks()
    {
        const ulong Page = 0x80_0000, Tss = TestMachine.Tss + 0x200;
        const ushort Selector = 0x50;
        using TestMachine m = Machine(TestMode.TwoLevel);
        PageTables other = new(m.Memory, 0x180000, 2);
        const ulong Flags = PageTableEntry.W | PageTableEntry.A | PageTableEntry.D;
        m.Tables.Map(Page, TestMachine.FreeGpa, 0x1000, Flags);
        other.Map(Page, TestMachine.FreeGpa + 0x1000, 0x1000, Flags);
        other.Map(TestMachine.Gdt, TestMachine.Gdt, 0x6000, Flags);
        other.Map(TestMachine.KernelCode, TestMachine.UserCode, 0x2000, Flags);
        m.Memory.Write(new GuestAddress(TestMachine.FreeGpa), 1u);
        m.Memory.Write(new GuestAddress(TestMachine.FreeGpa + 0x1000), 2u);
        m.Memory.Write(new GuestAddress(TestMachine.Gdt + Selector), SystemGuest.Segment((uint)Tss, 0x67, 0x89, 0));
        m.Memory.Write(new GuestAddress(TestMachine.Gdt + TestMachine.TssSelector + 5), (byte)0x8B);
        ulong second = m.Assemble(
            a =>
            {
                a.mov(ecx, __dword_ptr[(uint)Page]);
                a.int3();
            },
            0x400);
        byte[] tss = new byte[104];
        Set(tss, 0x1C, (uint)other.Root);
        Set(tss, 0x20, (uint)second);
        Set(tss, 0x24, 2);
        Set(tss, 0x38, (uint)TestMachine.KernelStack);
        foreach (int at in (int[])[0x48, 0x50, 0x54])
            Set(tss, at, TestMachine.KernelSs);
        Set(tss, 0x4C, TestMachine.KernelCs32);
        m.Memory.Write(new GuestAddress(Tss), tss);
        ulong code = m.Assemble(a =>
        {
            a.mov(eax, __dword_ptr[(uint)Page]);
            a.mov(__dword_ptr[(uint)TestMachine.KernelCode + 0x800], eax);
            a.jmp(Selector, 0u);
        });
        TestResult r = m.Run(0, code);
        Assert.Equal((Vector.Breakpoint, 2UL, other.Root), (r.Vector, r.State.Gpr[1], r.State.Cr3));
        Assert.Equal(1u, m.Memory.Read<uint>(new GuestAddress(TestMachine.UserCode + 0x800)));
    }
}

/// <summary>The same through the translator.</summary>
public sealed class TranslatedTaskSwitchTests : TaskSwitchTests
{
    private protected override bool Translated => true;
}
