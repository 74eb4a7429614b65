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
        ProcessorsChoice.LevelMask(c, ref native);
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

        ProcessorsChoice.LevelMask(c, ref guest);
        ProcessorsChoice.LevelShortRepeat(c, native, ref guest);
        return IsSame(c, native, guest) || ProcessorsChoice.IsOutcome(c, native, guest) ? null : Compare(c, native, guest);
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
            if (native.Cr2 != guest.Cr2 && !ProcessorsChoice.IsAddress(instructions, native, guest))
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
            bool entersMmx = ProcessorsChoice.EntersMmx(instructions, native);
            int statusMask = entersMmx ? 0xC7FF : 0xFFFF;
            if (((*(ushort*)(a + 2) ^ *(ushort*)(b + 2)) & statusMask) != 0)
                text.Append($" fsw {*(ushort*)(a + 2):x} is {*(ushort*)(b + 2):x};");
            if (a[4] != b[4] && !entersMmx)
                text.Append($" ftw {a[4]:x} is {b[4]:x};");
            // The last opcode and pointers are kept differently by different makers.
            uint mxcsrMask = ProcessorsChoice.MxcsrMask(instructions, native);
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
