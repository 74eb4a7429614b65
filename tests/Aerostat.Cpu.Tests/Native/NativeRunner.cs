using System.ComponentModel;
using System.Runtime.InteropServices;
using System.Runtime.Intrinsics.X86;
using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace Aerostat.Cpu.Tests;

/// <summary>
/// Runs instructions on the host processor: loads every register, jumps to the bytes, and collects the registers when they fall through
/// to the end or when the host raises an exception. Exceptions arrive as signals; a handler in machine code looks whether the
/// signal comes from the code of a case, and passes anything else on to the runtime's own handler.
/// </summary>
/// <remarks>
/// Only one exists at a time, as the addresses are fixed. Everything the generated code touches lies below 2 GiB, so that it needs neither a
/// base register nor a stack: RSP may hold anything during a case. RIP-independent addressing also lets the same exit serve 32-bit code.
/// </remarks>
internal sealed unsafe partial class NativeRunner : IDisposable
{
    private const ulong StubAddress = 0x2100_0000, StateAddress = 0x3000_0000;
    private const int In = 0, Out = 1024, SavedRsp = 2048, SavedMxcsr = 2056, SavedFcw = 2060, SavedFs = 2064, SavedGs = 2072, FarTarget = 2080,
        OldHandlers = 2112, CodeStart = 2104;
    private const int RflagsOffset = 128, RipOffset = 136, FsOffset = 144, GsOffset = 152, VectorOffset = 160, ErrorOffset = 168, Cr2Offset = 176,
        FxOffset = 192;
    private const int XstateBv = 512, StubSize = 8192;
    private const int UserCode32 = 0x23, UserData = 0x2B, UserCode64 = 0x33, LocalCode16 = 7;

    private static readonly int[] Signals = [4, 5, 7, 8, 11];

    private readonly FixedMapping _code = FixedMapping.Code(Layout.Code, Layout.CodeSize);
    private readonly FixedMapping _stub = FixedMapping.Code(StubAddress, StubSize);
    private readonly FixedMapping _state = FixedMapping.Data(StateAddress, 4096);
    private readonly FixedMapping _window = FixedMapping.Data(Layout.Window, Layout.WindowSize);
    private readonly FixedMapping _hole = FixedMapping.Hole(Layout.Hole, Layout.HoleSize);
    private readonly FixedMapping? _lowWindow;
    private readonly List<IDisposable> _guards = [];
    private readonly ulong _exit, _exit32;
    private readonly delegate* unmanaged<void> _enter, _enter32, _enter16;
    private readonly byte[] _oldActions = new byte[Signals.Length * SigactionSize];

    private const int SigactionSize = 152;

    private static readonly AssemblerRegister64[] Registers =
        [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15];

    private static readonly AssemblerRegisterYMM[] Ymm =
        [ymm0, ymm1, ymm2, ymm3, ymm4, ymm5, ymm6, ymm7, ymm8, ymm9, ymm10, ymm11, ymm12, ymm13, ymm14, ymm15];

    /// <summary>Index of each register in the signal context's register array (Linux, ucontext of x86-64).</summary>
    private static readonly int[] ContextIndex = [13, 14, 12, 11, 15, 10, 9, 8, 0, 1, 2, 3, 4, 5, 6, 7];

    public NativeRunner()
    {
        foreach (ulong a in (ulong[])[Layout.Window - 0x10000, Layout.Window + Layout.WindowSize, Layout.Code - 0x10000, Layout.Code + Layout.CodeSize])
            _guards.Add(FixedMapping.Hole(a, 0x10000));
        try
        {
            _lowWindow = FixedMapping.Data(Layout.LowWindow, Layout.WindowSize);
        }
        catch (Exception e) when (e is Win32Exception or InvalidOperationException)
        {
            _lowWindow = null;
        }

        HasFsGsBase = (getauxval(26) & 2) != 0;
        ulong next = StubAddress;
        _exit = Emit(ref next, EmitExit);
        ulong tail = _tail;
        _exit32 = Emit(ref next, a => a.db(0xEA, (byte)_exit, (byte)(_exit >> 8), (byte)(_exit >> 16), (byte)(_exit >> 24), UserCode64, 0));
        _enter = (delegate* unmanaged<void>)Emit(ref next, a => EmitEnter(a, 0));
        _enter32 = (delegate* unmanaged<void>)Emit(ref next, a => EmitEnter(a, UserCode32));
        _enter16 = (delegate* unmanaged<void>)Emit(ref next, a => EmitEnter(a, LocalCode16));
        ulong handler = Emit(ref next, a => EmitHandler(a, tail));
        InstallHandlers(handler);
        CompatibilityMode = TryCompatibilityMode(32);
        // An LDT entry for 16-bit code (modify_ldt(2)): struct user_desc with base, limit in pages, contents 2 (code), usable.
        uint* descriptor = stackalloc uint[4] { 0, (uint)Layout.Code, 0xFFFFF, 2 << 1 | 1 << 4 | 1 << 6 };
        SixteenBitMode = CompatibilityMode && HasLowWindow && syscall(154, 0x11, descriptor, 16) == 0 && TryCompatibilityMode(16);
    }

