using Aerostat.X86;
using Iced.Intel;

namespace Aerostat.Cpu.Tests;

/// <summary>
/// Straight-line code of several instructions, run as one decoded block: what one instruction leaves behind (lazy flags, x87 stack, memory)
/// is what the next one finds. RBX is the base of all memory operands and stays as it is; nothing reads a flag that is undefined.
/// </summary>
internal sealed class SequenceGenerator(int bitness, Rng rng)
{
    private readonly EncodingGenerator _encodings = new(bitness, rng) { FixedBase = bitness == 64 ? Register.RBX : Register.EBX };
    private readonly InstructionInfoFactory _info = new();
    private readonly List<Code> _forms = [.. FormCatalog.Forms(bitness).Where(IsPlain)];
    private readonly StateGenerator _states = new(rng);

    private static bool IsPlain(Code code)
    {
        OpCodeInfo info = code.ToOpCode();
        if (info.Flow() != FlowControl.Next || info.MustBeCpl0 || info.IsPrivileged || info.IsInputOutput || info.IsSaveRestore)
            return false;
        switch (info.Mnemonic)
        {
            case Mnemonic.Popf or Mnemonic.Popfd or Mnemonic.Popfq or Mnemonic.Enter or Mnemonic.Leave or Mnemonic.Xlatb or Mnemonic.Maskmovq or Mnemonic.Maskmovdqu:
            case Mnemonic.Ldmxcsr or Mnemonic.Vldmxcsr or Mnemonic.Fldenv or Mnemonic.Frstor or Mnemonic.Fnstenv or Mnemonic.Fnsave or Mnemonic.Popa or Mnemonic.Popad or Mnemonic.Pusha or Mnemonic.Pushad:
            case Mnemonic.Ud0 or Mnemonic.Ud1 or Mnemonic.Ud2 or Mnemonic.Arpl or Mnemonic.Bound or Mnemonic.Wrfsbase or Mnemonic.Wrgsbase or Mnemonic.Rdfsbase or Mnemonic.Rdgsbase:
            // Flags or results that depend on counts, or that makers leave as they like.
            case Mnemonic.Bswap or Mnemonic.Shld or Mnemonic.Shrd or Mnemonic.Cvtpi2ps or Mnemonic.Cvtps2pi or Mnemonic.Cvttps2pi or Mnemonic.Cvtpd2pi or Mnemonic.Cvttpd2pi or Mnemonic.Dpps or Mnemonic.Dppd or Mnemonic.Vdpps or Mnemonic.Vdppd:
            case Mnemonic.Monitor or Mnemonic.Mwait:
                return false;
        }

        for (int i = 0; i < info.OpCount; i++)
        {
            // The addresses of a gather are in a vector register that the instructions before it may have changed.
            if (info.GetOpKind(i) is OpCodeOperandKind.mem_vsib32x or OpCodeOperandKind.mem_vsib32y or OpCodeOperandKind.mem_vsib64x or OpCodeOperandKind.mem_vsib64y)
                return false;
            if (info.GetOpKind(i) is OpCodeOperandKind.es_rDI or OpCodeOperandKind.seg_rSI or OpCodeOperandKind.seg_rDI or OpCodeOperandKind.mem_offs)
                return false;
        }

        return true;
    }

    public TestCase? TryMake(int length)
    {
        var code = new List<byte>();
        uint undefined = 0;
        for (int attempts = 0, count = 0; count < length && attempts < 200; attempts++)
        {
            _encodings.Address = Layout.StartRip(bitness) + (ulong)code.Count;
            Code form = _forms[rng.Below(_forms.Count)];
            Encoding? e = _encodings.TryMake(form, rng.OneIn(2));
            if (e == null || !IsAllowed(e.Instruction, ref undefined))
                continue;
            code.AddRange(e.Bytes);
            count++;
        }

        var c = new TestCase { Code = [.. code], Bitness = bitness };
        _states.FillState(ref c.State, rng.Pick<LaneKind>([LaneKind.Integer, LaneKind.Single, LaneKind.Double]));
        _states.FillWindow(c.Window, LaneKind.Integer);
        Place(ref c.State, bitness);
        return c;
    }

