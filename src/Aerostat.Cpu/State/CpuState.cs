using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using Aerostat.X86;

namespace Aerostat.Cpu;

/// <summary>A segment register with its hidden part, in the processor's own layout.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct SegmentRegister
{
    /// <summary>Linear base.</summary>
    public ulong Base;
    /// <summary>Limit in bytes, granularity applied.</summary>
    public uint Limit;
    /// <summary>Descriptor bits 40..55 at 0..15 (type 0..3, S 4, DPL 5..6, P 7, AVL 12, L 13, D/B 14, G 15); bit 16: unusable.</summary>
    public uint Attributes;
    /// <summary>Visible selector.</summary>
    public ushort Selector;

    public const uint TypeMask = 0xF, S = 1 << 4, P = 1 << 7, L = 1 << 13, Db = 1 << 14, G = 1 << 15, Unusable = 1 << 16;

    public readonly int Dpl => (int)(Attributes >> 5) & 3;
}

/// <summary>Numbers of the segment registers, as encoded in the instruction set.</summary>
internal static class Seg
{
    public const int Es = 0, Cs = 1, Ss = 2, Ds = 3, Fs = 4, Gs = 5, Tr = 6, Ldtr = 7;
}

/// <summary>Reasons to leave the fast path at the next block boundary (<see cref="CpuState.Request"/>).</summary>
[Flags]
internal enum Request
{
    None = 0,
    /// <summary>INTR is asserted.</summary>
    Interrupt = 1,
    Nmi = 2,
    Init = 4,
    Startup = 8,
    /// <summary>Another thread wants Run to return.</summary>
    Kick = 16,
    /// <summary>Another processor waits for this one to drop its fast write paths.</summary>
    TlbShootdown = 32,
    /// <summary>The exit handler wants Run to return once the instruction is complete.</summary>
    HandlerExit = 64,
    /// <summary>A second NMI has come before the first was taken; see <see cref="Interpreter.RaiseNmi"/>.</summary>
    SecondNmi = 128,
    /// <summary>Code that this processor may hold translations of has changed.</summary>
    CodeChanged = 256,
    /// <summary>Run is to return when an interrupt could be taken.</summary>
    InterruptWindow = 512,
    /// <summary>An interrupt that was acknowledged elsewhere is to be delivered; see <see cref="Processors.ProcessorState.InjectedVector"/>.</summary>
    Injected = 1024,
}

/// <summary>
/// The state of one software processor, in native memory so that generated code can reach it at fixed offsets. General
/// registers come first: a register operand is its byte offset from the start of this structure.
/// </summary>
/// <remarks>
/// Status flags are kept lazily: ZF is <c>FlagZero == 0</c>; SF is bit 63 of FlagSignParity and PF the even parity of its low
/// byte; FlagCarry holds the carry out of the most significant bit at bit 63 (CF), the carry into it at bit 62 (OF = bit 63 ^
/// bit 62) and the carry out of bit 3 at bit 3 (AF).
/// </remarks>
[StructLayout(LayoutKind.Sequential)]
internal unsafe struct CpuState
{
    /// <summary>RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8..R15, then a register that is always zero, then the address of the running block.</summary>
    public fixed ulong Gpr[18];
    public ulong Rip;
    public ulong FlagZero;
    public ulong FlagSignParity;
    public ulong FlagCarry;
    /// <summary>RFLAGS without the six status flags and bit 1: TF, IF, DF, IOPL, NT, RF, VM, AC, VIF, VIP, ID.</summary>
    public uint SystemFlags;
    /// <summary><see cref="Cpu.Request"/> bits; set by other threads with interlocked operations.</summary>
    public int Request;
    /// <summary>The TLB set of the present privilege (user, supervisor, supervisor with user access).</summary>
    public TlbEntry* Tlb;
    /// <summary>Non-zero while a read-modify-write goes through the bounce buffer or hits a watched page.</summary>
    public ulong RmwPending;
    /// <summary>16, 32 or 64: default code size of CS now.</summary>
    public int Bitness;
    public int Cpl;
    /// <summary>0xFFFF, 0xFFFFFFFF or all ones: which bits of RSP a push or pop uses.</summary>
    public ulong StackMask;
    /// <summary>Interrupts are held off for the next instruction (STI, MOV SS, POP SS).</summary>
    public int Shadow;
    /// <summary>An <see cref="Aerostat.Processors.ActivityState"/>.</summary>
    public int Activity;
    /// <summary>1 between the delivery of an NMI and the next IRET.</summary>
    public int NmiBlocked;
    /// <summary>DR6 bits of a debug trap that is due after the present instruction (data breakpoints, task-switch T bit); TF is seen by the run loop itself.</summary>
    public ulong PendingDebug;