    /// <summary>Whether the host lets user code read and write the FS and GS bases.</summary>
    public bool HasFsGsBase { get; }

    /// <summary>Whether 32-bit code can be run.</summary>
    public bool CompatibilityMode { get; }

    /// <summary>Whether 16-bit code can be run.</summary>
    public bool SixteenBitMode { get; }

    /// <summary>Whether code of this size can be run.</summary>
    public bool CanRun(int bitness) => bitness switch { 64 => true, 32 => CompatibilityMode, _ => SixteenBitMode };

    /// <summary>Whether there is memory that 16-bit addresses reach.</summary>
    public bool HasLowWindow => _lowWindow != null;

    /// <summary>The window as the case sees it.</summary>
    public Span<byte> Window(bool low) => low ? _lowWindow!.Bytes : _window.Bytes;

    /// <summary>Puts the code of a case at <see cref="Layout.Start"/>; everything around is INT3.</summary>
    public void SetCode(ReadOnlySpan<byte> code, int bitness)
    {
        Span<byte> bytes = _code.Bytes;
        bytes.Fill(0xCC);
        int start = (int)(Layout.Start - Layout.Code);
        code.CopyTo(bytes[start..]);
        Span<byte> after = bytes[(start + code.Length)..];
        if (bitness == 64)
        {
            // JMP [abs32]: changes no register and no flag.
            ((ReadOnlySpan<byte>)[0xFF, 0x24, 0x25]).CopyTo(after);
            MemoryMarshal.Write(after[3..], (uint)(StateAddress + ExitVector));
        }
        else if (bitness == 16)
        {
            // JMP ptr16:32 in 16-bit code.
            ((ReadOnlySpan<byte>)[0x66, 0xEA]).CopyTo(after);
            MemoryMarshal.Write(after[2..], (uint)_exit);
            MemoryMarshal.Write(after[6..], (ushort)UserCode64);
        }
        else
        {
            after[0] = 0xE9;
            MemoryMarshal.Write(after[1..], (uint)(_exit32 - (Layout.Start + (ulong)code.Length + 5)));
        }
    }

    private const int ExitVector = 2200;
    private ulong _tail;

    /// <summary>Runs the code once from <paramref name="state"/>, which is replaced by the result.</summary>
    public void Run(ref TestState state, int bitness, int codeLength)
    {
        byte* block = _state.Alias;
        fixed (TestState* s = &state)
        {
            NativeMemory.Copy(s, block + In, (nuint)sizeof(TestState));
            *(ulong*)(block + ExitVector) = _exit;
            if (bitness == 64)
                _enter();
            else if (bitness == 32)
                _enter32();
            else
                _enter16();
            NativeMemory.Copy(block + Out, s, (nuint)sizeof(TestState));
            if ((s->Fx[XstateBv] & 4) == 0)
                new Span<byte>(s->Fx + TestState.YmmHighOffset, 256).Clear();
        }

        if (state.Vector < 0)
            state.Rip = Layout.StartRip(bitness) + (ulong)codeLength;
    }

    private bool TryCompatibilityMode(int bitness)
    {
        // INC EAX or AX is 40h only outside 64-bit code. Without the segment the far jump faults, and the handler brings us back.
        SetCode([0x40], bitness);
        TestState s = TestState.Clean();
        s.Gpr[0] = 0xFFFF;
        s.Rip = Layout.StartRip(bitness);
        Run(ref s, bitness, 1);
        return s.Vector == -1 && (uint)s.Gpr[0] == (bitness == 32 ? 0x10000 : 0u);
    }

    private ulong Emit(ref ulong next, Action<Assembler> body)
    {
        var a = new Assembler(64);
        body(a);
        using var stream = new MemoryStream();
        AssemblerResult result = a.Assemble(new StreamCodeWriter(stream), next, BlockEncoderOptions.ReturnNewInstructionOffsets);
        byte[] code = stream.ToArray();
        code.CopyTo(_stub.Bytes[(int)(next - StubAddress)..]);
        if (_tailLabel is { } label)
        {
            _tail = result.GetLabelRIP(label);
            _tailLabel = null;
        }

        ulong at = next;
        next = (next + (ulong)code.Length + 15) & ~15UL;
        if (next > StubAddress + StubSize)
            throw new InvalidOperationException("the stub does not fit");
        return at;
    }