    /// <summary>Puts the base register and the stack where they belong.</summary>
    public static unsafe void Place(ref TestState s, int bitness)
    {
        s.Gpr[3] = Layout.Window + Layout.OperandOffset;
        s.Gpr[4] = Layout.Window + Layout.StackOffset;
        s.Rflags &= ~(ulong)RFlags.Ac;
        s.Rip = Layout.StartRip(bitness);
        if (bitness != 64)
        {
            for (int k = 0; k < 16; k++)
                s.Gpr[k] = k < 8 ? (uint)s.Gpr[k] : 0;
        }
    }

    private bool IsAllowed(in Instruction i, ref uint undefined)
    {
        if (i.HasLockPrefix && (i.MemoryDisplacement32 & 15) != 0)
            return false;
        if (i.Mnemonic is Mnemonic.Xchg or Mnemonic.Cmpxchg8b or Mnemonic.Cmpxchg16b && (i.MemoryDisplacement32 & 15) != 0)
            return false;
        bool memory = false;
        for (int k = 0; k < i.OpCount; k++)
            memory |= i.GetOpKind(k) == OpKind.Memory;
        if (memory && i.Mnemonic is Mnemonic.Bt or Mnemonic.Bts or Mnemonic.Btr or Mnemonic.Btc && i.Op1Kind == OpKind.Register)
            return false;
        bool stack = i.IsStackInstruction;
        foreach (UsedRegister used in _info.GetInfo(i).GetUsedRegisters())
        {
            Register r = used.Register.GetFullRegister();
            bool writes = used.Access is OpAccess.Write or OpAccess.CondWrite or OpAccess.ReadWrite or OpAccess.ReadCondWrite;
            if (writes && (r == Register.RBX || (r == Register.RSP && !stack)))
                return false;
        }

        // POP RSP.
        if (stack && i.Op0Kind == OpKind.Register && i.Op0Register.GetFullRegister() == Register.RSP)
            return false;
        uint reads = Flags(i.RflagsRead);
        if ((reads & undefined) != 0)
            return false;
        if (i.Mnemonic is Mnemonic.Rol or Mnemonic.Ror or Mnemonic.Rcl or Mnemonic.Rcr or Mnemonic.Shl or Mnemonic.Sal or Mnemonic.Shr or Mnemonic.Sar)
        {
            // By how much is known only when it runs.
            undefined |= RFlags.Of | RFlags.Af | RFlags.Cf;
            return true;
        }

        undefined &= ~Flags(i.RflagsWritten | i.RflagsCleared | i.RflagsSet);
        undefined |= Flags(i.RflagsUndefined) | UndefinedFlags.Of(i, default);
        return true;
    }

    private static uint Flags(RflagsBits bits)
    {
        uint f = 0;
        foreach ((RflagsBits b, uint flag) in ((RflagsBits, uint)[])[(RflagsBits.CF, RFlags.Cf), (RflagsBits.PF, RFlags.Pf), (RflagsBits.AF, RFlags.Af), (RflagsBits.ZF, RFlags.Zf), (RflagsBits.SF, RFlags.Sf), (RflagsBits.OF, RFlags.Of)])
        {
            if ((bits & b) != 0)
                f |= flag;
        }

        return f;
    }

    /// <summary>Flags that may be undefined at some point of a sequence.</summary>
    public static uint Undefined(List<Instruction> instructions)
    {
        uint all = 0;
        foreach (Instruction i in instructions)
        {
            all |= Flags(i.RflagsUndefined) | UndefinedFlags.Of(i, default);
            if (i.Mnemonic is Mnemonic.Rol or Mnemonic.Ror or Mnemonic.Rcl or Mnemonic.Rcr or Mnemonic.Shl or Mnemonic.Sal or Mnemonic.Shr or Mnemonic.Sar)
                all |= RFlags.Of | RFlags.Af | RFlags.Cf;
        }

        return all;
    }
}

internal static class OpCodeInfoExtensions
{
    public static FlowControl Flow(this OpCodeInfo info) => info.Code.FlowControl();
}
