using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace Aerostat.Cpu;

/// <summary>What a stub does around its instruction.</summary>
[Flags]
internal enum StubTraits
{
    None = 0,
    /// <summary>Runs with the MXCSR argument (all exceptions masked) and answers the MXCSR after it; the default is put back.</summary>
    Mxcsr = 1,
    /// <summary>Answers RFLAGS in the upper half of the result. Without <see cref="WritesOperand"/> the first operand is only read.</summary>
    FlagsOut = 2,
    /// <summary>Loads RFLAGS from the fourth argument (status bits only) before the instruction.</summary>
    FlagsIn = 4,
    /// <summary>The first operand is written.</summary>
    WritesOperand = 8,
    /// <summary>XMM0 is an implicit source, at the fifth argument.</summary>
    ImplicitXmm0 = 16,
    /// <summary>EAX and EDX (RAX, RDX) are implicit sources; the fifth argument points to the guest's RAX, the first general register.</summary>
    ExplicitLengths = 32,
    /// <summary>The result is in ECX.</summary>
    IndexResult = 64,
    /// <summary>The result is in XMM0.</summary>
    MaskResult = 128,
    /// <summary>An x87 instruction: the first argument is an FXSAVE64 image that is loaded before and stored after it.</summary>
    X87 = 256,
    /// <summary>The first operand is read as well as written (VEX forms; the others always load it).</summary>
    ReadsOperand = 512,
}

/// <summary>
/// Writes the host code of one form. All stubs have the same System V signature
/// <c>ulong stub(void* first, void* second, void* result, uint control, void* extra)</c>: RDI points to the first operand (read),
/// RSI to the second, RDX to where the first operand's new value goes, ECX is MXCSR or RFLAGS, R8 is for implicit operands.
/// </summary>
/// <remarks>
/// The instruction is normalised: first operand in XMM1, MM1 or RAX, second in XMM2, MM2 or R9, a memory operand becomes [RDX]
/// (first) or [RSI] (second) without index or displacement, segment override and hint prefixes are dropped. So no guest value can ever
/// become an address in a stub. VEX forms have more operands and a signature of their own, see <see cref="VexStubBuilder"/>.
/// Nothing is called and no exception can be raised: MXCSR is loaded with all exceptions masked, x87 exceptions stay pending
/// until FNINIT drops them.
/// </remarks>
internal static class StubBuilder
{
    // In the red zone, below the 8 bytes that PUSHFQ uses.
    internal const int Mxcsr = -16;

    /// <summary>The code of a form, position-independent.</summary>
    public static byte[] Build(in Instruction source, StubTraits traits)
    {
        Assembler c = new(64);
        Instruction n = source;
        n.IP = 0; // Iced's assembler numbers labels by IP
        n.SegmentPrefix = Register.None;
        n.HasLockPrefix = n.HasRepPrefix = n.HasRepnePrefix = false;
        if (source.Encoding == EncodingKind.VEX)
            VexStubBuilder.Build(c, n, traits);
        else if ((traits & StubTraits.X87) != 0)
            BuildX87(c, n, traits);
        else
            BuildVector(c, n, traits);
        using MemoryStream code = new();
        c.Assemble(new StreamCodeWriter(code), 0);
        return code.ToArray();
    }

    private static void BuildX87(Assembler c, Instruction n, StubTraits traits)
    {
        for (int k = 0; k < n.OpCount; k++)
        {
            if (n.GetOpKind(k) == OpKind.Memory)
                SetMemory(ref n, Register.RSI);
        }
        // The image's MXCSR becomes the host's own, so FXRSTOR cannot disturb or fault on it.
        c.stmxcsr(__dword_ptr[rdi + 24]);
        c.fxrstor64(__[rdi]);
        if ((traits & StubTraits.FlagsIn) != 0)
        {
            c.push(rcx);
            c.popfq();
        }
        c.AddInstruction(n);
        if ((traits & StubTraits.FlagsOut) != 0)
        {
            c.pushfq();
            c.pop(rax);
        }
        c.fxsave64(__[rdi]);
        c.fninit();
        c.ret();
    }