    private Label? _tailLabel;

    private static AssemblerMemoryOperand At(int offset) => __[(long)StateAddress + offset];

    private void EmitEnter(Assembler a, int compatibilityCs)
    {
        foreach (AssemblerRegister64 r in (AssemblerRegister64[])[rbx, rbp, r12, r13, r14, r15])
            a.push(r);
        a.mov(__qword_ptr[At(SavedRsp)], rsp);
        a.stmxcsr(__dword_ptr[At(SavedMxcsr)]);
        a.fnstcw(__word_ptr[At(SavedFcw)]);
        if (HasFsGsBase)
        {
            a.rdfsbase(rax);
            a.mov(__qword_ptr[At(SavedFs)], rax);
            a.rdgsbase(rax);
            a.mov(__qword_ptr[At(SavedGs)], rax);
        }

        if (compatibilityCs != 0)
        {
            a.mov(eax, UserData);
            a.mov(ds, eax);
            a.mov(es, eax);
            a.mov(rax, __qword_ptr[At(In + RipOffset)]);
            a.mov(__dword_ptr[At(FarTarget)], eax);
            a.mov(__word_ptr[At(FarTarget + 4)], compatibilityCs);
        }
        else if (HasFsGsBase)
        {
            a.mov(rax, __qword_ptr[At(In + FsOffset)]);
            a.wrfsbase(rax);
            a.mov(rax, __qword_ptr[At(In + GsOffset)]);
            a.wrgsbase(rax);
        }

        a.fxrstor64(__[(long)StateAddress + In + FxOffset]);
        for (int i = 0; i < 16 && Avx.IsSupported; i++)
            a.vinsertf128(Ymm[i], Ymm[i], __xmmword_ptr[At(In + FxOffset + TestState.YmmHighOffset + i * 16)], 1);
        a.push(__qword_ptr[At(In + RflagsOffset)]);
        a.popfq();
        for (int i = 0; i < 16; i++)
            a.mov(Registers[i], __qword_ptr[At(In + i * 8)]);
        if (compatibilityCs != 0)
            a.jmp(__fword_ptr[At(FarTarget)]);
        else
            a.jmp(__qword_ptr[At(In + RipOffset)]);
    }

    private void EmitExit(Assembler a)
    {
        for (int i = 0; i < 16; i++)
            a.mov(__qword_ptr[At(Out + i * 8)], Registers[i]);
        a.mov(rsp, __qword_ptr[At(SavedRsp)]);
        a.pushfq();
        a.pop(__qword_ptr[At(Out + RflagsOffset)]);
        a.fxsave64(__[(long)StateAddress + Out + FxOffset]);
        for (int i = 0; i < 16 && Avx.IsSupported; i++)
            a.vextractf128(__xmmword_ptr[At(Out + FxOffset + TestState.YmmHighOffset + i * 16)], Ymm[i], 1);
        a.mov(__qword_ptr[At(Out + FxOffset + XstateBv)], 7);
        a.mov(__qword_ptr[At(Out + VectorOffset)], -1);
        Label tail = a.CreateLabel();
        a.Label(ref tail);
        _tailLabel = tail;
        a.mov(rsp, __qword_ptr[At(SavedRsp)]);
        a.push(0x202);
        a.popfq();
        if (HasFsGsBase)
        {
            a.rdfsbase(rax);
            a.mov(__qword_ptr[At(Out + FsOffset)], rax);
            a.rdgsbase(rax);
            a.mov(__qword_ptr[At(Out + GsOffset)], rax);
            a.mov(rax, __qword_ptr[At(SavedFs)]);
            a.wrfsbase(rax);
            a.mov(rax, __qword_ptr[At(SavedGs)]);
            a.wrgsbase(rax);
        }

        if (Avx.IsSupported)
            a.vzeroupper();
        a.fninit();
        a.fldcw(__word_ptr[At(SavedFcw)]);
        a.ldmxcsr(__dword_ptr[At(SavedMxcsr)]);
        foreach (AssemblerRegister64 r in (AssemblerRegister64[])[r15, r14, r13, r12, rbp, rbx])
            a.pop(r);
        a.ret();
    }

