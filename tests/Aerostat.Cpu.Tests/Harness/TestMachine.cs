using System.Buffers.Binary;
using System.Runtime.InteropServices;
using Aerostat.Memory;
using Aerostat.Processors;
using Aerostat.X86;
using Xunit;

namespace Aerostat.Cpu.Tests;

/// <summary>How a <see cref="TestMachine"/> runs.</summary>
internal enum TestMode
{
    /// <summary>Long mode, 4-level paging.</summary>
    Long,
    /// <summary>Long mode, 5-level paging.</summary>
    Long5,
    /// <summary>32-bit protected mode with PAE paging.</summary>
    Pae,
    /// <summary>32-bit protected mode with two-level paging.</summary>
    TwoLevel,
    /// <summary>32-bit protected mode without paging.</summary>
    Flat,
    /// <summary>Real mode.</summary>
    Real,
}

/// <summary>How a run of a <see cref="TestMachine"/> ended.</summary>
internal sealed record TestResult(ProcessorExit Exit, ProcessorState State)
{
    /// <summary>The exception or interrupt vector whose handler was reached, or -1.</summary>
    public int Vector { get; init; } = -1;

    /// <summary>What the handler found on its stack.</summary>
    public ulong Error { get; init; }

    public ulong Rip { get; init; }

    public ulong Cs { get; init; }

    public ulong Rflags { get; init; }

    public ulong Rsp { get; init; }
}

/// <summary>
/// A small machine for tests of the processor's system side: descriptor tables, a TSS, a handler of one HLT for each vector, code that can run
/// at CPL 0 and at CPL 3, and page tables that a test changes as it likes. Identity mapped.
/// </summary>
internal sealed unsafe class TestMachine : IDisposable
{
    /// <summary>Linear and physical address of GDT, IDT, TSS, handlers and the stack of handlers.</summary>
    public const ulong Gdt = 0x10000, Idt = 0x11000, Tss = 0x12000, Handlers = 0x13000, StackTop = 0x16000;

    /// <summary>Two pages of code that CPL 3 can execute, and the same two pages for CPL 0.</summary>
    public const ulong UserCode = 0x20000, KernelCode = 0x30000;

    /// <summary>Four pages of data that CPL 3 can write; the stack of code at CPL 3 grows down from their end.</summary>
    public const ulong Data = 0x40000, CodeStack = 0x44000;

    /// <summary>Where the stack of code at CPL 0 begins: in a page that CPL 3 cannot reach.</summary>
    public const ulong KernelStack = 0x15000;

    /// <summary>Page tables.</summary>
    public const ulong TablesGpa = 0x100000;

    /// <summary>Free memory for tests, up to <see cref="MemorySize"/> unless there is more.</summary>
    public const ulong FreeGpa = 0x200000;

    public const ulong MemorySize = 4 << 20;

    public const ushort KernelCs32 = 0x08, KernelCs64 = 0x10, KernelSs = 0x18, UserCs32 = 0x23, UserSs = 0x2B, UserCs64 = 0x33, TssSelector = 0x40;

    private const uint ErrorVectors = 1 << 8 | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 14 | 1 << 17 | 1 << 21;

    public TestMachine(
        TestMode mode, string? model = null, int processors = 1, Func<GuestMemory, IHypervisor>? hypervisor = null, TimeProvider? clock = null,
        ulong memoryBytes = MemorySize)
    {
        Mode = mode;
        Memory = new GuestMemory(new MemoryRegion(new GuestAddress(0), memoryBytes, "test"));
        Hypervisor = hypervisor?.Invoke(Memory) ?? new InterpreterHypervisor(Memory);
        for (int i = 0; i < processors; i++)
        {
            Processors.Add(Hypervisor.CreateProcessor(new VirtualProcessorOptions
            {
                Index = i,
                Count = processors,
                Cpuid = CpuModels.CreateCpuid(model ?? (mode == TestMode.Long5 ? "max" : CpuModels.Default), i, processors, "none"),
                Clock = clock ?? TimeProvider.System,
            }));
        }

        Tables = new PageTables(Memory, TablesGpa, mode switch { TestMode.Long5 => 5, TestMode.Pae => 3, TestMode.TwoLevel => 2, _ => 4 });
        Processor.Reset();
        State = Processor.GetState();
        Prepare();
    }

    /// <summary>The interpreter, or the translator, which then translates everything that it can.</summary>
    public static IHypervisor Open(GuestMemory memory, bool translated)
    {
        Assert.SkipWhen(translated && !TranslatorHypervisor.IsSupported, "the translator needs an x86-64 host");
        return translated ? new TranslatorHypervisor(memory, threshold: 0) : new InterpreterHypervisor(memory);
    }

    public TestMode Mode { get; }

    public bool IsLong => Mode is TestMode.Long or TestMode.Long5;

    public GuestMemory Memory { get; }

    public IHypervisor Hypervisor { get; }

    public List<IVirtualProcessor> Processors { get; } = [];

    public IVirtualProcessor Processor => Processors[0];

    public PageTables Tables { get; }

    public TestExitHandler Handler { get; } = new();

