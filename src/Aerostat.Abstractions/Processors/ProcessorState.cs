namespace Aerostat.Processors;

/// <summary>A segment register with its hidden part.</summary>
/// <param name="Selector">Visible selector.</param>
/// <param name="Base">Linear base address.</param>
/// <param name="Limit">Limit in bytes, granularity already applied.</param>
/// <param name="Attributes">
/// Access rights as in descriptor bits 40..55 moved to bits 0..15: type 0..3, S 4, DPL 5..6, P 7, AVL 12, L 13, D/B 14, G 15.
/// Bit 16 set: unusable (null).
/// </param>
public readonly record struct SegmentState(ushort Selector, ulong Base, uint Limit, uint Attributes)
{
    /// <summary>Attribute bit that marks a null, unusable register.</summary>
    public const uint Unusable = 1 << 16;
}

/// <summary>GDTR or IDTR.</summary>
public readonly record struct DescriptorTableState(ulong Base, ushort Limit);

/// <summary>Activity of a processor.</summary>
public enum ActivityState
{
    /// <summary>Executing instructions.</summary>
    Running,
    /// <summary>In HLT.</summary>
    Halted,
    /// <summary>After INIT, waiting for SIPI.</summary>
    WaitForStartup,
    /// <summary>After a triple fault.</summary>
    Shutdown,
}

/// <summary>The whole architectural state of a processor, in the shape that boot protocols and saved states need. Not a hot type.</summary>
public sealed class ProcessorState
{
    /// <summary>RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8..R15.</summary>
    public ulong[] Gpr { get; init; } = new ulong[16];
    /// <summary>Instruction pointer.</summary>
    public ulong Rip { get; set; }
    /// <summary>Flags; bit 1 is always set.</summary>
    public ulong Rflags { get; set; } = 2;
    /// <summary>ES, CS, SS, DS, FS, GS in this order (the encoding of the segment field of MOV).</summary>
    public SegmentState[] Segments { get; init; } = new SegmentState[6];
    /// <summary>Task register.</summary>
    public SegmentState Tr { get; set; }
    /// <summary>LDT register.</summary>
    public SegmentState Ldtr { get; set; }
    /// <summary>GDTR.</summary>
    public DescriptorTableState Gdtr { get; set; }
    /// <summary>IDTR.</summary>
    public DescriptorTableState Idtr { get; set; }
    /// <summary>CR0.</summary>
    public ulong Cr0 { get; set; }
    /// <summary>CR2.</summary>
    public ulong Cr2 { get; set; }
    /// <summary>CR3.</summary>
    public ulong Cr3 { get; set; }
    /// <summary>CR4.</summary>
    public ulong Cr4 { get; set; }
    /// <summary>IA32_EFER.</summary>
    public ulong Efer { get; set; }
    /// <summary>XCR0.</summary>
    public ulong Xcr0 { get; set; } = 1;
    /// <summary>DR0..DR3, then DR6 and DR7 at index 6 and 7.</summary>
    public ulong[] Dr { get; init; } = new ulong[8];
    /// <summary>x87, MMX, SSE, AVX and PKRU state: an XSAVE area in the standard format, 840 bytes (legacy 512, header 64, AVX 256, PKRU 8).</summary>
    public byte[] Xsave { get; init; } = new byte[840];
    /// <summary>Other MSRs the processor holds, by index (SYSENTER, STAR, LSTAR, CSTAR, FMASK, KERNEL_GS_BASE, PAT, TSC, TSC_ADJUST, TSC_AUX, MISC_ENABLE, MTRRs...).</summary>
    public SortedDictionary<uint, ulong> Msrs { get; init; } = [];
    /// <summary>Running, halted, waiting.</summary>
    public ActivityState Activity { get; set; }
    /// <summary>An STI or MOV SS shadow holds for the next instruction.</summary>
    public bool InterruptShadow { get; set; }
    /// <summary>NMIs are blocked until IRET.</summary>
    public bool NmiBlocked { get; set; }
    /// <summary>An NMI is latched.</summary>
    public bool NmiPending { get; set; }
    /// <summary>The shadow is that of MOV SS or POP SS, which holds debug exceptions off too (<see cref="InterruptShadow"/> is set as well).</summary>
    public bool DebugShadow { get; set; }
    /// <summary>DR6 bits of a debug trap that is due once the shadow is over.</summary>
    public ulong PendingDebug { get; set; }
    /// <summary>A second NMI has come before the first was taken.</summary>
    public bool SecondNmiPending { get; set; }
    /// <summary>An INIT has come and has not been taken.</summary>
    public bool InitPending { get; set; }
    /// <summary>Vector of a start-up IPI that has come and has not been taken; null: none.</summary>
    public byte? StartupVector { get; set; }
    /// <summary>An external interrupt that was acknowledged, and whose delivery was interrupted before it changed anything: it comes first. Null: none.</summary>
    public byte? InjectedVector { get; set; }
}
