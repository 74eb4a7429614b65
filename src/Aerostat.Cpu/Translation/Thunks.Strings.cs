using Aerostat.X86;

namespace Aerostat.Cpu;

/// <content>
/// REP MOVS and REP STOS (Intel SDM vol. 2B), as the host's own instruction a page at a time while the TLB has the pages and DF is clear. What is left in RCX at the end
/// is the interpreter's: the instruction may be interrupted between any two elements.
/// </content>
internal sealed unsafe partial class Thunks
{
    // The return address lies on the frame.
    private const int Pushed = 8;
    private const int FlagDirection = (int)RFlags.Df >> 8;

    private readonly nint[] strings = new nint[3 * 2 * 4];

    /// <summary>To be called in code for a TLB set, with elements of 1 shifted left by <paramref name="scale"/> bytes. Uses R10, R11 and R14; keeps the flags.</summary>
    public nint Repeat(int set, bool move, int scale) => strings[(((set * 2) + (move ? 1 : 0)) * 4) + scale];

    private void EmitStrings(HostAssembler a)
    {
        for (int set = 0; set < 3; set++)
            for (int scale = 0; scale < 4; scale++)
            {
                strings[(set * 8) + scale] = EmitRepeatStore(a, set, scale);
                strings[(set * 8) + 4 + scale] = EmitRepeatMove(a, set, scale);
            }
    }

    private nint EmitRepeatStore(HostAssembler a, int set, int scale)
    {
        nint start = a.Here, left = BeginRepeat(a), next = a.Here;
        a.RR(0x85, Host.Rcx, Host.Rcx);
        nint done = a.Jcc(Condition.E);
        nint missed = FindPage(a, set, Host.Rdi, write: true, page: Host.R14);
        a.Constant(Host.Rax, 4096);
        a.RR(0x2B, Host.Rax, Host.R10, wide: false);
        nint crossing = CountElements(a, scale);
        // Kernels clear pages as they give them out. What the host does not hold is clear already, and should stay unheld: StringHandlers.RepeatStore.
        a.LoadFrame(Host.Rdx, Frame.AgainRax + Pushed);
        a.RR(0x85, Host.Rdx, Host.Rdx);
        nint notZero = a.Jcc(Condition.Ne);
        a.RR(0x81, 7, Host.Rax, wide: false);
        a.Int32((int)StringHandlers<byte>.WorthAsking >> scale);
        nint few = a.Jcc(Condition.B);
        a.Move(Host.Rdx, Host.R14);
        a.RM(0x2B, Host.Rdx, Host.None, Host.None, 0, Offset(&state->HostBase), gs: true);
        a.RR(0xC1, 5, Host.Rdx);
        a.Byte(12);
        a.LoadState(Host.R11, Offset(&state->HeldPages));
        a.RM(0x0FA3, Host.Rdx, Host.R11, Host.None, 0, 0);
        nint unheld = a.Jcc(Condition.Ae);
        a.Bind(notZero);
        a.Bind(few);
        a.Move(Host.R11, Host.Rdi);
        a.Lea(Host.Rdi, Host.R14, Host.R10, 0, 0);
        a.Move(Host.R14, Host.Rdi);
        EmitCounted(a);
        a.LoadFrame(Host.Rax, Frame.AgainRax + Pushed);
        EmitString(a, 0xAA, scale);
        a.RR(0x2B, Host.Rdi, Host.R14);
        a.RR(0x03, Host.Rdi, Host.R11);
        a.Move(Host.Rcx, Host.Rdx);
        a.Jmp(next);
        a.Bind(missed);
        ReadOnlySpan<nint> elsewhere = EmitBlank(a, set, scale, next);
        EndRepeat(a, [left, done, crossing, unheld, .. elsewhere]);
        return start;
    }

    // Zeros for memory that is blank: nothing is to be done, to the end of its 2 MiB (Interpreter.KeepBlank). Answers the jumps for where it is not.
    private nint[] EmitBlank(HostAssembler a, int set, int scale, nint next)
    {
        const int Mask = (int)Interpreter.BlankBytes - 1;
        a.LoadFrame(Host.Rdx, Frame.AgainRax + Pushed);
        a.RR(0x85, Host.Rdx, Host.Rdx);
        nint notZero = a.Jcc(Condition.Ne);
        a.Move(Host.Rdx, Host.Rdi);
        a.RR(0x81, 4, Host.Rdx);
        a.Int32(~Mask);
        a.RR(0x81, 1, Host.Rdx);
        a.Int32(set);
        a.RM(0x3B, Host.Rdx, Host.None, Host.None, 0, Offset(&state->BlankTag), gs: true);
        nint elsewhere = a.Jcc(Condition.Ne);
        // The guest's stores until now come first: GuestMemory.IsBlank. lock or dword [rsp], 0
        a.Byte(0xF0);
        a.RM(0x83, 1, Host.Rsp, Host.None, 0, 0, wide: false);
        a.Byte(0);
        a.LoadState(Host.R11, Offset(&state->BlankByte));
        // cmp byte [r11], 0
        a.RM(0x80, 7, Host.R11, Host.None, 0, 0, wide: false);
        a.Byte(0);
        nint written = a.Jcc(Condition.Ne);
        a.Constant(Host.Rax, Interpreter.BlankBytes);
        a.RR(0x8B, Host.R10, Host.Rdi, wide: false);
        a.RR(0x81, 4, Host.R10, wide: false);
        a.Int32(Mask);
        a.RR(0x2B, Host.Rax, Host.R10, wide: false);
        nint crossing = CountElements(a, scale);
        a.RR(0x2B, Host.Rcx, Host.Rax);
        a.Lea(Host.Rdi, Host.Rdi, Host.Rax, scale, 0);
        a.Jmp(next);
        return [notZero, elsewhere, written, crossing];
    }