    /// <summary>What the next <see cref="Run"/> starts from; change it as the test needs.</summary>
    public ProcessorState State { get; private set; }

    /// <summary>Puts code at <see cref="UserCode"/> and <see cref="KernelCode"/> + offset.</summary>
    public void Code(int offset, params ReadOnlySpan<byte> code) => Memory.Write(new GuestAddress(UserCode + (ulong)offset), code);

    /// <summary>Assembles code at <see cref="KernelCode"/> (or the user's view of the same) + offset.</summary>
    public ulong Assemble(Action<Iced.Intel.Assembler> body, int offset = 0, bool user = false)
    {
        ulong at = (user ? UserCode : KernelCode) + (ulong)offset;
        Code(offset, Bytes(at, body));
        return at;
    }

    /// <summary>Assembles code in a page that is mapped elsewhere.</summary>
    public void Assemble(ulong gpa, ulong linear, Action<Iced.Intel.Assembler> body) => Memory.Write(new GuestAddress(gpa), Bytes(linear, body));

    private byte[] Bytes(ulong linear, Action<Iced.Intel.Assembler> body)
    {
        var a = new Iced.Intel.Assembler(IsLong ? 64 : Mode == TestMode.Real ? 16 : 32);
        body(a);
        using var stream = new MemoryStream();
        a.Assemble(new Iced.Intel.StreamCodeWriter(stream), linear);
        return stream.ToArray();
    }

    /// <summary>Points CS, SS, RIP and the data segments at code of a privilege level.</summary>
    public void Enter(int cpl, ulong rip)
    {
        State.Rip = rip;
        State.Activity = ActivityState.Running;
        if (Mode == TestMode.Real)
            return;
        bool user = cpl == 3;
        uint dpl = user ? 0x60u : 0;
        State.Segments[1] = IsLong
            ? new SegmentState(user ? UserCs64 : KernelCs64, 0, uint.MaxValue, 0xA09B | dpl)
            : new SegmentState(user ? UserCs32 : KernelCs32, 0, uint.MaxValue, 0xC09B | dpl);
        foreach (int k in (int[])[0, 2, 3, 4, 5])
            State.Segments[k] = new SegmentState(user ? UserSs : KernelSs, 0, uint.MaxValue, 0xC093 | dpl);
        State.Gpr[4] = user ? CodeStack : KernelStack;
    }

    /// <summary>Runs processor 0 from <see cref="State"/> until it comes back; <see cref="State"/> is not changed.</summary>
    public TestResult Run(int cpl, ulong rip)
    {
        Enter(cpl, rip);
        Processor.SetState(State);
        return Continue();
    }

    /// <summary>Runs on from where processor 0 stands.</summary>
    public TestResult Continue()
    {
        ProcessorExit exit = Processor.Run(Handler);
        ProcessorState r = Processor.GetState();
        ulong handler = r.Rip - 1 - Handlers;
        if (exit.Reason != ExitReason.Halted || handler >= 0x1000 || (handler & 15) != 0 || r.Segments[1].Base != 0)
            return new TestResult(exit, r);
        int vector = (int)handler / 16;
        ulong at = r.Gpr[4];
        ulong error = 0;
        bool sameLevel = false;
        if (Mode == TestMode.Real)
            return new TestResult(exit, r) { Vector = vector, Rip = Word(0), Cs = Word(2), Rflags = Word(4), Rsp = (ushort)(at + 6) };
        if (vector < 32 && (ErrorVectors >> vector & 1) != 0)
        {
            error = Slot(0);
            at += IsLong ? 8u : 4;
        }

        sameLevel = !IsLong && (Slot(1) & 3) == 0;
        return new TestResult(exit, r)
        {
            Vector = vector,
            Error = error,
            Rip = Slot(0),
            Cs = (ushort)Slot(1),
            Rflags = Slot(2),
            Rsp = sameLevel ? at + 12 : Slot(3),
        };

        ulong Slot(int k) => IsLong ? Memory.Read<ulong>(new GuestAddress(at + (ulong)k * 8)) : Memory.Read<uint>(new GuestAddress(at + (ulong)k * 4));

        ulong Word(int k) => Memory.Read<ushort>(new GuestAddress((r.Segments[2].Base + at) + (ulong)k));
    }

    /// <summary>Replaces the gate of a vector (long mode: with an IST of 0 to 7).</summary>
    public void SetGate(int vector, ulong target, ushort selector, byte access = 0x8E, int ist = 0)
    {
        Span<byte> gate = stackalloc byte[16];
        gate.Clear();
        BinaryPrimitives.WriteUInt16LittleEndian(gate, (ushort)target);
        BinaryPrimitives.WriteUInt16LittleEndian(gate[2..], selector);
        gate[4] = (byte)ist;
        gate[5] = access;
        BinaryPrimitives.WriteUInt16LittleEndian(gate[6..], (ushort)(target >> 16));
        BinaryPrimitives.WriteUInt32LittleEndian(gate[8..], (uint)(target >> 32));
        int size = IsLong ? 16 : 8;
        Memory.Write(new GuestAddress(Idt + (ulong)(vector * size)), gate[..size]);
    }