    private static void BuildVector(Assembler c, Instruction n, StubTraits traits)
    {
        bool mmx = false;
        Action? save = null;
        for (int k = 0; k < n.OpCount; k++)
        {
            AssemblerRegister64 pointer = k == 0 ? rdi : rsi;
            OpKind kind = n.GetOpKind(k);
            if (kind == OpKind.Memory)
            {
                SetMemory(ref n, k == 0 ? Register.RDX : Register.RSI);
                continue;
            }
            if (kind != OpKind.Register)
                continue;
            if (k > 1)
                throw new ArgumentException("more register operands than a stub has pointers for");
            Register r = n.GetOpRegister(k);
            if (r.IsXMM())
            {
                AssemblerRegisterXMM host = k == 0 ? xmm1 : xmm2;
                c.movaps(host, __xmmword_ptr[pointer]);
                n.SetOpRegister(k, host);
                if (k == 0)
                    save = () => c.movaps(__xmmword_ptr[rdx], xmm1);
            }
            else if (r.IsMM())
            {
                mmx = true;
                AssemblerRegisterMM host = k == 0 ? mm1 : mm2;
                c.movq(host, __qword_ptr[pointer]);
                n.SetOpRegister(k, host);
                if (k == 0)
                    save = () => c.movq(__qword_ptr[rdx], mm1);
            }
            else if (r.IsGPR())
            {
                AssemblerRegister64 host = k == 0 ? rax : r9;
                // A byte operand may be AH..BH, whose pointer is odd: only the operand's own bytes are read.
                if (r.GetSize() == 1)
                    c.movzx(r9d, __byte_ptr[pointer]);
                else
                    c.mov(host, __qword_ptr[pointer]);
                n.SetOpRegister(k, Sized(k == 0, r.GetSize()));
                if (k == 0)
                    save = () => c.mov(__qword_ptr[rdx], rax);
            }
            else
            {
                throw new ArgumentException("a register of a kind that stubs do not know");
            }
        }
        if ((traits & StubTraits.ImplicitXmm0) != 0)
            c.movaps(xmm0, __xmmword_ptr[r8]);
        if ((traits & StubTraits.ExplicitLengths) != 0)
        {
            c.mov(r10, rdx);
            c.mov(rax, __qword_ptr[r8]);
            c.mov(rdx, __qword_ptr[r8 + 16]);
        }
        else if ((traits & (StubTraits.IndexResult | StubTraits.MaskResult)) != 0)
        {
            c.mov(r10, rdx);
        }
        // .NET code runs with the default MXCSR, so that is put back rather than what was there: STMXCSR is the slow half of the pair.
        Label standard = c.CreateLabel();
        if ((traits & StubTraits.Mxcsr) != 0)
        {
            c.mov(__dword_ptr[rsp + Mxcsr], ecx);
            c.ldmxcsr(__dword_ptr[rsp + Mxcsr]);
        }
        c.AddInstruction(n);
        if ((traits & StubTraits.FlagsOut) != 0)
        {
            c.pushfq();
            c.pop(r9);
        }
        if ((traits & StubTraits.Mxcsr) != 0)
        {
            c.stmxcsr(__dword_ptr[rsp + Mxcsr]);
            c.ldmxcsr(__dword_ptr[standard]);
        }
        if ((traits & StubTraits.IndexResult) != 0)
            c.mov(__qword_ptr[r10], rcx);
        else if ((traits & StubTraits.MaskResult) != 0)
            c.movaps(__xmmword_ptr[r10], xmm0);
        else if ((traits & StubTraits.WritesOperand) != 0)
            save?.Invoke();
        if (mmx)
            c.emms();
        if ((traits & StubTraits.Mxcsr) != 0)
            c.mov(eax, __dword_ptr[rsp + Mxcsr]);
        else
            c.xor(eax, eax);
        if ((traits & StubTraits.FlagsOut) != 0)
        {
            c.shl(r9, 32);
            c.or(rax, r9);
        }
        c.ret();
        if ((traits & StubTraits.Mxcsr) != 0)
        {
            c.Label(ref standard);
            c.dd(VectorState.MxcsrDefault);
        }
    }

    private static Register Sized(bool first, int size) => size switch
    {
        1 => Register.R9L,
        2 => first ? Register.AX : Register.R9W,
        4 => first ? Register.EAX : Register.R9D,
        _ => first ? Register.RAX : Register.R9,
    };

    internal static void SetMemory(ref Instruction n, Register pointer)
    {
        n.MemoryBase = pointer;
        n.MemoryIndex = Register.None;
        n.MemoryIndexScale = 1;
        n.MemoryDisplacement64 = 0;
        n.MemoryDisplSize = 0;
    }
}