    private nint EmitRepeatMove(HostAssembler a, int set, int scale)
    {
        nint start = a.Here, left = BeginRepeat(a), next = a.Here;
        a.RR(0x85, Host.Rcx, Host.Rcx);
        nint done = a.Jcc(Condition.E);
        nint missed = FindPage(a, set, Host.Rsi, write: false, page: Host.R11);
        a.Constant(Host.Rdx, 4096);
        a.RR(0x2B, Host.Rdx, Host.R10, wide: false);
        a.RR(0x03, Host.R11, Host.R10);
        nint missedTo = FindPage(a, set, Host.Rdi, write: true, page: Host.R14);
        a.RR(0x03, Host.R14, Host.R10);
        a.Constant(Host.Rax, 4096);
        a.RR(0x2B, Host.Rax, Host.R10, wide: false);
        a.RR(0x3B, Host.Rax, Host.Rdx, wide: false);
        a.RR(0x0F47, Host.Rax, Host.Rdx, wide: false);
        nint crossing = CountElements(a, scale);
        EmitCounted(a);
        a.Move(Host.R10, Host.Rdi);
        a.Move(Host.Rax, Host.Rsi);
        a.Move(Host.Rdi, Host.R14);
        a.Move(Host.Rsi, Host.R11);
        EmitString(a, 0xA4, scale);
        a.RR(0x2B, Host.Rdi, Host.R14);
        a.RR(0x03, Host.Rdi, Host.R10);
        a.RR(0x2B, Host.Rsi, Host.R11);
        a.RR(0x03, Host.Rsi, Host.Rax);
        a.Move(Host.Rcx, Host.Rdx);
        a.Jmp(next);
        EndRepeat(a, [left, done, missed, missedTo, crossing]);
        return start;
    }

    private nint BeginRepeat(HostAssembler a)
    {
        a.StoreFrame(Frame.AgainRax + Pushed, Host.Rax);
        a.StoreFrame(Frame.AgainRdx + Pushed, Host.Rdx);
        a.Lahf();
        a.SetOverflowAl();
        a.StoreFrame(Frame.AgainTarget + Pushed, Host.Rax);
        // test byte [SystemFlags + 1], DF
        a.RM(0xF6, 0, Host.None, Host.None, 0, Offset(&state->SystemFlags) + 1, wide: false, gs: true);
        a.Byte(FlagDirection);
        return a.Jcc(Condition.Ne);
    }

    private static void EndRepeat(HostAssembler a, ReadOnlySpan<nint> jumps)
    {
        foreach (nint jump in jumps)
            a.Bind(jump);
        a.LoadFrame(Host.Rax, Frame.AgainTarget + Pushed);
        a.RestoreOverflow();
        a.Sahf();
        a.LoadFrame(Host.Rax, Frame.AgainRax + Pushed);
        a.LoadFrame(Host.Rdx, Frame.AgainRdx + Pushed);
        a.Byte(0xC3);
    }

    // The host's page of an address, whose place in the page R10 gets. Answers the jump for where the TLB does not have it. Uses RAX.
    private static nint FindPage(HostAssembler a, int set, int address, bool write, int page)
    {
        int tag = Interpreter.StateBytes + (set * Interpreter.TlbEntries * sizeof(TlbEntry)) + (write ? 16 : 0);
        a.RR(0x8B, Host.Rax, address, wide: false);
        a.RR(0xC1, 5, Host.Rax, wide: false);
        a.Byte(7);
        a.RR(0x81, 4, Host.Rax, wide: false);
        a.Int32(EntryMask);
        a.RM(0x8B, Host.R10, Host.Rax, Host.None, 0, tag, gs: true);
        a.RR(0x33, Host.R10, address);
        a.RR(0x81, 7, Host.R10);
        a.Int32(4095);
        nint missed = a.Jcc(Condition.A);
        a.RM(0x8B, page, Host.Rax, Host.None, 0, tag + 8, gs: true);
        return missed;
    }

    // RAX, bytes to the page's end, becomes how many elements there are until then, RCX at most. Answers the jump for where the first crosses it.
    private static nint CountElements(HostAssembler a, int scale)
    {
        a.RR(0xC1, 5, Host.Rax, wide: false);
        a.Byte(scale);
        a.RR(0x85, Host.Rax, Host.Rax, wide: false);
        nint crossing = a.Jcc(Condition.E);
        a.RR(0x3B, Host.Rax, Host.Rcx);
        a.RR(0x0F47, Host.Rax, Host.Rcx);
        return crossing;
    }

    // RCX is what RAX was, and RDX what is left behind it.
    private static void EmitCounted(HostAssembler a)
    {
        a.RR(0x2B, Host.Rcx, Host.Rax);
        a.Move(Host.Rdx, Host.Rcx);
        a.Move(Host.Rcx, Host.Rax);
    }

    private static void EmitString(HostAssembler a, int opcode, int scale)
    {
        if (scale == 1)
            a.Byte(0x66);
        a.Byte(0xF3);
        if (scale == 3)
            a.Byte(0x48);
        a.Byte(scale == 0 ? opcode : opcode + 1);
    }
}
