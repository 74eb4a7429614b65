using System.Runtime.Intrinsics;
using Aerostat.Memory;
using Aerostat.Processors;
using Aerostat.X86;
using Iced.Intel;
using Xunit;

namespace Aerostat.Cpu.Tests;

/// <summary>
/// Calls the handlers of vector instructions one at a time, in 64-bit mode without paging (which no processor has, but handlers do not
/// mind): linear addresses are guest physical ones.
/// </summary>
internal sealed unsafe class VectorBench : IDisposable
{
    /// <summary>Where tests put memory operands: RBX points there.</summary>
    public const int Data = 0x8000;

    private readonly GuestMemory memory = new(new MemoryRegion(new GuestAddress(0), 1 << 20, "test"));
    private readonly InterpreterHypervisor hypervisor;
    private readonly IVirtualProcessor processor;

    public VectorBench(int bitness = 64)
    {
        hypervisor = new InterpreterHypervisor(memory);
        processor = hypervisor.CreateProcessor(new VirtualProcessorOptions
        {
            Index = 0,
            Count = 1,
            Cpuid = CpuModels.CreateCpuid("max", 0, 1, "none"),
            Clock = TimeProvider.System,
        });
        processor.Reset();
        Cpu = ((SoftwareProcessor)processor).Interpreter;
        S = Cpu.State;
        S->Cr0 = Cr0.Pe | Cr0.Mp | Cr0.Ne | Cr0.Et;
        S->Cr4 = Cr4.OsFxsr | Cr4.OsXmmExcpt | Cr4.OsXsave;
        S->Xcr0 = ExtendedState.X87 | ExtendedState.Sse;
        for (int i = 0; i < 6; i++)
            *CpuStateExtensions.Segment(S, i) = new SegmentRegister { Limit = uint.MaxValue, Attributes = i == Seg.Cs ? 0xC09Bu : 0xC093 };
        Cpu.UpdateMode();
        S->Bitness = bitness;
        S->Gpr[3] = Data;
        X87Environment.Initialize(S->Xsave);
    }

    public Interpreter Cpu { get; }

    public CpuState* S { get; }

    public byte* Area => S->Xsave;

    public HostStubs Stubs { get; } = new();

    public Span<byte> Memory => new(memory.HostBase + Data, 4096);

    public ref uint Mxcsr => ref *(uint*)(Area + CpuState.MxcsrOffset);

    public ref Vector128<double> Xmm(int n) => ref *(Vector128<double>*)VectorState.Xmm(S, n);

    public ref ulong St(int n) => ref *(ulong*)(Area + CpuState.StOffset + (16 * n));

    public static MicroOp Bind(HostStubs stubs, byte[] code, int bitness, out bool bound)
    {
        Instruction i = Decoder.Create(bitness, code).Decode();
        Assert.Equal(code.Length, i.Length);
        MicroOp op;
        OperandDecoder.Fill(i, &op, bitness);
        bound = VectorBinder.Bind(i, &op, new DecodeContext(bitness, stubs));
        return op;
    }

    /// <summary>Runs one instruction given in hexadecimal.</summary>
    public Outcome Run(string hex)
    {
        MicroOp op = Bind(Stubs, Convert.FromHexString(hex), S->Bitness, out bool bound);
        Assert.True(bound, hex);
        return op.Handler(Cpu, S, &op);
    }

    /// <summary>Runs one instruction that must succeed.</summary>
    public void Execute(string hex) => Assert.Equal(Outcome.Next, Run(hex));

    /// <summary>Runs one instruction that must raise.</summary>
    public void Raises(int vector, string hex)
    {
        Assert.Equal(Outcome.Fault, Run(hex));
        Assert.Equal(vector, Cpu.raisedVector);
    }

    public void Dispose()
    {
        Stubs.Dispose();
        processor.Dispose();
        hypervisor.Dispose();
        memory.Dispose();
    }
}
