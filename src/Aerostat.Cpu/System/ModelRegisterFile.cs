using Aerostat.X86;

namespace Aerostat.Cpu;

/// <summary>
/// Model-specific registers that software may write and read back but that change nothing in the interpreter (Intel SDM vol. 4): memory types
/// have no effect without caches, speculation controls none without speculation.
/// </summary>
internal sealed class ModelRegisterFile
{
    public const int VariableMtrrs = 8;
    public const ulong DefaultPat = 0x0007_0406_0007_0406;

    /// <summary>Machine-check banks, in which no error is ever found.</summary>
    public const int MachineCheckBanks = 4;

    private const int BankRegisters = 4, BankControl = 0, BankStatus = 1;

    /// <summary>IA32_MTRRCAP: 8 variable ranges, fixed ranges, write combining.</summary>
    public const ulong MtrrCap = VariableMtrrs | (1 << 8) | (1 << 10);

    /// <summary>The fixed-range registers, in the order of <see cref="FixedMtrrs"/>.</summary>
    public static ReadOnlySpan<ushort> FixedMtrrIndexes => [0x250, 0x258, 0x259, 0x268, 0x269, 0x26A, 0x26B, 0x26C, 0x26D, 0x26E, 0x26F];

    public ulong[] VariableMtrrValues { get; } = new ulong[VariableMtrrs * 2];
    public ulong[] FixedMtrrs { get; } = new ulong[11];
    public ulong MtrrDefaultType { get; set; }

    /// <summary>Control, status, address and further information of each bank in turn.</summary>
    public ulong[] MachineCheckValues { get; } = new ulong[MachineCheckBanks * BankRegisters];

    public ulong MiscEnable { get; set; }
    public ulong SpecCtrl { get; set; }

    /// <summary>Rights of the supervisor's protection keys; unlike the others it has an effect, see the page walk.</summary>
    public ulong Pkrs { get; set; }

    public ulong McgStatus { get; set; }
    public ulong DebugControl { get; set; }

    /// <summary>AMD's DE_CFG and HWCR.</summary>
    public ulong AmdDeCfg { get; set; }

    /// <inheritdoc cref="AmdDeCfg"/>
    public ulong AmdHwcr { get; set; }

    /// <summary>Power-on values (Intel SDM vol. 3 table 10-1).</summary>
    public void Reset()
    {
        Array.Clear(VariableMtrrValues);
        Array.Clear(FixedMtrrs);
        Array.Clear(MachineCheckValues);
        MtrrDefaultType = SpecCtrl = Pkrs = McgStatus = DebugControl = AmdHwcr = 0;
        MiscEnable = MiscEnableFixed | 1;
        // LFENCE is serializing, as Linux wants it.
        AmdDeCfg = 1 << 1;
    }

    /// <summary>
    /// IA32_MISC_ENABLE bits that hold what is written: fast strings, thermal control, SpeedStep, MONITOR, limited CPUID, xTPR, no XD. Nothing
    /// follows from them.
    /// </summary>
    public const ulong MiscEnableWritable = 1 | 1 << 3 | 1 << 16 | 1 << 18 | 1 << 22 | 1 << 23 | 1UL << 34;

    /// <summary>IA32_MISC_ENABLE bits that never change: no branch trace store, no PEBS.</summary>
    public const ulong MiscEnableFixed = 3 << 11;

    /// <summary>Whether every byte is a memory type of PAT.</summary>
    public static bool IsValidPat(ulong value)
    {
        for (int i = 0; i < 64; i += 8)
            if ((byte)(value >> i) is 2 or 3 or > 7)
                return false;
        return true;
    }

    /// <summary>Whether this is a memory type of an MTRR.</summary>
    public static bool IsValidMtrrType(ulong type) => type is 0 or 1 or 4 or 5 or 6;

    /// <summary>Whether this is a register of a machine-check bank.</summary>
    public static bool IsMachineCheck(uint index) => index - Msr.Mc0Ctl < MachineCheckBanks * BankRegisters;

    /// <summary>
    /// Writes a register of a bank: errors are all enabled or all disabled, a status can only be cleared (Intel SDM vol. 3 section 16.3.2).
    /// </summary>
    public bool WriteMachineCheck(uint index, ulong value)
    {
        uint at = index - Msr.Mc0Ctl, kind = at % BankRegisters;
        if ((kind == BankControl && value is not (0 or ulong.MaxValue)) || (kind == BankStatus && value != 0))
            return false;
        MachineCheckValues[at] = value;
        return true;
    }

    /// <summary>Writes one MTRR; false: reserved bits or no such register.</summary>
    public bool WriteMtrr(uint index, ulong value, int physicalBits)
    {
        ulong beyond = ulong.MaxValue << physicalBits;
        if (index == Msr.MtrrDefType)
        {
            if ((value & ~0xCFFUL) != 0 || !IsValidMtrrType(value & 0xFF))
                return false;
            MtrrDefaultType = value;
            return true;
        }
        if (index - Msr.MtrrPhysBase0 < VariableMtrrs * 2)
        {
            bool mask = (index & 1) != 0;
            if ((value & (beyond | (mask ? 0x7FFUL : 0xF00))) != 0 || (!mask && !IsValidMtrrType(value & 0xFF)))
                return false;
            VariableMtrrValues[index - Msr.MtrrPhysBase0] = value;
            return true;
        }
        int n = FixedMtrrIndexes.IndexOf((ushort)index);
        if (n < 0 || index > ushort.MaxValue)
            return false;
        for (int i = 0; i < 64; i += 8)
            if (!IsValidMtrrType(value >> i & 0xFF))
                return false;
        FixedMtrrs[n] = value;
        return true;
    }

    /// <summary>Reads one MTRR; false: no such register.</summary>
    public bool ReadMtrr(uint index, out ulong value)
    {
        value = 0;
        if (index == Msr.MtrrDefType)
        {
            value = MtrrDefaultType;
            return true;
        }
        if (index - Msr.MtrrPhysBase0 < VariableMtrrs * 2)
        {
            value = VariableMtrrValues[index - Msr.MtrrPhysBase0];
            return true;
        }
        int n = index > ushort.MaxValue ? -1 : FixedMtrrIndexes.IndexOf((ushort)index);
        if (n < 0)
            return false;
        value = FixedMtrrs[n];
        return true;
    }
}
