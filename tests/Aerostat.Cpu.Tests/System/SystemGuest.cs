using System.Buffers.Binary;
using Aerostat.Memory;
using Aerostat.Processors;
using Aerostat.X86;
using Iced.Intel;
using Xunit;

namespace Aerostat.Cpu.Tests;

/// <summary>What a <see cref="SystemGuest"/> starts in.</summary>
internal enum GuestMode
{
    Real,
    Protected16,
    Protected32,
    Compatibility,
    Long,
}

/// <summary>
/// A guest of 4 MiB, mapped one to one, with descriptor tables, a TSS and a handler for each vector that halts. Tests of system instructions
/// run a few instructions in it and look at where it stopped.
/// </summary>
internal sealed class SystemGuest : IDisposable
{
    public const uint Gdt = 0x1000, Idt = 0x2000, Tss = 0x3000, Ldt = 0x3800, Handlers = 0x4000, Stack = 0x8000, InnerStack = 0x9000, IstStack = 0xA000;
    public const uint UserStack = 0xC000, Code = 0x10000, UserCode = 0x12000, Data = 0x20000, PageTables = 0x100000;
    public const int Unmapped = 0x800000;

    // Selectors; user ones carry RPL 3.
    public const ushort Code32 = 0x08, Code64 = 0x10, Data0 = 0x18, UserCode32 = 0x23, UserData = 0x2B, UserCode64 = 0x33, TssSelector = 0x38;
    public const ushort Conforming32 = 0x48, DataAbsent = 0x50, DataReadOnly = 0x58, CodeExecuteOnly = 0x60, LdtSelector = 0x68, CodeBad64 = 0x78;
    public const ushort Code16 = 0x80, UserDataFresh = 0x8B, CodeAbsent = 0x90, Data16 = 0x98, TssAvailable = 0xA0, UserCode16 = 0xB3, ConformingUser = 0xBB;
    public const ushort GdtLimit = 0xC7;

    private const uint ErrorVectors = 1 << 8 | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 14 | 1 << 17 | 1 << 21;

    private readonly IHypervisor hypervisor;
    private readonly GuestMode mode;

    public SystemGuest(GuestMode mode, string model = "max", bool translated = false)
    {
        this.mode = mode;
        hypervisor = TestMachine.Open(Memory, translated);
        Processor = hypervisor.CreateProcessor(new VirtualProcessorOptions
        {
            Index = 0,
            Count = 1,
            Cpuid = CpuModels.CreateCpuid(model, 0, 1, "none"),
            Clock = TimeProvider.System,
        });
        Processor.Reset();
        State = Processor.GetState();
        WriteTables();
        Prepare();
    }

    public GuestMemory Memory { get; } = new(new MemoryRegion(new GuestAddress(0), 4 << 20, "test"));

    public IVirtualProcessor Processor { get; }

    public RecordingHandler Handler { get; } = new();

    /// <summary>The state to start from.</summary>
    public ProcessorState State { get; set; }

    /// <summary>The vector whose handler halted the guest; -1: the code's own HLT; -2: shutdown.</summary>
    public int Stopped { get; private set; }

    /// <summary>Error code, 0 without one.</summary>
    public uint Error { get; private set; }

    /// <summary>The interrupt frame above the error code: IP, CS, flags, SP, SS (the last two as the mode has them).</summary>
    public ulong[] Frame { get; } = new ulong[5];

    public ulong FrameAddress { get; private set; }

    /// <summary>Registers after the run.</summary>
    public ProcessorState Result { get; private set; } = new();

    public ulong Rax => Result.Gpr[0];

    /// <summary>Makes the guest start in user mode.</summary>
    public SystemGuest AsUser()
    {
        bool wide = mode is GuestMode.Long;
        State.Segments[1] = wide ? new SegmentState(UserCode64, 0, uint.MaxValue, 0xA0FB) : new SegmentState(UserCode32, 0, uint.MaxValue, 0xC0FB);
        foreach (int i in (int[])[0, 2, 3])
            State.Segments[i] = new SegmentState(UserData, 0, uint.MaxValue, 0xC0F3);
        State.Gpr[4] = UserStack;
        return this;
    }