    // rdi: signal, rdx: ucontext. Registers of the context start at 40, the FPU image's address is at 224.
    private static void EmitHandler(Assembler a, ulong tail)
    {
        const int context = 40, rip = context + 16 * 8, efl = context + 17 * 8, cs = context + 18 * 8, err = context + 19 * 8,
            trapno = context + 20 * 8, cr2 = context + 22 * 8, fpregs = 224;
        Label mine = a.CreateLabel(), theirs = a.CreateLabel();
        a.mov(rax, __qword_ptr[rdx + rip]);
        a.mov(rcx, rax);
        a.sub(rcx, __qword_ptr[At(CodeStart)]);
        a.cmp(rcx, Layout.CodeSize);
        a.jb(mine);
        // Jumps of a case end in memory that is not there; the far jump of the stub may fault in the stub.
        a.mov(rcx, rax);
        a.sub(rcx, (int)Layout.Window);
        a.cmp(rcx, Layout.WindowSize);
        a.jb(mine);
        a.cmp(rax, 0x10000);
        a.jb(mine);
        a.mov(rcx, rax);
        a.sub(rcx, (int)Layout.Hole);
        a.cmp(rcx, Layout.HoleSize);
        a.jb(mine);
        a.mov(rcx, rax);
        a.sub(rcx, (int)StubAddress);
        a.cmp(rcx, StubSize);
        a.jae(theirs);

        a.Label(ref mine);
        for (int i = 0; i < 16; i++)
        {
            a.mov(rcx, __qword_ptr[rdx + context + ContextIndex[i] * 8]);
            a.mov(__qword_ptr[At(Out + i * 8)], rcx);
        }

        a.mov(__qword_ptr[At(Out + RipOffset)], rax);
        foreach ((int from, int to) in ((int, int)[])[(efl, RflagsOffset), (trapno, VectorOffset), (err, ErrorOffset), (cr2, Cr2Offset)])
        {
            a.mov(rcx, __qword_ptr[rdx + from]);
            a.mov(__qword_ptr[At(Out + to)], rcx);
        }

        a.mov(rsi, __qword_ptr[rdx + fpregs]);
        a.mov(edi, (uint)(StateAddress + Out + FxOffset));
        // With AVX the frame is an XSAVE image; a component that is not in its header is in its initial state.
        a.mov(ecx, (Avx.IsSupported ? TestState.ImageBytes : 512) / 8);
        a.cld();
        a.rep.movsq();
        a.mov(eax, (uint)tail);
        a.mov(__qword_ptr[rdx + rip], rax);
        a.mov(__qword_ptr[rdx + efl], 0x202);
        a.mov(__word_ptr[rdx + cs], UserCode64);
        a.ret();

        a.Label(ref theirs);
        a.mov(eax, edi);
        a.mov(rax, __qword_ptr[rax * 8 + (int)StateAddress + OldHandlers]);
        a.jmp(rax);
    }

    private void InstallHandlers(ulong handler)
    {
        *(ulong*)(_state.Alias + CodeStart) = Layout.Code;
        byte* action = stackalloc byte[SigactionSize];
        fixed (byte* old = _oldActions)
        {
            for (int i = 0; i < Signals.Length; i++)
            {
                if (sigaction(Signals[i], null, old + i * SigactionSize) != 0)
                    throw new Win32Exception(Marshal.GetLastPInvokeError(), "sigaction failed");
                *(ulong*)(_state.Alias + OldHandlers + Signals[i] * 8) = *(ulong*)(old + i * SigactionSize);
                NativeMemory.Clear(action, SigactionSize);
                *(ulong*)action = handler;
                // The runtime's own mask and flags, plus SA_SIGINFO (4) and SA_ONSTACK (0x08000000): RSP is the case's.
                NativeMemory.Copy(old + i * SigactionSize + 8, action + 8, 128);
                *(uint*)(action + 136) = *(uint*)(old + i * SigactionSize + 136) | 0x08000004;
                if (sigaction(Signals[i], action, null) != 0)
                    throw new Win32Exception(Marshal.GetLastPInvokeError(), "sigaction failed");
            }
        }
    }

    public void Dispose()
    {
        fixed (byte* old = _oldActions)
        {
            for (int i = 0; i < Signals.Length; i++)
                _ = sigaction(Signals[i], old + i * SigactionSize, null);
        }

        foreach (IDisposable? d in (IDisposable?[])[_code, _stub, _state, _window, _hole, _lowWindow, .. _guards])
            d?.Dispose();
    }

    [LibraryImport("libc", SetLastError = true)]
    private static partial int sigaction(int signal, byte* action, byte* old);

    [LibraryImport("libc")]
    private static partial long syscall(long number, long function, void* pointer, ulong size);

    [LibraryImport("libc")]
    private static partial ulong getauxval(ulong type);
}
