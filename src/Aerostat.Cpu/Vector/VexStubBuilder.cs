using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace Aerostat.Cpu;

/// <summary>
/// Writes the host code of one VEX form. All these stubs have the same System V signature <c>ulong stub(void* result, void* second,
/// void* third, void* fourth, uint mxcsr, void* first)</c>: RDI points to where the first operand's new value goes, RSI, RDX and RCX to the
/// other operands, R8D is MXCSR, R9 points to the first operand where that is a source. The answer is that of <see cref="StubBuilder"/>.
/// </summary>
/// <remarks>
/// A vector register is two halves, 16 bytes at the pointer and 16 bytes <see cref="VectorState.HighDistance"/> behind it, as in the XSAVE area. The
/// instruction is normalised: vector operands in YMM0 to YMM3, general registers in RAX (first), R10 and R11, a memory operand is [its
/// pointer]. The upper halves are cleared at the end, since .NET code and the C library mix VEX with legacy SSE.
/// </remarks>
internal static class VexStubBuilder
{
    public static void Build(Assembler c, Instruction n, StubTraits traits)
    {
        Action? save = null;
        for (int k = 0; k < n.OpCount; k++)
        {
            AssemblerRegister64 pointer = k switch { 0 => rdi, 1 => rsi, 2 => rdx, _ => rcx };
            OpKind kind = n.GetOpKind(k);
            if (kind == OpKind.Memory)
            {
                StubBuilder.SetMemory(ref n, pointer);
                continue;
            }
            if (kind != OpKind.Register)
                continue;
            Register r = n.GetOpRegister(k);
            bool written = k == 0 && (traits & StubTraits.WritesOperand) != 0;
            if (r.IsXMM() || r.IsYMM())
            {
                AssemblerRegisterXMM low = k switch { 0 => xmm0, 1 => xmm1, 2 => xmm2, _ => xmm3 };
                AssemblerRegisterYMM all = k switch { 0 => ymm0, 1 => ymm1, 2 => ymm2, _ => ymm3 };
                if (!written || (traits & StubTraits.ReadsOperand) != 0)
                {
                    AssemblerRegister64 source = k == 0 ? r9 : pointer;
                    c.vmovups(low, __xmmword_ptr[source]);
                    if (r.IsYMM())
                        c.vinsertf128(all, all, __xmmword_ptr[source + VectorState.HighDistance], 1);
                }
                n.SetOpRegister(k, r.IsYMM() ? all : low);
                if (written)
                {
                    save = () =>
                    {
                        c.vmovups(__xmmword_ptr[rdi], low);
                        c.vextractf128(__xmmword_ptr[rdi + VectorState.HighDistance], all, 1);
                    };
                }
            }
            else if (r.IsGPR32() || r.IsGPR64())
            {
                AssemblerRegister64 host = k switch { 0 => rax, 1 => r10, _ => r11 };
                if (!written)
                    c.mov(host, __qword_ptr[pointer]);
                n.SetOpRegister(k, r.IsGPR64() ? host : k switch { 0 => Register.EAX, 1 => Register.R10D, _ => Register.R11D });
                if (written)
                    save = () => c.mov(__qword_ptr[rdi], rax);
            }
            else
            {
                throw new ArgumentException("a register of a kind that stubs do not know");
            }
        }
        Label standard = c.CreateLabel();
        if ((traits & StubTraits.Mxcsr) != 0)
        {
            c.mov(__dword_ptr[rsp + StubBuilder.Mxcsr], r8d);
            c.ldmxcsr(__dword_ptr[rsp + StubBuilder.Mxcsr]);
        }
        c.AddInstruction(n);
        if ((traits & StubTraits.FlagsOut) != 0)
        {
            c.pushfq();
            c.pop(r9);
        }
        if ((traits & StubTraits.Mxcsr) != 0)
        {
            c.stmxcsr(__dword_ptr[rsp + StubBuilder.Mxcsr]);
            c.ldmxcsr(__dword_ptr[standard]);
        }
        save?.Invoke();
        c.vzeroupper();
        if ((traits & StubTraits.Mxcsr) != 0)
            c.mov(eax, __dword_ptr[rsp + StubBuilder.Mxcsr]);
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
}