    /// <summary>Assembles the code at <see cref="Code"/>, ends it with HLT and runs it.</summary>
    public SystemGuest Run(Action<Assembler> code)
    {
        int bitness = mode switch { GuestMode.Long => 64, GuestMode.Real or GuestMode.Protected16 => 16, _ => 32 };
        Place(Code, bitness, a =>
        {
            code(a);
            a.hlt();
        });
        return Run();
    }

    /// <summary>Assembles more code elsewhere.</summary>
    public SystemGuest Place(uint address, int bitness, Action<Assembler> code)
    {
        var a = new Assembler(bitness);
        code(a);
        using var stream = new MemoryStream();
        a.Assemble(new StreamCodeWriter(stream), mode == GuestMode.Real ? address - Code : address);
        Memory.Write(new GuestAddress(address), stream.ToArray());
        return this;
    }

    public SystemGuest Run()
    {
        Processor.SetState(State);
        ProcessorExit exit = Processor.Run(Handler);
        Result = Processor.GetState();
        if (exit.Reason == ExitReason.Shutdown)
        {
            Stopped = -2;
            return this;
        }
        Assert.Equal(ExitReason.Halted, exit.Reason);
        ulong linear = mode == GuestMode.Real ? Result.Segments[1].Base + Result.Rip : Result.Rip;
        ulong offset = linear - 1 - Handlers;
        Stopped = offset < 0x1000 ? (int)(offset / 16) : -1;
        if (Stopped >= 0)
            ReadFrame();
        return this;
    }

    private void ReadFrame()
    {
        bool longMode = (Result.Efer & Efer.Lma) != 0;
        int size = longMode ? 8 : mode == GuestMode.Real || mode == GuestMode.Protected16 ? 2 : 4;
        ulong sp = longMode ? Result.Gpr[4] : (Result.Segments[2].Base + (Result.Segments[2].Attributes & 0x4000) switch
        {
            0 => Result.Gpr[4] & 0xFFFF,
            _ => Result.Gpr[4] & uint.MaxValue,
        });
        if (mode != GuestMode.Real && Stopped < 32 && (ErrorVectors >> Stopped & 1) != 0)
        {
            Error = (uint)ReadSized(sp, size);
            sp += (ulong)size;
        }
        FrameAddress = sp;
        for (int i = 0; i < 5; i++)
            Frame[i] = ReadSized(sp + (ulong)(i * size), size);
    }

    public ulong ReadSized(ulong address, int size)
    {
        var g = new GuestAddress(address);
        return size switch { 2 => Memory.Read<ushort>(g), 4 => Memory.Read<uint>(g), _ => Memory.Read<ulong>(g) };
    }

    /// <summary>Asserts that the code ran to its HLT.</summary>
    public SystemGuest Ended()
    {
        Assert.Equal(-1, Stopped);
        return this;
    }

    /// <summary>Asserts that an exception stopped the code.</summary>
    public SystemGuest Raised(int vector, uint error = 0)
    {
        Assert.Equal(vector, Stopped);
        Assert.Equal(error, Error);
        return this;
    }

    public void WriteDescriptor(int selector, ulong value) => Memory.Write(new GuestAddress(Gdt + (uint)(selector & ~7)), value);

    public ulong ReadDescriptor(int selector) => Memory.Read<ulong>(new GuestAddress(Gdt + (uint)(selector & ~7)));

    /// <summary>Writes a gate in the format of the mode.</summary>
    public void WriteGate(int vector, ushort selector, ulong target, int type = 14, int dpl = 0, bool present = true, int ist = 0)
    {
        ulong low = (target & 0xFFFF) | ((ulong)selector << 16) | ((target & 0xFFFF_0000) << 32)
            | (ulong)(type | (dpl << 5) | (present ? 0x80 : 0)) << 40 | ((ulong)ist << 32);
        if (mode is GuestMode.Long or GuestMode.Compatibility)
        {
            Memory.Write(new GuestAddress(Idt + (uint)(vector * 16)), low);
            Memory.Write(new GuestAddress(Idt + (uint)(vector * 16) + 8), target >> 32);
        }
        else
        {
            Memory.Write(new GuestAddress(Idt + (uint)(vector * 8)), low);
        }
    }

