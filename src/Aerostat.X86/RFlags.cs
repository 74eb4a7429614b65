namespace Aerostat.X86;

/// <summary>Bits of RFLAGS (Intel SDM vol. 1 section 3.4.3).</summary>
public static class RFlags
{
    /// <summary>Carry.</summary>
    public const uint Cf = 1 << 0;
    /// <summary>Always one.</summary>
    public const uint Fixed1 = 1 << 1;
    /// <summary>Parity.</summary>
    public const uint Pf = 1 << 2;
    /// <summary>Auxiliary carry.</summary>
    public const uint Af = 1 << 4;
    /// <summary>Zero.</summary>
    public const uint Zf = 1 << 6;
    /// <summary>Sign.</summary>
    public const uint Sf = 1 << 7;
    /// <summary>Trap (single step).</summary>
    public const uint Tf = 1 << 8;
    /// <summary>Interrupt enable.</summary>
    public const uint If = 1 << 9;
    /// <summary>Direction.</summary>
    public const uint Df = 1 << 10;
    /// <summary>Overflow.</summary>
    public const uint Of = 1 << 11;
    /// <summary>I/O privilege level mask.</summary>
    public const uint Iopl = 3 << 12;
    /// <summary>Nested task.</summary>
    public const uint Nt = 1 << 14;
    /// <summary>Resume.</summary>
    public const uint Rf = 1 << 16;
    /// <summary>Virtual-8086.</summary>
    public const uint Vm = 1 << 17;
    /// <summary>Alignment check, or access control under SMAP.</summary>
    public const uint Ac = 1 << 18;
    /// <summary>Virtual interrupt.</summary>
    public const uint Vif = 1 << 19;
    /// <summary>Virtual interrupt pending.</summary>
    public const uint Vip = 1 << 20;
    /// <summary>CPUID available.</summary>
    public const uint Id = 1 << 21;
    /// <summary>The six arithmetic status flags.</summary>
    public const uint Status = Cf | Pf | Af | Zf | Sf | Of;
}

/// <summary>Exception vectors (Intel SDM vol. 3 table 7-1).</summary>
public static class Vector
{
    /// <summary>#DE.</summary>
    public const int DivideError = 0;
    /// <summary>#DB.</summary>
    public const int Debug = 1;
    /// <summary>NMI.</summary>
    public const int Nmi = 2;
    /// <summary>#BP.</summary>
    public const int Breakpoint = 3;
    /// <summary>#OF.</summary>
    public const int Overflow = 4;
    /// <summary>#BR.</summary>
    public const int BoundRange = 5;
    /// <summary>#UD.</summary>
    public const int InvalidOpcode = 6;
    /// <summary>#NM.</summary>
    public const int DeviceNotAvailable = 7;
    /// <summary>#DF.</summary>
    public const int DoubleFault = 8;
    /// <summary>#TS.</summary>
    public const int InvalidTss = 10;
    /// <summary>#NP.</summary>
    public const int SegmentNotPresent = 11;
    /// <summary>#SS.</summary>
    public const int StackFault = 12;
    /// <summary>#GP.</summary>
    public const int GeneralProtection = 13;
    /// <summary>#PF.</summary>
    public const int PageFault = 14;
    /// <summary>#MF.</summary>
    public const int FloatingPoint = 16;
    /// <summary>#AC.</summary>
    public const int AlignmentCheck = 17;
    /// <summary>#MC.</summary>
    public const int MachineCheck = 18;
    /// <summary>#XM.</summary>
    public const int SimdFloatingPoint = 19;
    /// <summary>#VE.</summary>
    public const int Virtualization = 20;
    /// <summary>#CP.</summary>
    public const int ControlProtection = 21;
}
