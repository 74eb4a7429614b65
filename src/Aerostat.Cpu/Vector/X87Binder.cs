using Iced.Intel;

namespace Aerostat.Cpu;

/// <summary>Binds x87 instructions.</summary>
internal static unsafe class X87Binder
{
    // SAFETY: writes the one MicroOp that the block decoder hands over.

    /// <summary>Binds one instruction; false when it is none of these.</summary>
    public static bool Bind(in Instruction i, MicroOp* op, DecodeContext c)
    {
        op->Handler = i.Mnemonic switch
        {
            Mnemonic.Wait => &X87Handlers.Wait,
            Mnemonic.Fninit => &X87Handlers.Init,
            Mnemonic.Fnclex => &X87Handlers.ClearExceptions,
            Mnemonic.Fneni or Mnemonic.Fndisi or Mnemonic.Fnsetpm => &X87Handlers.Nothing,
            Mnemonic.Fnstcw => &X87Handlers.StoreControl,
            Mnemonic.Fnstsw => i.Op0Kind == OpKind.Memory ? &X87Handlers.StoreStatus : &X87Handlers.StoreStatusToAx,
            Mnemonic.Fldcw => &X87Handlers.LoadControl,
            Mnemonic.Fnstenv => &X87Handlers.StoreEnvironment,
            Mnemonic.Fldenv => &X87Handlers.LoadEnvironment,
            Mnemonic.Fnsave => &X87Handlers.Save,
            Mnemonic.Frstor => &X87Handlers.Restore,
            _ => null,
        };
        if (op->Handler != null)
            return true;
        if (!RunsInStub(i.Mnemonic))
            return false;
        X87Form form = X87Form.None;
        if (i.OpCount > 0 && i.Op0Kind == OpKind.Memory)
        {
            form = i.Mnemonic is Mnemonic.Fst or Mnemonic.Fstp or Mnemonic.Fist or Mnemonic.Fistp or Mnemonic.Fisttp or Mnemonic.Fbstp
                ? X87Form.StoresMemory : X87Form.LoadsMemory;
        }
        StubTraits traits = StubTraits.X87;
        if (i.Mnemonic is Mnemonic.Fcomi or Mnemonic.Fcomip or Mnemonic.Fucomi or Mnemonic.Fucomip)
        {
            form |= X87Form.WritesFlags;
            traits |= StubTraits.FlagsIn | StubTraits.FlagsOut;
        }
        else if (IsConditionalMove(i.Mnemonic))
        {
            form |= X87Form.ReadsFlags;
            traits |= StubTraits.FlagsIn;
        }
        op->Src2 = (byte)form;
        op->Immediate = LastOpcode(i);
        op->Aux = c.Stubs.Get(i, traits);
        op->Handler = &X87Handlers.Run;
        return op->Aux != 0;
    }

    // FOP: low three bits of the first byte and the second byte, which Iced does not keep: the instruction is encoded again.
    private static ushort LastOpcode(in Instruction i)
    {
        Instruction n = i;
        n.SegmentPrefix = Register.None;
        n.HasLockPrefix = n.HasRepPrefix = n.HasRepnePrefix = false;
        if (n.OpCount > 0 && n.Op0Kind == OpKind.Memory)
        {
            // Only the ModRM byte counts; a 64-bit base stands for whatever the mode has, the displacement decides on mod.
            Register b = n.MemoryBase;
            if (b != Register.None && !b.IsIP())
                n.MemoryBase = Register.RAX + (b.GetNumber() & 7);
            if (n.MemoryIndex != Register.None)
                n.MemoryIndex = Register.RAX + (n.MemoryIndex.GetNumber() & 7);
        }
        ByteWriter bytes = new();
        if (!Encoder.Create(64, bytes).TryEncode(n, 0, out _, out _) || bytes.Count < 2)
            return 0;
        int at = 0;
        while (at < bytes.Count - 1 && bytes[at] is < 0xD8 or > 0xDF)
            at++;
        return (ushort)((bytes[at] & 7) << 8 | bytes[Math.Min(at + 1, bytes.Count - 1)]);
    }

    private static bool IsConditionalMove(Mnemonic m) => m is Mnemonic.Fcmovb or Mnemonic.Fcmove or Mnemonic.Fcmovbe or Mnemonic.Fcmovu
        or Mnemonic.Fcmovnb or Mnemonic.Fcmovne or Mnemonic.Fcmovnbe or Mnemonic.Fcmovnu;

    private static bool RunsInStub(Mnemonic m)
    {
        switch (m)
        {
            case Mnemonic.Fadd or Mnemonic.Faddp or Mnemonic.Fiadd or Mnemonic.Fmul or Mnemonic.Fmulp or Mnemonic.Fimul:
            case Mnemonic.Fsub or Mnemonic.Fsubp or Mnemonic.Fisub or Mnemonic.Fsubr or Mnemonic.Fsubrp or Mnemonic.Fisubr:
            case Mnemonic.Fdiv or Mnemonic.Fdivp or Mnemonic.Fidiv or Mnemonic.Fdivr or Mnemonic.Fdivrp or Mnemonic.Fidivr:
            case Mnemonic.Fcom or Mnemonic.Fcomp or Mnemonic.Fcompp or Mnemonic.Ficom or Mnemonic.Ficomp:
            case Mnemonic.Fucom or Mnemonic.Fucomp or Mnemonic.Fucompp or Mnemonic.Ftst or Mnemonic.Fxam:
            case Mnemonic.Fcomi or Mnemonic.Fcomip or Mnemonic.Fucomi or Mnemonic.Fucomip:
            case Mnemonic.Fld or Mnemonic.Fild or Mnemonic.Fbld or Mnemonic.Fst or Mnemonic.Fstp or Mnemonic.Fstpnce:
            case Mnemonic.Fist or Mnemonic.Fistp or Mnemonic.Fisttp or Mnemonic.Fbstp:
            case Mnemonic.Fld1 or Mnemonic.Fldl2t or Mnemonic.Fldl2e or Mnemonic.Fldpi or Mnemonic.Fldlg2 or Mnemonic.Fldln2 or Mnemonic.Fldz:
            case Mnemonic.Fxch or Mnemonic.Fnop or Mnemonic.Fchs or Mnemonic.Fabs or Mnemonic.Ffree or Mnemonic.Ffreep:
            case Mnemonic.Fincstp or Mnemonic.Fdecstp or Mnemonic.Fsqrt or Mnemonic.Frndint or Mnemonic.Fscale or Mnemonic.Fxtract:
            case Mnemonic.Fprem or Mnemonic.Fprem1 or Mnemonic.F2xm1 or Mnemonic.Fyl2x or Mnemonic.Fyl2xp1:
            case Mnemonic.Fptan or Mnemonic.Fpatan or Mnemonic.Fsin or Mnemonic.Fcos or Mnemonic.Fsincos:
                return true;
            default:
                return IsConditionalMove(m);
        }
    }

    private sealed class ByteWriter : CodeWriter
    {
        private readonly byte[] bytes = new byte[16];

        public int Count { get; private set; }

        public byte this[int index] => bytes[index];

        public override void WriteByte(byte value)
        {
            if (Count < bytes.Length)
                bytes[Count++] = value;
        }
    }
}