    public static ulong Segment(uint b, uint limit, uint access, uint flags) =>
        (limit & 0xFFFF) | ((ulong)(b & 0xFF_FFFF) << 16) | ((ulong)access << 40) | ((ulong)(limit >> 16 & 0xF) << 48) | ((ulong)flags << 52) | ((ulong)(b >> 24) << 56);

    private void WriteTables()
    {
        ulong[] gdt = new ulong[25];
        gdt[1] = Segment(0, 0xFFFFF, 0x9B, 0xC);
        gdt[2] = Segment(0, 0xFFFFF, 0x9B, 0xA);
        gdt[3] = Segment(0, 0xFFFFF, 0x93, 0xC);
        gdt[4] = Segment(0, 0xFFFFF, 0xFB, 0xC);
        gdt[5] = Segment(0, 0xFFFFF, 0xF3, 0xC);
        gdt[6] = Segment(0, 0xFFFFF, 0xFB, 0xA);
        gdt[7] = Segment(Tss, 0x1FF, 0x8B, 0);
        gdt[9] = Segment(0, 0xFFFFF, 0x9F, 0xC);
        gdt[10] = Segment(0, 0xFFFFF, 0x13, 0xC);
        gdt[11] = Segment(0, 0xFFFFF, 0x91, 0xC);
        gdt[12] = Segment(0, 0xFFFFF, 0x99, 0xC);
        gdt[13] = Segment(Ldt, 0xF, 0x82, 0);
        gdt[15] = Segment(0, 0xFFFFF, 0x9B, 0xE);
        gdt[16] = Segment(0, 0xFFFF, 0x9B, 0);
        gdt[17] = Segment(0, 0xFFFFF, 0xF2, 0xC);
        gdt[18] = Segment(0, 0xFFFFF, 0x1B, 0xA);
        gdt[19] = Segment(0, 0xFFFF, 0x93, 0);
        gdt[20] = Segment(Tss, 0x1FF, 0x89, 0);
        gdt[22] = Segment(0, 0xFFFF, 0xFB, 0);
        gdt[23] = Segment(0, 0xFFFFF, 0xFF, 0xC);
        for (int i = 0; i < gdt.Length; i++)
            Memory.Write(new GuestAddress(Gdt + ((uint)i * 8)), gdt[i]);
        // LDT: a data segment, then a null entry.
        Memory.Write(new GuestAddress(Ldt), Segment(0x1234, 0xFFF, 0x93, 0x4));

        byte[] halts = new byte[0x1000];
        for (int v = 0; v < 256; v++)
            halts[v * 16] = 0xF4;
        Memory.Write(new GuestAddress(Handlers), halts);
        byte[] tss = new byte[0x200];
        if (mode is GuestMode.Long or GuestMode.Compatibility)
        {
            BinaryPrimitives.WriteUInt64LittleEndian(tss.AsSpan(4), InnerStack);
            BinaryPrimitives.WriteUInt64LittleEndian(tss.AsSpan(0x24), IstStack);
        }
        else
        {
            BinaryPrimitives.WriteUInt32LittleEndian(tss.AsSpan(4), InnerStack);
            BinaryPrimitives.WriteUInt16LittleEndian(tss.AsSpan(8), Data0);
        }
        // The I/O map starts at 0x68; everything is denied but ports 0x80..0x87.
        BinaryPrimitives.WriteUInt16LittleEndian(tss.AsSpan(0x66), 0x68);
        tss.AsSpan(0x68).Fill(0xFF);
        tss[0x68 + 0x10] = 0;
        Memory.Write(new GuestAddress(Tss), tss);

        ushort handlerCode = mode switch { GuestMode.Long or GuestMode.Compatibility => Code64, GuestMode.Protected16 => Code16, _ => Code32 };
        for (int v = 0; v < 256; v++)
        {
            if (mode == GuestMode.Real)
                Memory.Write(new GuestAddress((ulong)v * 4), (uint)(Handlers + (v * 16)));
            else
                WriteGate(v, handlerCode, Handlers + (ulong)(v * 16), mode == GuestMode.Protected16 ? 6 : 14, v is 3 or 4 or 0x80 ? 3 : 0);
        }
        const ulong user = PageTableEntry.P | PageTableEntry.W | PageTableEntry.U;
        Memory.Write(new GuestAddress(PageTables), (PageTables + 0x1000) | user);
        Memory.Write(new GuestAddress(PageTables + 0x1000), (PageTables + 0x2000) | user);
        for (uint i = 0; i < 2; i++)
            Memory.Write(new GuestAddress(PageTables + 0x2000 + (i * 8)), (i << 21) | user | PageTableEntry.Ps);
    }

