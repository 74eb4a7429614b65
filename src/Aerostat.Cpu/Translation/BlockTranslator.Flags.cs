using Iced.Intel;

namespace Aerostat.Cpu;

/// <content>
/// Making flags again. A check of a memory access overwrites the host's flags. Where the instruction that set the guest's is an addition, a subtraction,
/// a comparison or a logical operation whose registers still hold what they held then, two instructions make the same flags once more: behind a check
/// where they are live, which is cheaper than to save them, and in slow paths where they are not, so that a fault pushes them.
/// </content>
internal sealed unsafe partial class BlockTranslator
{
    private enum FlagOrigin : byte
    {
        /// <summary>Not known, or not to be made again.</summary>
        None,
        /// <summary>a compared with b or the immediate.</summary>
        Compare,
        /// <summary>a AND b or the immediate, result not kept.</summary>
        Test,
        /// <summary>a is the result of AND, OR or XOR.</summary>
        Logic,
        /// <summary>a is the sum with b or the immediate.</summary>
        Add,
        /// <summary>a is the difference from b or the immediate.</summary>
        Subtract,
    }

    /// <summary>What set the flags, and the values its registers had behind it.</summary>
    private struct FlagSource
    {
        public FlagOrigin Origin;
        public bool Wide, HasB;
        public int A, B, Immediate;
        public int ValueA, ValueB;
        public long OffsetA, OffsetB;
        /// <summary>What to add to A to get its value of then.</summary>
        public int Distance;
    }

    // For each instruction: where the flags come from that are there before it.
    private readonly FlagSource[] sources = new FlagSource[MaxInstructions];
    private FlagSource lastSource, source;

    /// <summary>Notes where the flags before instruction <paramref name="k"/> come from; before its effect on registers is tracked.</summary>
    private void NoteSource(int k)
    {
        FlagSource s = lastSource;
        if (s.Origin != FlagOrigin.None)
        {
            long distance = s.OffsetA - offsets[s.A];
            bool same = values[s.A] == s.ValueA && (int)distance == distance
                && (distance == 0 || (s.Wide && !s.HasB && s.Origin is FlagOrigin.Compare or FlagOrigin.Add or FlagOrigin.Subtract))
                && (!s.HasB || (values[s.B] == s.ValueB && offsets[s.B] == s.OffsetB));
            s.Distance = (int)distance;
            if (!same)
                s = default;
        }
        sources[k] = s;
    }

    /// <summary>Follows what an instruction does to flags; behind its effect on registers.</summary>
    private void TrackSource(in Instruction i, Treatment t)
    {
        if (t is Treatment.Interpret or Treatment.Divide or Treatment.BitString or Treatment.Cpuid or Treatment.String)
            lastSource = default;
        else if (t is Treatment.Integer or Treatment.Vector && ((int)i.RflagsModified & FlagEffects.All) != 0)
            lastSource = Classify(i, t);
    }

    private FlagSource Classify(in Instruction i, Treatment t)
    {
        FlagSource s = default;
        if (t != Treatment.Integer || i.OpCount != 2 || i.Op0Kind != OpKind.Register || !(i.Op0Register.IsGPR32() || i.Op0Register.IsGPR64()))
            return s;
        s.Wide = i.Op0Register.IsGPR64();
        s.A = i.Op0Register.GetNumber();
        FlagOrigin origin = i.Mnemonic switch
        {
            Mnemonic.Cmp => FlagOrigin.Compare,
            Mnemonic.Test => FlagOrigin.Test,
            Mnemonic.And or Mnemonic.Or or Mnemonic.Xor => FlagOrigin.Logic,
            Mnemonic.Add => FlagOrigin.Add,
            Mnemonic.Sub => FlagOrigin.Subtract,
            _ => FlagOrigin.None,
        };
        if (origin is FlagOrigin.None or FlagOrigin.Logic)
        {
            // The other operand of a logical operation may be anything: the flags follow from the result.
        }
        else if (i.Op1Kind == OpKind.Register)
        {
            s.HasB = true;
            s.B = i.Op1Register.GetNumber();
            // R10 or the like on both sides would need two scratch registers; of a register with itself the operands are gone.
            if (Homes.OfGuest[s.B] == Host.None || (s.A == s.B && origin is FlagOrigin.Add or FlagOrigin.Subtract))
                return s;
        }
        else if (i.Op1Kind is OpKind.Immediate8 or OpKind.Immediate32 or OpKind.Immediate8to32 or OpKind.Immediate8to64 or OpKind.Immediate32to64)
        {
            s.Immediate = (int)(long)i.GetImmediate(1);
            if (s.Immediate == int.MinValue)
                return s;
        }
        else
        {
            return s;
        }
        s.Origin = origin;
        s.ValueA = values[s.A];
        s.OffsetA = offsets[s.A];
        s.ValueB = values[s.B];
        s.OffsetB = offsets[s.B];
        return s;
    }

    /// <summary>Makes the flags of <see cref="source"/> again. Uses R11.</summary>
    private void EmitFlagsAgain()
    {
        FlagSource s = source;
        int x = Use(s.A, Host.R11), y = s.HasB ? Homes.OfGuest[s.B] : Host.None;
        if (s.Distance != 0)
        {
            a.Lea(Host.R11, x, Host.None, 0, s.Distance);
            x = Host.R11;
        }
        switch (s.Origin)
        {
            case FlagOrigin.Compare when s.HasB:
                a.RR(0x3B, x, y, s.Wide);
                break;
            case FlagOrigin.Compare:
                EmitImmediate(7, x, s.Immediate, s.Wide);
                break;
            case FlagOrigin.Test when s.HasB:
                a.RR(0x85, y, x, s.Wide);
                break;
            case FlagOrigin.Test:
                a.RR(0xF7, 0, x, s.Wide);
                a.Int32(s.Immediate);
                break;
            case FlagOrigin.Logic:
                a.RR(0x85, x, x, s.Wide);
                break;
            case FlagOrigin.Add when s.HasB:
                a.Move(Host.R11, x);
                a.RR(0x2B, Host.R11, y, s.Wide);
                a.RR(0x03, Host.R11, y, s.Wide);
                break;
            case FlagOrigin.Add:
                a.Lea(Host.R11, x, Host.None, 0, -s.Immediate, s.Wide);
                EmitImmediate(0, Host.R11, s.Immediate, s.Wide);
                break;
            case FlagOrigin.Subtract when s.HasB:
                a.Lea(Host.R11, x, y, 0, 0, s.Wide);
                a.RR(0x3B, Host.R11, y, s.Wide);
                break;
            default:
                a.Lea(Host.R11, x, Host.None, 0, s.Immediate, s.Wide);
                EmitImmediate(7, Host.R11, s.Immediate, s.Wide);
                break;
        }
    }

    // ADD, CMP and the like with an immediate.
    private void EmitImmediate(int operation, int register, int value, bool wide)
    {
        bool small = value is >= -128 and <= 127;
        a.RR(small ? 0x83 : 0x81, operation, register, wide);
        if (small)
            a.Byte(value);
        else
            a.Int32(value);
    }
}
