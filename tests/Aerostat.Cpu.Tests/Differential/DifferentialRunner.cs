using System.Runtime.InteropServices;
using System.Text;
using Aerostat.Memory;
using Aerostat.Processors;
using Aerostat.X86;
using Iced.Intel;

namespace Aerostat.Cpu.Tests;

/// <summary>Runs cases on the host and in the guest and says what differs.</summary>
internal sealed unsafe class DifferentialRunner : IDisposable
{
    private static readonly string[] Names =
        ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];

    private readonly NativeRunner _native = new();
    private readonly GuestRunner _guest;
    private byte[] _code = [];
    private int _bitness;

    public DifferentialRunner(Func<GuestMemory, IHypervisor> hypervisor, CpuidTable cpuid, bool watched = false) =>
        _guest = new GuestRunner(hypervisor, cpuid, watched);

    /// <summary>Status flags that nobody reads again may be lost when the translator reports a fault.</summary>
    public bool IgnoreFlagsOfFaults { get; init; }

    public NativeRunner Native => _native;

    public GuestRunner Guest => _guest;

    /// <summary>Cases run.</summary>
    public long Count { get; private set; }

    /// <summary>Cases that ended in an exception on the host.</summary>
    public long Faults { get; private set; }

    /// <summary>Null when both sides agree.</summary>
    public string? Run(TestCase c)
    {
        if (!c.Code.AsSpan().SequenceEqual(_code) || c.Bitness != _bitness)
        {
            _native.SetCode(c.Code, c.Bitness);
            _guest.SetCode(c.Code);
            _code = c.Code;
            _bitness = c.Bitness;
        }

        c.Window.CopyTo(_native.Window(c.Low));
        c.Window.CopyTo(_guest.Window(c.Low));
        if (c.Low)
        {
            // The stack is in the other window.
            _native.Window(false).Clear();
            _guest.Window(false).Clear();
        }

        TestState native = c.State, guest = c.State;
        _native.Run(ref native, c.Bitness, c.Code.Length);
        if (native.Vector >= 0)
            ReduceMask(c, ref native);
        Count++;
        if (native.Vector >= 0)
            Faults++;
        try
        {
            _guest.Run(ref guest, c.Bitness, c.Code.Length);
        }
        catch (Exception e)
        {
            return $"{e.GetType().Name}: {e.Message}";
        }

        if (guest.Vector >= 0)
            ReduceMask(c, ref guest);
        LevelShortRepeat(c, native, ref guest);
        return IsSame(c, native, guest) || IsHostsOwn(c, native, guest) ? null : Compare(c, native, guest);
    }

    // What a gather that faults leaves in its mask besides the signs is the processor's choice.
    private static void ReduceMask(TestCase c, ref TestState s)
    {
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

    // A repeated string instruction with 32-bit addresses that does not get through one iteration clears the upper halves of its registers on some
    // processors and leaves them on others.
    private static void LevelShortRepeat(TestCase c, in TestState native, ref TestState guest)
    {
        Instruction i = c.Instructions()[0];
        if (c.Bitness != 64 || !HasRepeat(i) || !(Uses(i, OpKind.MemorySegESI) || Uses(i, OpKind.MemoryESEDI)) || ((uint)c.State.Gpr[1] != 0 && native.Vector < 0))
            return;
        foreach (int k in (ReadOnlySpan<int>)[1, 6, 7])
        {
            if (native.Gpr[k] == (uint)guest.Gpr[k] && guest.Gpr[k] >> 32 == c.State.Gpr[k] >> 32)
                guest.Gpr[k] = native.Gpr[k];
        }

        static bool Uses(in Instruction i, OpKind kind) => i.Op0Kind == kind || (i.OpCount > 1 && i.Op1Kind == kind);
    }

    // The usual case, quickly: everything agrees, even what need not.
    private bool IsSame(TestCase c, in TestState native, in TestState guest)
    {
        const ulong flags = RFlags.Status | RFlags.Df | RFlags.Ac | RFlags.Id;
        if (native.Vector != guest.Vector || native.Vector == Vector.PageFault || native.Rip != guest.Rip || ((native.Rflags ^ guest.Rflags) & flags) != 0
            || c.Bitness != 64 || c.Low || native.FsBase != guest.FsBase || native.GsBase != guest.GsBase)
            return false;
        fixed (TestState* a = &native, b = &guest)
        {
            byte* x = a->Fx, y = b->Fx;
            return new ReadOnlySpan<ulong>(a->Gpr, 16).SequenceEqual(new ReadOnlySpan<ulong>(b->Gpr, 16))
                && *(uint*)x == *(uint*)y && x[4] == y[4] && *(uint*)(x + TestState.MxcsrOffset) == *(uint*)(y + TestState.MxcsrOffset)
                && new ReadOnlySpan<byte>(x + TestState.StOffset, 384).SequenceEqual(new ReadOnlySpan<byte>(y + TestState.StOffset, 384))
                && new ReadOnlySpan<byte>(x + TestState.YmmHighOffset, 256).SequenceEqual(new ReadOnlySpan<byte>(y + TestState.YmmHighOffset, 256))
                && _native.Window(false).SequenceEqual(_guest.Window(false));
        }
    }

    // Outcomes that the manual leaves to the processor.
    private static bool IsHostsOwn(TestCase c, in TestState native, in TestState guest)
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

    private string? Compare(TestCase c, in TestState native, in TestState guest)
    {
        var text = new StringBuilder();
        List<Instruction> instructions = c.Instructions();
        uint undefined = 0;
        bool undefinedResult = false;
        foreach (Instruction i in instructions)
        {
            if (instructions.Count == 1)
            {
                undefined |= UndefinedFlags.Of(i, c.State);
                undefinedResult |= UndefinedFlags.Result(i, c.State);
            }
        }

        if (instructions.Count > 1)
            undefined = SequenceGenerator.Undefined(instructions);
        if (native.Vector != guest.Vector)
            text.Append($" vector {native.Vector} is {guest.Vector};");
        if (native.Rip != guest.Rip)
            text.Append($" rip {native.Rip:x} is {guest.Rip:x};");
        if (native.Vector >= 0)
            undefined = instructions.Count == 1 && !HasRepeat(instructions[0]) ? 0 : undefined;
        if (native.Vector == Vector.DivideError)
            undefined = RFlags.Status;
        if (native.Vector >= 0 && IgnoreFlagsOfFaults)
            undefined = RFlags.Status;
        for (int k = 0; k < (c.Bitness == 64 ? 16 : 8); k++)
        {
            ulong a = native.Gpr[k], b = guest.Gpr[k];
            if (c.Bitness != 64)
            {
                a = (uint)a;
                b = (uint)b;
            }

            if (a != b && !(undefinedResult && Writes(instructions[0], k)))
                text.Append($" {Names[k]} {a:x} is {b:x};");
        }

        ulong flags = (native.Rflags ^ guest.Rflags) & (RFlags.Status | RFlags.Df | RFlags.Ac | RFlags.Id) & ~undefined;
        if (flags != 0)
            text.Append($" flags {native.Rflags:x} are {guest.Rflags:x} (differ in {flags:x});");
        if (c.Bitness == 64 && _native.HasFsGsBase && (native.FsBase != guest.FsBase || native.GsBase != guest.GsBase))
            text.Append($" fs/gs base {native.FsBase:x}/{native.GsBase:x} is {guest.FsBase:x}/{guest.GsBase:x};");
        if (native.Vector == guest.Vector && native.Vector is Vector.PageFault)
        {
            // Large images are touched in an order of the processor's own, and so are the elements of a masked move.
            if (native.Cr2 != guest.Cr2 && !(instructions.Count == 1 && instructions[0].MemorySize.GetSize() is 14 or 28 or 94 or 108 or 512)
                && !(instructions.Count == 1 && native.Cr2 >> 12 == guest.Cr2 >> 12
                    && instructions[0].Mnemonic is Mnemonic.Vmaskmovps or Mnemonic.Vmaskmovpd or Mnemonic.Vpmaskmovd or Mnemonic.Vpmaskmovq))
                text.Append($" cr2 {native.Cr2:x} is {guest.Cr2:x};");
            // The instruction-fetch bit is the host's (NX on or off); reserved bits cannot differ.
            // ARPL may read first and write later.
            uint errorMask = instructions.Exists(i => i.Mnemonic == Mnemonic.Arpl) ? 5u : 7;
            if (((native.Error ^ guest.Error) & errorMask) != 0)
                text.Append($" error {native.Error:x} is {guest.Error:x};");
        }

        CompareFx(instructions, native, guest, text);
        CompareWindow(c, instructions, undefinedResult, text);
        return text.Length == 0 ? null : text.ToString();
    }

    private static bool HasRepeat(in Instruction i) => i.HasRepPrefix || i.HasRepnePrefix;

    private static bool Writes(in Instruction i, int register) =>
        i.Op0Kind == OpKind.Register && i.Op0Register.GetFullRegister() == Register.RAX + register;

    private static void CompareFx(List<Instruction> instructions, in TestState native, in TestState guest, StringBuilder text)
    {
        fixed (byte* a = native.Fx, b = guest.Fx)
        {
            if (*(ushort*)a != *(ushort*)b)
                text.Append($" fcw {*(ushort*)a:x} is {*(ushort*)b:x};");
            // Makers differ in whether CVTPI2PS from memory enters MMX state, and whether the conversions to MMX registers and stores of those do when they
            // fault.
            bool entersMmx = instructions.Count == 1 && (instructions[0].Mnemonic is Mnemonic.Cvtpi2ps
                || (native.Vector >= 0 && instructions[0].Op0Kind == OpKind.Memory && instructions[0].Mnemonic is Mnemonic.Movd or Mnemonic.Movq or Mnemonic.Movntq)
                || (native.Vector == Vector.SimdFloatingPoint && instructions[0].Mnemonic is Mnemonic.Cvtps2pi or Mnemonic.Cvttps2pi or Mnemonic.Cvtpd2pi or Mnemonic.Cvttpd2pi));
            int statusMask = entersMmx ? 0xC7FF : 0xFFFF;
            if (((*(ushort*)(a + 2) ^ *(ushort*)(b + 2)) & statusMask) != 0)
                text.Append($" fsw {*(ushort*)(a + 2):x} is {*(ushort*)(b + 2):x};");
            if (a[4] != b[4] && !entersMmx)
                text.Append($" ftw {a[4]:x} is {b[4]:x};");
            // The last opcode and pointers are kept differently by different makers.
            // Whether a result that overflows or underflows unmasked is also inexact depends on a rounding that the interpreter does not see.
            uint mxcsrMask = native.Vector == Vector.SimdFloatingPoint && (*(uint*)(a + 24) & 0x18) != 0 ? ~0x20u : ~0u;
            // A dot product that faults reports what its first faulting step saw, which the interpreter does not see either.
            if (native.Vector == Vector.SimdFloatingPoint && instructions.Exists(i => i.Mnemonic is Mnemonic.Dpps or Mnemonic.Dppd or Mnemonic.Vdpps or Mnemonic.Vdppd))
                mxcsrMask = ~0x3Fu;
            // Whether a conversion has been done whose result cannot be stored is the processor's choice too.
            if (native.Vector is Vector.PageFault or Vector.AlignmentCheck && instructions.Exists(i => i.Mnemonic == Mnemonic.Vcvtps2ph))
                mxcsrMask = ~0x3Fu;
            if (((*(uint*)(a + 24) ^ *(uint*)(b + 24)) & mxcsrMask) != 0)
                text.Append($" mxcsr {*(uint*)(a + 24):x} is {*(uint*)(b + 24):x};");
            for (int k = 0; k < 8; k++)
            {
                // ST(k) by position in the stack, or, where the top may differ, by register.
                int i = k, j = k;
                if (entersMmx)
                    (i, j) = ((k - (a[3] >> 3)) & 7, (k - (b[3] >> 3)) & 7);
                var x = new ReadOnlySpan<byte>(a + 32 + 16 * i, 10);
                var y = new ReadOnlySpan<byte>(b + 32 + 16 * j, 10);
                if (!x.SequenceEqual(y))
                    text.Append($" st{k} {Hex(x)} is {Hex(y)};");
            }

            for (int k = 0; k < 16; k++)
            {
                var x = new ReadOnlySpan<byte>(a + 160 + 16 * k, 16);
                var y = new ReadOnlySpan<byte>(b + 160 + 16 * k, 16);
                if (!x.SequenceEqual(y))
                    text.Append($" xmm{k} {Hex(x)} is {Hex(y)};");
                var high = new ReadOnlySpan<byte>(a + TestState.YmmHighOffset + 16 * k, 16);
                var high2 = new ReadOnlySpan<byte>(b + TestState.YmmHighOffset + 16 * k, 16);
                if (!high.SequenceEqual(high2))
                    text.Append($" ymmh{k} {Hex(high)} is {Hex(high2)};");
            }
        }
    }

    /// <summary>Most significant byte first.</summary>
    private static string Hex(ReadOnlySpan<byte> bytes)
    {
        var text = new StringBuilder();
        for (int k = bytes.Length - 1; k >= 0; k--)
            text.Append(bytes[k].ToString("x2"));
        return text.ToString();
    }

    private void CompareWindow(TestCase c, List<Instruction> instructions, bool undefinedResult, StringBuilder text)
    {
        Span<byte> a = _native.Window(c.Low), b = _guest.Window(c.Low);
        if (c.Low)
        {
            if (!_native.Window(false).SequenceEqual(_guest.Window(false)))
                text.Append(" the stack differs;");
        }

        if (a.SequenceEqual(b))
            return;
        int shown = 0;
        for (int k = 0; k < a.Length && shown < 4; k++)
        {
            if (a[k] == b[k] || IsPointerField(instructions, c, k) || (undefinedResult && instructions[0].Op0Kind == OpKind.Memory))
                continue;
            int first = k;
            while (k < a.Length && a[k] != b[k])
                k++;
            text.Append($" window+{first:x} {Hex(a[first..k])} is {Hex(b[first..k])};");
            shown++;
        }
    }

    // Stored FPU images hold the last opcode and pointers, and a mask of MXCSR bits, which belong to the host.
    private static bool IsPointerField(List<Instruction> instructions, TestCase c, int offset)
    {
        if (instructions.Count != 1)
            return false;
        Instruction i = instructions[0];
        if (i.Mnemonic is not (Mnemonic.Fxsave or Mnemonic.Fxsave64 or Mnemonic.Fnstenv or Mnemonic.Fnsave or Mnemonic.Fstenv or Mnemonic.Fsave))
            return false;
        TestState s = c.State;
        ulong address = i.GetVirtualAddress(0, 0, (r, _, _) => r switch
        {
            Register.FS => c.State.FsBase,
            Register.GS => c.State.GsBase,
            >= Register.ES and <= Register.GS => 0,
            _ => Read(c, r),
        });
        if (c.Bitness != 64)
            address = (uint)address;
        int at = offset - (int)(address - c.WindowBase);
        return i.MemorySize switch
        {
            MemorySize.Fxsave_512Byte or MemorySize.Fxsave64_512Byte => at is >= 6 and < 24 or >= 28 and < 32 or >= 416 || (at is >= 32 and < 160 && (at & 15) >= 10) || (c.Bitness != 64 && at >= 288),
            MemorySize.FpuEnv28 or MemorySize.FpuState108 => at is >= 12 and < 28 || (at is < 12 && (at & 3) >= 2),
            _ => at is >= 6 and < 14,
        };
    }

    private static ulong Read(TestCase c, Register r)
    {
        ulong v = c.State.Gpr[r.GetFullRegister() - Register.RAX];
        return r.GetSize() switch { 2 => (ushort)v, 4 => (uint)v, _ => v };
    }

    public void Dispose()
    {
        _native.Dispose();
        _guest.Dispose();
    }
}