    private void Prepare()
    {
        State.Gpr[4] = Stack;
        State.Rip = Code;
        State.Gdtr = new DescriptorTableState(Gdt, GdtLimit);
        State.Idtr = new DescriptorTableState(Idt, 0xFFF);
        State.Tr = new SegmentState(TssSelector, Tss, 0x1FF, 0x8B);
        State.Ldtr = new SegmentState(0, 0, 0, SegmentState.Unusable);
        if (mode == GuestMode.Real)
        {
            State.Rip = 0;
            State.Segments[1] = new SegmentState((ushort)(Code >> 4), Code, 0xFFFF, 0x9B);
            State.Idtr = new DescriptorTableState(0, 0x3FF);
            return;
        }
        State.Cr0 = Cr0.Pe | Cr0.Et | Cr0.Ne;
        for (int i = 0; i < 6; i++)
            State.Segments[i] = new SegmentState(Data0, 0, uint.MaxValue, 0xC093);
        State.Segments[1] = mode switch
        {
            GuestMode.Long => new SegmentState(Code64, 0, uint.MaxValue, 0xA09B),
            GuestMode.Protected16 => new SegmentState(Code16, 0, 0x1FFFF, 0x009B),
            _ => new SegmentState(Code32, 0, uint.MaxValue, 0xC09B),
        };
        if (mode == GuestMode.Protected16)
        {
            State.Segments[1] = new SegmentState(Code16, 0, 0x1FFFF, 0x9B);
            State.Segments[2] = new SegmentState(Data16, 0, 0xFFFF, 0x93);
        }
        if (mode is GuestMode.Long or GuestMode.Compatibility)
        {
            State.Cr0 |= Cr0.Pg | Cr0.Wp;
            State.Cr3 = PageTables;
            State.Cr4 = Cr4.Pae | Cr4.OsFxsr | Cr4.OsXsave | Cr4.FsGsBase;
            State.Efer = Efer.Sce | Efer.Lme | Efer.Lma | Efer.Nxe;
        }
    }

    public void Dispose()
    {
        Processor.Dispose();
        hypervisor.Dispose();
        Memory.Dispose();
    }
}

/// <summary>Remembers port and MSR accesses.</summary>
internal sealed class RecordingHandler : IExitHandler
{
    public List<(ushort Port, int Size, uint Value)> Writes { get; } = [];

    public Dictionary<uint, ulong> Msrs { get; } = [];

    public bool Hypercalls { get; set; }

    public uint ReadPort(ushort port, int size) => 0x4433_2211;

    public void WritePort(ushort port, int size, uint value) => Writes.Add((port, size, value));

    public ulong ReadMmio(ulong address, int size) => ulong.MaxValue;

    public void WriteMmio(ulong address, int size, ulong value)
    {
    }

    public bool ReadMsr(uint index, out ulong value) => Msrs.TryGetValue(index, out value);

    public bool WriteMsr(uint index, ulong value)
    {
        if (!Msrs.ContainsKey(index))
            return false;
        Msrs[index] = value;
        return true;
    }

    /// <summary>Vectors that wait to be acknowledged.</summary>
    public Queue<int> Interrupts { get; } = [];

    public int AcknowledgeInterrupt() => Interrupts.TryDequeue(out int vector) ? vector : -1;

    public ulong TaskPriority { get; set; }

    public bool LocalApicEnabled { get; set; } = true;

    public bool Hypercall(IVirtualProcessor processor, Span<ulong> registers)
    {
        if (Hypercalls)
            registers[0] = registers[1] + 1;
        return Hypercalls;
    }

    public bool LeaveRequested => false;
}
