using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace Aerostat.Kvm;

// The structures of Linux's KVM interface (Documentation/virt/kvm/api.rst), x86-64 layout. Field names are ours.

/// <summary>General registers.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct KvmRegisters
{
    public ulong Rax, Rbx, Rcx, Rdx, Rsi, Rdi, Rsp, Rbp, R8, R9, R10, R11, R12, R13, R14, R15, Rip, Rflags;
}

/// <summary>A segment register with its hidden part.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct KvmSegment
{
    public ulong Base;
    public uint Limit;
    public ushort Selector;
    public byte Type, Present, Dpl, Db, S, L, G, Available, Unusable, Padding;
}

/// <summary>GDTR or IDTR.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct KvmDescriptorTable
{
    public ulong Base;
    public ushort Limit, Padding0, Padding1, Padding2;
}

/// <summary>Segments, control registers, EFER, and one interrupt that waits for its injection.</summary>
[StructLayout(LayoutKind.Sequential)]
internal unsafe struct KvmSpecialRegisters
{
    public KvmSegment Cs, Ds, Es, Fs, Gs, Ss, Tr, Ldt;
    public KvmDescriptorTable Gdt, Idt;
    public ulong Cr0, Cr2, Cr3, Cr4, Cr8, Efer, ApicBase;
    public fixed ulong InterruptBitmap[4];
}

/// <summary>Events on their way into the guest.</summary>
[StructLayout(LayoutKind.Sequential)]
internal unsafe struct KvmVcpuEvents
{
    public const uint NmiPendingValid = 1, SipiVectorValid = 2, ShadowValid = 4;

    public byte ExceptionInjected, ExceptionNumber, ExceptionHasErrorCode, ExceptionPending;
    public uint ExceptionErrorCode;
    public byte InterruptInjected, InterruptNumber, InterruptSoft, InterruptShadow;
    public byte NmiInjected, NmiPending, NmiMasked, NmiPadding;
    public uint SipiVector;
    public uint Flags;
    public fixed byte Rest[31];
    public byte ExceptionHasPayload;
    public ulong ExceptionPayload;
}

/// <summary>DR0..DR3, DR6, DR7.</summary>
[StructLayout(LayoutKind.Sequential)]
internal unsafe struct KvmDebugRegisters
{
    public fixed ulong Address[4];
    public ulong Dr6, Dr7, Flags;
    public fixed ulong Reserved[9];
}

/// <summary>XCR0 and its future siblings.</summary>
[StructLayout(LayoutKind.Sequential)]
internal unsafe struct KvmExtendedControlRegisters
{
    public uint Count, Flags;
    // Number, reserved, value: 16 bytes for each of 16.
    public fixed ulong Registers[32];
    public fixed ulong Padding[16];
}

/// <summary>One MSR and its value.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct KvmMsrEntry
{
    public uint Index, Reserved;
    public ulong Value;
}

/// <summary>One CPUID entry.</summary>
[StructLayout(LayoutKind.Sequential)]
internal unsafe struct KvmCpuidEntry
{
    public const uint SignificantIndex = 1;

    public uint Function, Index, Flags, Eax, Ebx, Ecx, Edx;
    public fixed uint Padding[3];
}

/// <summary>A piece of guest memory.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct KvmMemorySlot
{
    public const uint LogDirtyPages = 1, Readonly = 2;

    public uint Slot, Flags;
    public ulong GuestAddress, Size, HostAddress;
}

/// <summary>Asks for a slot's dirty bitmap.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct KvmDirtyLogRequest
{
    public uint Slot, Padding;
    public ulong Bitmap;
}

/// <summary>Switches a capability on.</summary>
[StructLayout(LayoutKind.Sequential)]
internal unsafe struct KvmEnableCapability
{
    public uint Capability, Flags;
    public fixed ulong Arguments[4];
    public fixed byte Padding[64];
}

