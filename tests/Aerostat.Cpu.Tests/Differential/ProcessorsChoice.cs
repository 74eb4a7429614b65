using Aerostat.X86;
using Iced.Intel;

namespace Aerostat.Cpu.Tests;

/// <summary>Outcomes that the manuals leave to the processor, or in which processors differ from them: they are not compared (status flags: <see cref="UndefinedFlags"/>).</summary>
internal static unsafe class ProcessorsChoice
{
    /// <summary>What a gather that faults leaves in its mask besides the signs is made the same.</summary>
    public static void LevelMask(TestCase c, ref TestState s)
    {
        if (s.Vector < 0)
            return;
        Instruction i = c.Instructions()[0];
        if (!i.IsVsib)
            return;
        int size = i.MemorySize.GetSize(), n = i.Op2Register.GetNumber();
        if (i.Op2Register.IsXMM())
        {
            // And whether the upper halves are cleared by then.
            TestState before = c.State;
            if (s.YmmHigh(i.Op0Register.GetNumber()).SequenceEqual(before.YmmHigh(i.Op0Register.GetNumber())))
                s.YmmHigh(i.Op0Register.GetNumber()).Clear();
            s.YmmHigh(n).Clear();
        }
        for (int k = 0; k < 32; k++)
        {
            ref byte b = ref (k < 16 ? s.Xmm(n) : s.YmmHigh(n))[k & 15];
            b = (k % size) == size - 1 ? (byte)(b & 0x80) : (byte)0;
        }
    }

    /// <summary>
    /// A repeated string instruction with 32-bit addresses that does not get through one iteration clears the upper halves of its registers on some
    /// processors and leaves them on others.
    /// </summary>
    public static void LevelShortRepeat(TestCase c, in TestState native, ref TestState guest)
    {
        Instruction i = c.Instructions()[0];
        if (c.Bitness != 64 || !(i.HasRepPrefix || i.HasRepnePrefix) || !(Uses(i, OpKind.MemorySegESI) || Uses(i, OpKind.MemoryESEDI)) || ((uint)c.State.Gpr[1] != 0 && native.Vector < 0))
            return;
        foreach (int k in (ReadOnlySpan<int>)[1, 6, 7])
        {
            if (native.Gpr[k] == (uint)guest.Gpr[k] && guest.Gpr[k] >> 32 == c.State.Gpr[k] >> 32)
                guest.Gpr[k] = native.Gpr[k];
        }

        static bool Uses(in Instruction i, OpKind kind) => i.Op0Kind == kind || (i.OpCount > 1 && i.Op1Kind == kind);
    }

    /// <summary>Whether an exception, or its absence, is one that the host's processor may have and another may not.</summary>
    public static bool IsOutcome(TestCase c, in TestState native, in TestState guest)
    {
        List<Instruction> instructions = c.Instructions();
        if (instructions.Count != 1)
            return false;
        // Whether bytes that are not selected may fault is the processor's choice (Intel SDM vol. 2, MASKMOVQ), and so the address.
        if (native.Vector == Vector.PageFault && guest.Vector is -1 or Vector.PageFault && instructions[0].Mnemonic is Mnemonic.Maskmovq or Mnemonic.Maskmovdqu or Mnemonic.Vmaskmovdqu)
            return true;
        // CVTPI2PS from memory looks at pending x87 exceptions, or not.
        if (guest.Vector == Vector.FloatingPoint && native.Vector != guest.Vector && instructions[0].Mnemonic == Mnemonic.Cvtpi2ps && instructions[0].Op1Kind == OpKind.Memory)
            return true;
        // An x87 store of what an unmasked exception keeps from being stored looks at memory first, or not.
        if (native.Vector < 0 && (native.Fx[2] & 0x80) != 0 && guest.Vector is Vector.PageFault or Vector.AlignmentCheck
            && instructions[0].Mnemonic is Mnemonic.Fst or Mnemonic.Fstp or Mnemonic.Fist or Mnemonic.Fistp or Mnemonic.Fisttp or Mnemonic.Fbstp)
            return true;
        // A conversion that raises an exception and cannot store its result either.
        if (native.Vector == Vector.SimdFloatingPoint && guest.Vector is Vector.PageFault or Vector.AlignmentCheck && instructions[0].Mnemonic == Mnemonic.Vcvtps2ph)
            return true;
        // Without #AC by the manual (Intel SDM vol. 2, exceptions type 11), with it on some processors.
        if (guest.Vector == Vector.AlignmentCheck && native.Vector != guest.Vector && instructions[0].Mnemonic is Mnemonic.Vcvtph2ps or Mnemonic.Vcvtps2ph)
            return true;
        if (native.Vector != Vector.AlignmentCheck)
            return false;
        // VEX forms: #AC is for accesses of 2, 4 and 8 bytes (Intel SDM vol. 2A section 2.4), but some processors check wider ones too.
        if (instructions[0].Encoding == EncodingKind.VEX && instructions[0].MemorySize.GetSize() >= 16)
            return guest.Vector is -1 or Vector.PageFault or Vector.SimdFloatingPoint;
        // Intel SDM vol. 3 section 7.15, #AC: unaligned 128-bit moves may be checked or not; FXSAVE may raise #GP instead.
        switch (instructions[0].Mnemonic)
        {
            case Mnemonic.Movups or Mnemonic.Movupd or Mnemonic.Movdqu or Mnemonic.Lddqu or Mnemonic.Maskmovq or Mnemonic.Maskmovdqu:
            case Mnemonic.Pcmpestri or Mnemonic.Pcmpestri64 or Mnemonic.Pcmpestrm or Mnemonic.Pcmpestrm64 or Mnemonic.Pcmpistri or Mnemonic.Pcmpistrm:
                return guest.Vector is -1 or Vector.PageFault;
            case Mnemonic.Fxsave or Mnemonic.Fxsave64 or Mnemonic.Fxrstor or Mnemonic.Fxrstor64:
                return guest.Vector == Vector.GeneralProtection;
            // Reads four bytes on some processors.
            case Mnemonic.Movsxd when instructions[0].Code == Code.Movsxd_r16_rm16:
                return guest.Vector == -1;
            default:
                return false;
        }
    }

