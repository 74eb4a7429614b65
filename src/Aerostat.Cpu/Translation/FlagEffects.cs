using Iced.Intel;

namespace Aerostat.Cpu;

/// <summary>Which of the six status flags an instruction reads and which it certainly overwrites, as Iced's <see cref="RflagsBits"/>.</summary>
internal readonly record struct FlagEffects(int Read, int Killed)
{
    /// <summary>OF, SF, ZF, AF, CF, PF.</summary>
    public const int All = (int)(RflagsBits.OF | RflagsBits.SF | RflagsBits.ZF | RflagsBits.AF | RflagsBits.CF | RflagsBits.PF);

    public const int Overflow = (int)RflagsBits.OF;

    /// <summary>Effects of an instruction that is re-encoded. Undefined flags count as overwritten.</summary>
    public static FlagEffects Of(in Instruction i)
    {
        int read = (int)i.RflagsRead & All, killed = (int)i.RflagsModified & All;
        switch (i.Mnemonic)
        {
            case Mnemonic.Rol or Mnemonic.Ror or Mnemonic.Rcl or Mnemonic.Rcr or Mnemonic.Shl or Mnemonic.Sal or Mnemonic.Shr or Mnemonic.Sar
                or Mnemonic.Shld or Mnemonic.Shrd:
                // A count of zero leaves them all alone, a rotation by other counts may leave OF as it was.
                int last = i.OpCount - 1;
                bool constant = i.GetOpKind(last) == OpKind.Immediate8;
                int mask = i.GetOpKind(0) == OpKind.Register && i.Op0Register.IsGPR64() || i.MemorySize.GetSize() == 8 ? 63 : 31;
                if (!constant || (i.GetImmediate(last) & (ulong)mask) == 0)
                    killed = 0;
                break;
            default:
                break;
        }
        return new FlagEffects(read, killed);
    }
}