    private void Prepare()
    {
        State.Cr0 = Cr0.Et | Cr0.Ne | Cr0.Mp;
        State.Rflags = 2;
        // As after FNINIT: at power-on the x87 stack is full (Intel SDM vol. 3 table 10-1).
        State.Xsave.AsSpan(0, 512).Clear();
        BinaryPrimitives.WriteUInt16LittleEndian(State.Xsave, 0x37F);
        BinaryPrimitives.WriteUInt32LittleEndian(State.Xsave.AsSpan(24), 0x1F80);
        State.Xsave[512] = 3;
        State.Dr[6] = 0xFFFF0FF0;
        State.Dr[7] = 0x400;
        for (int v = 0; v < 256; v++)
            Memory.Write(new GuestAddress(Handlers + (ulong)v * 16), [0xF4, 0xEB, 0xFD]);
        Memory.Write(new GuestAddress(UserCode), Enumerable.Repeat((byte)0xCC, 0x2000).ToArray());
        if (Mode == TestMode.Real)
        {
            PrepareReal();
            return;
        }

        State.Cr0 |= Cr0.Pe | Cr0.Wp;
        ulong[] gdt =
        [
            0, 0x00CF9B000000FFFF, 0x00AF9B000000FFFF, 0x00CF93000000FFFF, 0x00CFFB000000FFFF, 0x00CFF3000000FFFF, 0x00AFFB000000FFFF, 0,
            0x0000890000000067 | (Tss & 0xFFFFFF) << 16 | (Tss >> 24 & 0xFF) << 56, Tss >> 32,
        ];
        Memory.Write(new GuestAddress(Gdt), MemoryMarshal.AsBytes<ulong>(gdt));
        byte[] tss = new byte[0x68];
        if (IsLong)
        {
            BinaryPrimitives.WriteUInt64LittleEndian(tss.AsSpan(0x04), StackTop);
            BinaryPrimitives.WriteUInt64LittleEndian(tss.AsSpan(0x24), StackTop);
        }
        else
        {
            BinaryPrimitives.WriteUInt32LittleEndian(tss.AsSpan(0x04), (uint)StackTop);
            BinaryPrimitives.WriteUInt16LittleEndian(tss.AsSpan(0x08), KernelSs);
        }

        BinaryPrimitives.WriteUInt16LittleEndian(tss.AsSpan(0x66), 0x68);
        Memory.Write(new GuestAddress(Tss), tss);
        for (int v = 0; v < 256; v++)
            SetGate(v, Handlers + (ulong)v * 16, IsLong ? KernelCs64 : KernelCs32, (byte)(v is Vector.Breakpoint or Vector.Overflow ? 0xEE : 0x8E), IsLong ? 1 : 0);

        State.Gdtr = new DescriptorTableState(Gdt, 0x5F);
        State.Idtr = new DescriptorTableState(Idt, (ushort)(IsLong ? 0xFFF : 0x7FF));
        State.Tr = new SegmentState(TssSelector, Tss, 0x67, 0x8B);
        State.Ldtr = new SegmentState(0, 0, 0, SegmentState.Unusable);
        State.Cr4 = Cr4.OsFxsr | Cr4.OsXmmExcpt;
        if (Mode != TestMode.Flat)
        {
            const ulong ad = PageTableEntry.A | PageTableEntry.D;
            Tables.Map(Gdt, Gdt, 0x6000, PageTableEntry.W | ad);
            Tables.Map(UserCode, UserCode, 0x2000, PageTableEntry.W | PageTableEntry.U | ad);
            Tables.Map(KernelCode, UserCode, 0x2000, PageTableEntry.W | ad);
            Tables.Map(Data, Data, 0x4000, PageTableEntry.W | PageTableEntry.U | ad);
            State.Cr0 |= Cr0.Pg;
            State.Cr3 = Tables.Root;
            State.Cr4 |= Mode == TestMode.TwoLevel ? Cr4.Pse : Cr4.Pae;
            if (Mode == TestMode.Long5)
                State.Cr4 |= Cr4.La57;
            if (Mode != TestMode.TwoLevel)
                State.Efer = Efer.Nxe;
            if (IsLong)
                State.Efer |= Efer.Lme | Efer.Lma | Efer.Sce;
        }
    }

    private void PrepareReal()
    {
        // The handlers' segment starts at their first byte, so that the IVT can name them.
        for (int v = 0; v < 256; v++)
        {
            Memory.Write(new GuestAddress((ulong)v * 4), (ushort)(Handlers + (ulong)v * 16));
            Memory.Write(new GuestAddress((ulong)v * 4 + 2), (ushort)((Handlers & ~0xFFFFUL) >> 4));
        }

        State.Idtr = new DescriptorTableState(0, 0x3FF);
        for (int k = 0; k < 6; k++)
            State.Segments[k] = new SegmentState(0, 0, 0xFFFF, k == 1 ? 0x9Bu : 0x93);
        State.Gpr[4] = 0x8000;
    }

    public void Dispose()
    {
        foreach (IVirtualProcessor p in Processors)
            p.Dispose();
        Hypervisor.Dispose();
        Memory.Dispose();
    }
}