    public SegmentRegister Es, Cs, Ss, Ds, Fs, Gs, Tr, Ldtr;
    public ulong GdtBase, IdtBase;
    public uint GdtLimit, IdtLimit;
    public ulong Cr0, Cr2, Cr3, Cr4, Efer, Xcr0;
    public fixed ulong Dr[8];
    public ulong SysenterCs, SysenterEsp, SysenterEip, Star, Lstar, Cstar, Fmask, KernelGsBase, TscAux, Pat;
    /// <summary>
    /// x87, MMX, XMM and YMM: an XSAVE area in the standard format, 64-byte aligned, always current. MXCSR at 24, ST/MM at 32 + 16 n,
    /// XMM at 160 + 16 n, upper halves of YMM at 576 + 16 n, PKRU at 832. The x87 tag byte is in FXSAVE form at 4.
    /// </summary>
    public byte* Xsave;

    /// <summary>Non-zero makes generated code leave at its next check; set by other threads after <see cref="Request"/>.</summary>
    public int Poll;
    /// <summary>Status flags at entry to and exit from generated code: byte 0 is OF, byte 1 is AH as LAHF leaves it.</summary>
    public uint HostFlags;
    /// <summary>For each variant of generated code, its table of jump targets, or a table of exits while somebody waits.</summary>
    public fixed ulong JumpTable[9];
    /// <summary>For each variant, its key in the second jump table; where that is.</summary>
    public fixed ulong TableKey[9];
    public ulong SecondTable;
    /// <summary>Where the <see cref="CheckSite"/>s are; the numbers of those whose slots hold something, and how many those are.</summary>
    public ulong CheckSites, BoundList, BoundChecks;
    /// <summary>Where guest memory begins, and the pages of it that the host is known to hold, a bit each (<see cref="Memory.GuestMemory.HeldPages"/>).</summary>
    public ulong HostBase, HeldPages;
    /// <summary>A tag that no address has, as <see cref="TlbEntry"/> tells, and the spare page that goes with it.</summary>
    public ulong NoTag, NoHost;
    /// <summary>What generated code left in its scratch registers R10, R11 and R14 at its exit.</summary>
    public ulong ExitAddress, ExitRecord, GroupPointer;
    /// <summary>Where to go at entry; the host's MXCSR.</summary>
    public ulong EntryTarget, HostMxcsr;
    /// <summary>Number of the exit record of the last indirect branch.</summary>
    public ulong IndirectSource;
    /// <summary>Guest instructions counted by generated code.</summary>
    public long Executed;
    /// <summary>Number of the TLB set in force (<see cref="Interpreter.UserSet"/> and so on), and the first set of the address space in force.</summary>
    public int TlbSet;
    /// <summary>How much of the vector registers was loaded when generated code was left (<see cref="VectorLevel"/>).</summary>
    public int Level;
    public TlbEntry* TlbSets;
    /// <summary>
    /// Tells decoded code apart in the jump cache: privilege (bit 62) and 16- and 32-bit code (bits 58 and 59). Canonical addresses have bits 57 to 63
    /// all alike, so no two modes share a key.
    /// </summary>
    public ulong ModeKey;
    /// <summary>Where SYSRET in generated code goes on: the code that loads as many vector registers as the user's code wants.</summary>
    public ulong UserEntry;