    /// <summary>Whether CR2 may differ: large images are touched in an order of the processor's own, and so are the elements of a masked move.</summary>
    public static bool IsAddress(List<Instruction> instructions, in TestState native, in TestState guest) =>
        instructions.Count == 1 && (instructions[0].MemorySize.GetSize() is 14 or 28 or 94 or 108 or 512 || (native.Cr2 >> 12 == guest.Cr2 >> 12
            && instructions[0].Mnemonic is Mnemonic.Vmaskmovps or Mnemonic.Vmaskmovpd or Mnemonic.Vpmaskmovd or Mnemonic.Vpmaskmovq));

    /// <summary>Makers differ in whether CVTPI2PS from memory enters MMX state, and whether the conversions to MMX registers and stores of those do when they fault.</summary>
    public static bool EntersMmx(List<Instruction> instructions, in TestState native) =>
        instructions.Count == 1 && (instructions[0].Mnemonic is Mnemonic.Cvtpi2ps
            || (native.Vector >= 0 && instructions[0].Op0Kind == OpKind.Memory && instructions[0].Mnemonic is Mnemonic.Movd or Mnemonic.Movq or Mnemonic.Movntq)
            || (native.Vector == Vector.SimdFloatingPoint && instructions[0].Mnemonic is Mnemonic.Cvtps2pi or Mnemonic.Cvttps2pi or Mnemonic.Cvtpd2pi or Mnemonic.Cvttpd2pi));

    /// <summary>The bits of MXCSR that are compared after an exception.</summary>
    public static uint MxcsrMask(List<Instruction> instructions, in TestState native)
    {
        const uint status = 0x3F, inexact = 0x20;
        switch (native.Vector)
        {
            // A dot product that faults reports what its first faulting step saw, which the interpreter does not see.
            case Vector.SimdFloatingPoint when instructions.Exists(i => i.Mnemonic is Mnemonic.Dpps or Mnemonic.Dppd or Mnemonic.Vdpps or Mnemonic.Vdppd):
            // Whether a conversion has been done whose result cannot be stored is the processor's choice.
            case Vector.PageFault or Vector.AlignmentCheck when instructions.Exists(i => i.Mnemonic == Mnemonic.Vcvtps2ph):
                return ~status;
            // Whether a result that overflows or underflows unmasked is also inexact depends on a rounding that the interpreter does not see either.
            case Vector.SimdFloatingPoint when (Mxcsr(native) & 0x18) != 0:
                return ~inexact;
            default:
                return ~0u;
        }
    }

    private static uint Mxcsr(in TestState s)
    {
        fixed (byte* fx = s.Fx)
            return *(uint*)(fx + TestState.MxcsrOffset);
    }
}
