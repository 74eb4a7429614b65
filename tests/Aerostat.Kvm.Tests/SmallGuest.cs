using Aerostat.Cpu;
using Aerostat.Memory;
using Aerostat.Processors;
using Aerostat.X86;
using Iced.Intel;
using Xunit;

namespace Aerostat.Kvm.Tests;

/// <summary>A machine of 4 MiB and one vCPU or more, without devices, that runs a few instructions in real or long mode.</summary>
internal sealed class SmallGuest : IDisposable
{
    public const ulong Code = 0x8000, Stack = 0x7F00, Handlers = 0x9000;

    private const ulong Idt = 0x6000, Gdt = 0x5000, Tables = 0x1000;

    private readonly IHypervisor hypervisor;

    public SmallGuest(string kind, int count = 1, KvmOptions? kvm = null)
    {
        Memory = new GuestMemory(new MemoryRegion(new(0), 4 << 20, "test"));
        try
        {
            hypervisor = ProcessorKinds.Open(kind, Memory, kvm);
        }
        catch
        {
            Memory.Dispose();
            throw;
        }
        Processors = [.. Enumerable.Range(0, count).Select(i => hypervisor.CreateProcessor(Options(i, count)))];
        Processor = Processors[0];
    }

    public GuestMemory Memory { get; }

    public IVirtualProcessor[] Processors { get; }

    public IVirtualProcessor Processor { get; }

    public IHypervisor Hypervisor => hypervisor;

    public World World { get; } = new();

    public static VirtualProcessorOptions Options(int index, int count) => new()
    {
        Index = index,
        Count = count,
        Cpuid = CpuModels.CreateCpuid("max", index, count, "none"),
        Clock = TimeProvider.System,
    };

    /// <summary>Assembles to an address and answers it.</summary>
    public ulong Assemble(int bitness, ulong address, Action<Assembler> write)
    {
        Assembler assembler = new(bitness);
        write(assembler);
        using MemoryStream bytes = new();
        assembler.Assemble(new StreamCodeWriter(bytes), address);
        Memory.Write(new(address), bytes.ToArray());
        return address;
    }

    /// <summary>Real-mode code at <see cref="Code"/>, flat at zero, interrupts off.</summary>
    public ProcessorState Real(Action<Assembler> write, Action<ProcessorState>? change = null)
    {
        Assemble(16, Code, write);
        ProcessorState s = Processor.GetState();
        for (int i = 0; i < 6; i++)
            s.Segments[i] = new SegmentState(0, 0, 0xFFFF, 0x93);
        s.Segments[1] = new SegmentState(0, 0, 0xFFFF, 0x9B);
        s.Rip = Code;
        s.Gpr[4] = Stack;
        s.Rflags = 2;
        s.Activity = ActivityState.Running;
        change?.Invoke(s);
        Processor.SetState(s);
        return s;
    }

    /// <summary>
    /// 64-bit code at <see cref="Code"/>: the first gibibyte mapped flat, an IDT whose gates lead to <see cref="Handlers"/> + 16 n, where there is HLT.
    /// </summary>
    public ProcessorState Long(Action<Assembler> write, Action<ProcessorState>? change = null)
    {
        Assemble(64, Code, write);
        Memory.Write(new(Tables), 0x2003UL);
        Memory.Write(new(Tables + 0x1000), 0x3003UL);
        for (uint i = 0; i < 512; i++)
            Memory.Write(new(Tables + 0x2000 + (i * 8)), ((ulong)i << 21) | 0x83);
        Memory.Write(new(Gdt), [.. new byte[8], 0xFF, 0xFF, 0, 0, 0, 0x9B, 0xAF, 0, 0xFF, 0xFF, 0, 0, 0, 0x93, 0xCF, 0]);
        for (uint v = 0; v < 256; v++)
        {
            ulong target = Handlers + (v * 16);
            Memory.Write(new(Idt + (v * 16)), (target & 0xFFFF) | (8 << 16) | (0x8EUL << 40) | ((target >> 16) << 48));
            Memory.Write(new(Idt + (v * 16) + 8), 0UL);
            Memory.Write(new(target), (byte)0xF4);
        }
        ProcessorState s = Processor.GetState();
        for (int i = 0; i < 6; i++)
            s.Segments[i] = new SegmentState(0x10, 0, uint.MaxValue, 0xC093);
        s.Segments[1] = new SegmentState(8, 0, uint.MaxValue, 0xA09B);
        s.Gdtr = new(Gdt, 0x17);
        s.Idtr = new(Idt, 0xFFF);
        s.Cr0 = Cr0.Pe | Cr0.Pg | Cr0.Et | Cr0.Ne | Cr0.Mp;
        s.Cr3 = Tables;
        s.Cr4 = Cr4.Pae | Cr4.OsFxsr;
        s.Efer = Efer.Lme | Efer.Lma;
        s.Rip = Code;
        s.Gpr[4] = Stack;
        s.Rflags = 2;
        s.Activity = ActivityState.Running;
        change?.Invoke(s);
        Processor.SetState(s);
        return s;
    }

    /// <summary>Runs until there is something to tell.</summary>
    public ProcessorExit Run() => Processor.Run(World);

    /// <summary>Runs to HLT and answers the state.</summary>
    public ProcessorState RunToHalt()
    {
        ProcessorExit exit = Run();
        ProcessorState s = Processor.GetState();
        Assert.True(exit.Reason == ExitReason.Halted, $"{exit.Reason} (0x{exit.Detail:x}) at 0x{s.Rip:x}");
        return s;
    }

    public void Dispose()
    {
        foreach (IVirtualProcessor processor in Processors)
            processor.Dispose();
        hypervisor.Dispose();
        Memory.Dispose();
    }
}