    /// <summary>
    /// What CPUID has answered lately, for generated code: leaf, sub-leaf, EAX, EBX, ECX, EDX, by the low bits of the leaf. Only leaves that
    /// nothing changes.
    /// </summary>
    public fixed uint CpuidCache[CpuidCacheEntries * CpuidCacheWords];

    /// <summary>
    /// Where zeros may be stored without doing anything: a linear address of 2 MiB, with the number of the TLB set, or <see cref="Interpreter.NoBlank"/>; and where to
    /// look whether that still holds (<see cref="Memory.GuestMemory.WrittenBlocks"/>).
    /// </summary>
    public ulong BlankTag, BlankByte;

    public const int CpuidCacheEntries = 8, CpuidCacheWords = 8;
    public const int ZeroRegister = 16 * 8, BlockRip = 17 * 8;
    public const int XsaveBytes = 1536, MxcsrOffset = 24, StOffset = 32, XmmOffset = 160, YmmHighOffset = 576, PkruOffset = 832;
}

/// <summary>Access to the packed parts of <see cref="CpuState"/>.</summary>
internal static unsafe class CpuStateExtensions
{
    /// <summary>Segment register by its encoding (<see cref="Seg"/>).</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static SegmentRegister* Segment(CpuState* s, int index) => &s->Es + index;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool Cf(CpuState* s) => (long)s->FlagCarry < 0;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool Of(CpuState* s) => (long)(s->FlagCarry ^ (s->FlagCarry << 1)) < 0;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool Zf(CpuState* s) => s->FlagZero == 0;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool Sf(CpuState* s) => (long)s->FlagSignParity < 0;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool Pf(CpuState* s) => (System.Numerics.BitOperations.PopCount((uint)(byte)s->FlagSignParity) & 1) == 0;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool Af(CpuState* s) => (s->FlagCarry & 8) != 0;

    /// <summary>The whole of RFLAGS.</summary>
    public static uint GetRflags(CpuState* s) =>
        s->SystemFlags | RFlags.Fixed1 |
        (Cf(s) ? RFlags.Cf : 0) | (Pf(s) ? RFlags.Pf : 0) | (Af(s) ? RFlags.Af : 0) |
        (Zf(s) ? RFlags.Zf : 0) | (Sf(s) ? RFlags.Sf : 0) | (Of(s) ? RFlags.Of : 0);

    /// <summary>Sets the six status flags from RFLAGS bits; the others are left alone.</summary>
    public static void SetStatusFlags(CpuState* s, uint rflags)
    {
        s->FlagZero = (rflags & RFlags.Zf) != 0 ? 0UL : 1;
        s->FlagSignParity = ((rflags & RFlags.Sf) != 0 ? 1UL << 63 : 0) | ((rflags & RFlags.Pf) != 0 ? 0UL : 1);
        SetCarryFlags(s, (rflags & RFlags.Cf) != 0, (rflags & RFlags.Of) != 0, (rflags & RFlags.Af) != 0);
    }

    /// <summary>Sets CF, OF and AF; the others are left alone.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void SetCarryFlags(CpuState* s, bool cf, bool of, bool af) =>
        s->FlagCarry = (cf ? 1UL << 63 : 0) | (cf ^ of ? 1UL << 62 : 0) | (af ? 8UL : 0);

    /// <summary>
    /// Sets all of RFLAGS without side effects (no privilege rules). Callers that change TF, IF, VM or AC must return
    /// <see cref="Outcome.Stop"/> or <see cref="Outcome.Jump"/> and, for AC, call <see cref="Interpreter.UpdateMode"/>.
    /// </summary>
    public static void SetRflags(CpuState* s, uint rflags)
    {
        SetStatusFlags(s, rflags);
        s->SystemFlags = rflags & ~(RFlags.Status | RFlags.Fixed1) & 0x3F7FD7;
    }
}