/// <summary>Sixteen ranges of MSRs whose accesses KVM does not serve.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct KvmMsrFilter
{
    public const int Most = 16;

    public uint Flags, Padding;
    public KvmMsrRanges Ranges;
}

/// <summary>The ranges of a <see cref="KvmMsrFilter"/>.</summary>
[InlineArray(KvmMsrFilter.Most)]
internal struct KvmMsrRanges
{
    private KvmMsrRange first;
}

/// <summary>One range; a clear bit in the bitmap sends the MSR to user space.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct KvmMsrRange
{
    public const uint Read = 1, Write = 2;

    public uint Flags, Count, First, Padding;
    public ulong Bitmap;
}

/// <summary>The kernel's clock of a machine.</summary>
[StructLayout(LayoutKind.Sequential)]
internal unsafe struct KvmClock
{
    public ulong Nanoseconds;
    public uint Flags, Padding0;
    public ulong Realtime, HostTsc;
    public fixed uint Padding[4];
}

/// <summary>The host's breakpoints and single step.</summary>
[StructLayout(LayoutKind.Sequential)]
internal unsafe struct KvmGuestDebug
{
    public const uint Enable = 1, SingleStep = 2, SoftwareBreakpoints = 0x10000, HardwareBreakpoints = 0x20000, InjectBreakpoint = 0x80000;

    public uint Control, Padding;
    public fixed ulong DebugRegisters[8];
}

/// <summary>A linear address as a vCPU's page tables map it now.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct KvmTranslation
{
    public ulong Linear, Physical;
    public byte Valid, Writable, UserMode;
}

/// <summary>
/// The page that a vCPU shares with the kernel. Which of the overlapping fields means something follows from <see cref="ExitReason"/>.
/// </summary>
[StructLayout(LayoutKind.Explicit)]
internal unsafe struct KvmRun
{
    [FieldOffset(0)] public byte RequestInterruptWindow;
    /// <summary>Non-zero: KVM_RUN completes what is half done and returns EINTR. Written by other threads.</summary>
    [FieldOffset(1)] public byte ImmediateExit;
    [FieldOffset(8)] public uint ExitReason;
    [FieldOffset(12)] public byte ReadyForInterrupt;
    [FieldOffset(13)] public byte InterruptFlag;
    [FieldOffset(16)] public ulong Cr8;
    [FieldOffset(24)] public ulong ApicBase;

    // KVM_EXIT_UNKNOWN, KVM_EXIT_FAIL_ENTRY.
    [FieldOffset(32)] public ulong HardwareReason;

    // KVM_EXIT_IO.
    [FieldOffset(32)] public byte IoIsOut;
    [FieldOffset(33)] public byte IoSize;
    [FieldOffset(34)] public ushort IoPort;
    [FieldOffset(36)] public uint IoCount;
    [FieldOffset(40)] public ulong IoDataOffset;

    // KVM_EXIT_MMIO.
    [FieldOffset(32)] public ulong MmioAddress;
    [FieldOffset(40)] public ulong MmioData;
    [FieldOffset(48)] public uint MmioLength;
    [FieldOffset(52)] public byte MmioIsWrite;

    // KVM_EXIT_X86_RDMSR, KVM_EXIT_X86_WRMSR.
    [FieldOffset(32)] public byte MsrError;
    [FieldOffset(40)] public uint MsrReason;
    [FieldOffset(44)] public uint MsrIndex;
    [FieldOffset(48)] public ulong MsrData;

    // KVM_EXIT_DEBUG.
    [FieldOffset(32)] public uint DebugException;
    [FieldOffset(40)] public ulong DebugAddress;
    [FieldOffset(48)] public ulong DebugDr6;
    [FieldOffset(56)] public ulong DebugDr7;

    // KVM_EXIT_IOAPIC_EOI.
    [FieldOffset(32)] public byte EndedVector;

    // KVM_EXIT_INTERNAL_ERROR.
    [FieldOffset(32)] public uint InternalError;
}
