using Aerostat.X86;
using Iced.Intel;

namespace Aerostat.Cpu.Tests;

/// <summary>
/// Status flags that an instruction leaves undefined (Intel SDM vol. 2, "Flags Affected" of each instruction): real processors may
/// differ there, so they are not compared.
/// </summary>
internal static class UndefinedFlags
{
    private const uint C = RFlags.Cf, P = RFlags.Pf, A = RFlags.Af, Z = RFlags.Zf, S = RFlags.Sf, O = RFlags.Of;

    /// <summary>The mask of undefined flags after <paramref name="i"/>, started from <paramref name="before"/>.</summary>
    public static uint Of(in Instruction i, in TestState before)
    {
        switch (i.Mnemonic)
        {
            case Mnemonic.Aaa or Mnemonic.Aas:
                return O | S | Z | P;
            case Mnemonic.Aad or Mnemonic.Aam:
                return O | A | C;
            case Mnemonic.Daa or Mnemonic.Das:
                return O;
            case Mnemonic.And or Mnemonic.Or or Mnemonic.Xor or Mnemonic.Test:
                return A;
            case Mnemonic.Bsf or Mnemonic.Bsr:
                return C | O | S | A | P;
            case Mnemonic.Bt or Mnemonic.Bts or Mnemonic.Btr or Mnemonic.Btc:
                return O | S | A | P;
            case Mnemonic.Div or Mnemonic.Idiv:
                return C | O | S | Z | A | P;
            case Mnemonic.Mul or Mnemonic.Imul:
                return S | Z | A | P;
            case Mnemonic.Andn or Mnemonic.Bzhi or Mnemonic.Blsi or Mnemonic.Blsr or Mnemonic.Blsmsk:
                return A | P;
            case Mnemonic.Bextr:
                return A | S | P;
            case Mnemonic.Lzcnt or Mnemonic.Tzcnt:
                return O | S | A | P;
            case Mnemonic.Rol or Mnemonic.Ror or Mnemonic.Rcl or Mnemonic.Rcr:
                return Count(i, before, out _) is 0 or 1 ? 0 : O;
            case Mnemonic.Shl or Mnemonic.Sal or Mnemonic.Shr or Mnemonic.Sar:
                {
                    int count = Count(i, before, out int size);
                    if (count == 0)
                        return 0;
                    uint mask = A | (count == 1 ? 0 : O);
                    // CF after a logical shift by more than the operand's size.
                    return i.Mnemonic != Mnemonic.Sar && count > size ? mask | C : mask;
                }

            case Mnemonic.Shld or Mnemonic.Shrd:
                {
                    int count = Count(i, before, out int size);
                    return count == 0 ? 0 : count > size ? C | P | A | Z | S | O : A | (count == 1 ? 0 : O);
                }

            default:
                return 0;
        }
    }

    /// <summary>The effective shift count and the operand's size in bits.</summary>
    public static unsafe int Count(in Instruction i, in TestState before, out int size)
    {
        size = (i.Op0Kind == OpKind.Register ? i.Op0Register.GetSize() : i.MemorySize.GetSize()) * 8;
        int last = i.OpCount - 1;
        byte count = i.GetOpKind(last) == OpKind.Register ? (byte)before.Gpr[1] : i.Immediate8;
        return count & (size == 64 ? 63 : 31);
    }

    /// <summary>Whether the destination itself is undefined.</summary>
    public static bool Result(in Instruction i, in TestState before) => i.Mnemonic switch
    {
        Mnemonic.Shld or Mnemonic.Shrd => Count(i, before, out int size) > size,
        Mnemonic.Bswap => i.Op0Register.GetSize() == 2,
        _ => false,
    };
}
