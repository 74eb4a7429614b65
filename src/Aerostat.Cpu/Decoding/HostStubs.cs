using System.Runtime.InteropServices;
using System.Runtime.Intrinsics.X86;
using Aerostat.Platform;
using Iced.Intel;

namespace Aerostat.Cpu;

/// <summary>
/// Small pieces of host code that run an instruction as itself (x87, MMX, SSE and the like), made once per form and kept. A form is
/// an instruction without its addresses and register numbers, so the number of stubs is bounded by the instruction set and not by
/// the guest. May be shared by vCPUs.
/// </summary>
/// <remarks>
/// The results are the host's by construction. That includes what the manuals leave to the model: RCPPS and RSQRTPS approximations,
/// the last bits of x87 transcendental functions, and which NaN wins where Intel and AMD differ.
/// <para>
/// A host that is not x86-64 has none of this: <see cref="CanRun"/> answers false for every feature, no stub can be made, and the
/// instructions that need one raise #UD. Moves, logic and the common integer operations would still work, but since x87 and
/// SSE2 are part of the x86-64 baseline, no 64-bit system boots there.
/// </para>
/// </remarks>
internal sealed class HostStubs : IDisposable
{
    // Memory is taken in pieces as it is needed. A guest that uses every form with every immediate there is makes about 3 MiB of them (VexTests).
    private const int PieceBytes = 2 << 20;

    // No instruction's key has this bit.
    private const ulong CompareExchange16Key = 1UL << 63;

    private static readonly bool IsX64 = RuntimeInformation.ProcessArchitecture == Architecture.X64 && X86Base.IsSupported;
    // Asked once: CPUID is slow on a host that is itself a guest.
    private static readonly (int Eax, int Ebx, int Ecx, int Edx) Leaf1 = Leaf(1), Leaf7 = Leaf(7);

    private readonly Lock gate = new();
    private readonly Dictionary<ulong, nint> stubs = [];
    private readonly List<ExecutableMemory> memory = [];
    private bool disposed;

    /// <summary>Bytes of code made.</summary>
    public long BytesUsed
    {
        get
        {
            lock (gate)
                return memory.Sum(m => (long)m.Used);
        }
    }

    /// <summary>Whether this host can execute instructions of a feature in a stub.</summary>
    public static bool CanRun(CpuidFeature feature)
    {
        if (!IsX64)
            return false;
        (int ecx1, int edx1, int ebx7) = (Leaf1.Ecx, Leaf1.Edx, Leaf7.Ebx);
        return feature switch
        {
            CpuidFeature.FPU or CpuidFeature.FPU287 or CpuidFeature.FPU387 or CpuidFeature.CMOV => true,
            CpuidFeature.MMX => Bit(edx1, 23),
            CpuidFeature.FXSR => Bit(edx1, 24),
            CpuidFeature.SSE => Bit(edx1, 25),
            CpuidFeature.SSE2 => Bit(edx1, 26),
            CpuidFeature.SSE3 => Bit(ecx1, 0),
            CpuidFeature.PCLMULQDQ => Bit(ecx1, 1),
            CpuidFeature.SSSE3 => Bit(ecx1, 9),
            CpuidFeature.SSE4_1 => Bit(ecx1, 19),
            CpuidFeature.SSE4_2 => Bit(ecx1, 20),
            CpuidFeature.AES => Bit(ecx1, 25),
            // These look at what the host's system enables, too.
            CpuidFeature.AVX => Avx.IsSupported,
            CpuidFeature.AVX2 => Avx2.IsSupported,
            CpuidFeature.FMA => Fma.IsSupported,
            CpuidFeature.F16C => Avx.IsSupported && Bit(ecx1, 29),
            CpuidFeature.SHA => Bit(ebx7, 29),
            _ => false,
        };
    }

    /// <summary>
    /// The stub of an instruction's form, made now if this is its first use; 0 when this host cannot have it.
    /// </summary>
    public nint Get(in Instruction instruction, StubTraits traits)
    {
        foreach (CpuidFeature feature in instruction.CpuidFeatures)
        {
            if (!CanRun(feature))
                return 0;
        }
        ulong key = Key(instruction);
        lock (gate)
        {
            if (stubs.TryGetValue(key, out nint address))
                return address;
            ObjectDisposedException.ThrowIf(disposed, this);
            address = Write(StubBuilder.Build(instruction, traits));
            stubs.Add(key, address);
            return address;
        }
    }

    /// <summary>
    /// <c>ulong routine(void* target, ulong* expected, ulong low, ulong high)</c>, System V: CMPXCHG16B with LOCK. What was in memory goes to
    /// <c>expected</c>; 1 if it was what was expected. 0 when this host cannot have it.
    /// </summary>
    public nint CompareExchange16()
    {
        if (!IsX64 || !Bit(Leaf1.Ecx, 13))
            return 0;
        lock (gate)
        {
            if (stubs.TryGetValue(CompareExchange16Key, out nint address))
                return address;
            ObjectDisposedException.ThrowIf(disposed, this);
            ReadOnlySpan<byte> code =
            [
                0x53,                         // push rbx
                0x48, 0x89, 0xD3,             // mov rbx, rdx
                0x48, 0x8B, 0x06,             // mov rax, [rsi]
                0x48, 0x8B, 0x56, 0x08,       // mov rdx, [rsi+8]
                0xF0, 0x48, 0x0F, 0xC7, 0x0F, // lock cmpxchg16b [rdi]
                0x48, 0x89, 0x06,             // mov [rsi], rax
                0x48, 0x89, 0x56, 0x08,       // mov [rsi+8], rdx
                0x0F, 0x94, 0xC0,             // sete al
                0x0F, 0xB6, 0xC0,             // movzx eax, al
                0x5B, 0xC3,                   // pop rbx; ret
            ];
            address = Write(code);
            stubs.Add(CompareExchange16Key, address);
            return address;
        }
    }

    /// <summary>Gives the code memory back. No vCPU may run afterwards.</summary>
    public void Dispose()
    {
        lock (gate)
        {
            disposed = true;
            foreach (ExecutableMemory m in memory)
                m.Dispose();
            memory.Clear();
            stubs.Clear();
        }
    }

    // Never fails for want of room: the number of forms is what bounds it.
    private nint Write(ReadOnlySpan<byte> code)
    {
        if (memory.Count > 0 && memory[^1].TryWrite(code, 16, out nint address))
            return address;
        memory.Add(new ExecutableMemory(PieceBytes));
        return memory[^1].Write(code);
    }

    private static (int Eax, int Ebx, int Ecx, int Edx) Leaf(int leaf) =>
        IsX64 && X86Base.CpuId(0, 0).Eax >= leaf ? X86Base.CpuId(leaf, 0) : default;

    private static bool Bit(int register, int bit) => (register >> bit & 1) != 0;

    // What StubBuilder keeps of an instruction: its code, whether an operand is in memory, immediate and x87 register.
    private static ulong Key(in Instruction i)
    {
        ulong key = (ulong)i.Code;
        for (int k = 0; k < i.OpCount; k++)
        {
            switch (i.GetOpKind(k))
            {
                case OpKind.Register:
                    Register r = i.GetOpRegister(k);
                    if (r.IsST())
                        key |= (ulong)r.GetNumber() << (32 + (4 * k));
                    break;
                case OpKind.Immediate8:
                    key |= (ulong)i.Immediate8 << 16;
                    break;
                case OpKind.Memory:
                    key |= 1UL << 24;
                    break;
                default:
                    break;
            }
        }
        return key;
    }
}
