using Aerostat.X86;

namespace Aerostat.Cpu;

/// <content>RDMSR and WRMSR. What the processor does not hold goes to the exit handler.</content>
internal sealed unsafe partial class Interpreter
{
    // Names that only this file uses (Intel SDM vol. 4 chapter 2; AMD APM vol. 2 appendix A).
    private const uint MsrP5Address = 0, MsrP5Type = 1, MsrEblPowerOn = 0x2A, MsrSmiCount = 0x34, MsrMicrocodeTrigger = 0x79, MsrPlatformInfo = 0xCE;
    private const uint MsrFlushCmd = 0x10B, MsrDebugControl = 0x1D9;
    private const uint AmdSyscfg = 0xC001_0010, AmdHwcr = 0xC001_0015, AmdTopMem = 0xC001_001A, AmdNbCfg = 0xC001_001F;
    private const uint AmdFirstCounter = 0xC001_0000, AmdCounters = 8;
    private const uint AmdIntPending = 0xC001_0055, AmdLsCfg = 0xC001_1020, AmdDcCfg = 0xC001_1022, AmdBuCfg2 = 0xC001_102A, AmdDeCfg = 0xC001_1029;

    // High enough that no guest wants to load newer microcode.
    private const ulong MicrocodeRevision = 0x7FFF_0000;

    private readonly ModelRegisterFile registers = new();

    /// <summary>RDMSR without privilege check; false: no such register.</summary>
    internal bool ReadMsr(CpuState* s, uint index, out ulong value)
    {
        switch (index)
        {
            case Msr.FsBase:
                value = s->Fs.Base;
                return true;
            case Msr.GsBase:
                value = s->Gs.Base;
                return true;
            case Msr.KernelGsBase:
                value = s->KernelGsBase;
                return true;
            case Msr.Tsc:
                value = Timestamp.Read();
                return true;
            default:
                return ReadHeldMsr(s, index, out value) || Handler.ReadMsr(index, out value);
        }
    }

    /// <summary>Registers that the processor holds, the hot ones above excepted.</summary>
    private bool ReadHeldMsr(CpuState* s, uint index, out ulong value)
    {
        bool known = true;
        value = 0;
        switch (index)
        {
            case Msr.Efer:
                value = s->Efer;
                known = Model.EferMask != 0;
                break;
            case Msr.Star:
                value = s->Star;
                break;
            case Msr.Lstar:
                value = s->Lstar;
                break;
            case Msr.Cstar:
                value = s->Cstar;
                break;
            case Msr.Fmask:
                value = s->Fmask;
                break;
            case Msr.SysenterCs:
                value = s->SysenterCs;
                break;
            case Msr.SysenterEsp:
                value = s->SysenterEsp;
                break;
            case Msr.SysenterEip:
                value = s->SysenterEip;
                break;
            case Msr.TscAux:
                value = s->TscAux;
                known = Model.HasRdtscp;
                break;
            case Msr.TscAdjust:
                value = (ulong)Timestamp.Adjust;
                known = Model.HasTscAdjust;
                break;
            case Msr.Pat:
                value = s->Pat;
                known = Model.HasPat;
                break;
            case Msr.SpecCtrl:
                value = registers.SpecCtrl;
                known = Model.HasSpecCtrl;
                break;
            case Msr.ArchCapabilities:
                value = Model.ArchCapabilitiesValue;
                known = Model.HasArchCapabilities;
                break;
            case Msr.Xss:
                known = Model.HasXsaves; // no supervisor components
                break;
            case Msr.MtrrCap:
                value = ModelRegisterFile.MtrrCap;
                known = Model.HasMtrr;
                break;
            case Msr.BiosSignId:
                value = Model.Vendor == Vendor.Amd ? MicrocodeRevision : MicrocodeRevision << 32;
                break;
            case Msr.McgCap:
                value = ModelRegisterFile.MachineCheckBanks;
                known = Model.HasMce;
                break;
            case Msr.McgStatus:
                value = registers.McgStatus;
                known = Model.HasMce;
                break;
            case Msr.MiscEnable:
                value = registers.MiscEnable;
                known = Model.Vendor == Vendor.Intel;
                break;
            case MsrDebugControl:
                value = registers.DebugControl;
                break;
            case Msr.FeatureControl:
                value = 1; // locked, with everything off
                known = Model.Vendor == Vendor.Intel;
                break;
            case Msr.PlatformId or MsrP5Address or MsrP5Type or MsrEblPowerOn or MsrSmiCount or MsrPlatformInfo:
                known = Model.Vendor == Vendor.Intel;
                break;
            case AmdSyscfg or AmdTopMem or AmdNbCfg or AmdIntPending or AmdLsCfg or AmdDcCfg or AmdBuCfg2:
                known = Model.Vendor == Vendor.Amd;
                break;
            case AmdHwcr:
                value = registers.AmdHwcr | (1 << 24); // the TSC runs at the nominal frequency
                known = Model.Vendor == Vendor.Amd;
                break;
            case AmdDeCfg:
                value = registers.AmdDeCfg;
                known = Model.Vendor == Vendor.Amd;
                break;
            case Msr.Pkrs:
                value = registers.Pkrs;
                known = Model.HasPks;
                break;
            default:
                // The four counters that every AMD processor has count nothing.
                if (Model.Vendor == Vendor.Amd && index - AmdFirstCounter < AmdCounters)
                    break;
                if (ModelRegisterFile.IsMachineCheck(index))
                {
                    value = registers.MachineCheckValues[index - Msr.Mc0Ctl];
                    return Model.HasMce;
                }
                return Model.HasMtrr && registers.ReadMtrr(index, out value);
        }
        return known;
    }

    /// <summary>WRMSR without privilege check; false: no such register, or a value it does not take.</summary>
    internal bool WriteMsr(CpuState* s, uint index, ulong value)
    {
        switch (index)
        {
            case Msr.FsBase:
                return WriteAddress(ref s->Fs.Base, value);
            case Msr.GsBase:
                return WriteAddress(ref s->Gs.Base, value);
            case Msr.KernelGsBase:
                return WriteAddress(ref s->KernelGsBase, value);
            case Msr.Tsc:
                Timestamp.Write(value);
                return true;
            case Msr.TscAdjust when Model.HasTscAdjust:
                Timestamp.WriteAdjust((long)value);
                return true;
            case Msr.Efer:
                return SetEfer(s, value);
            case Msr.Star:
                s->Star = value;
                return true;
            case Msr.Lstar:
                return WriteAddress(ref s->Lstar, value);
            case Msr.Cstar:
                return WriteAddress(ref s->Cstar, value);
            case Msr.Fmask:
                s->Fmask = (uint)value;
                return true;
            case Msr.SysenterCs:
                s->SysenterCs = value;
                return true;
            case Msr.SysenterEsp:
                return WriteAddress(ref s->SysenterEsp, value);
            case Msr.SysenterEip:
                return WriteAddress(ref s->SysenterEip, value);
            case Msr.TscAux when Model.HasRdtscp && value >> 32 == 0:
                s->TscAux = value;
                return true;
            case Msr.Pat when Model.HasPat && ModelRegisterFile.IsValidPat(value):
                s->Pat = value;
                return true;
            case Msr.SpecCtrl when Model.HasSpecCtrl && (value & ~Model.SpecCtrlMask) == 0:
                registers.SpecCtrl = value;
                return true;
            case Msr.Xss when Model.HasXsaves && value == 0:
                return true;
            case Msr.PredCmd when Model.HasSpecCtrl && value <= 1:
                return true;
            case MsrFlushCmd when Model.HasL1dFlush && value <= 1:
                return true;
            case Msr.BiosSignId or MsrMicrocodeTrigger:
                return true;
            case Msr.McgStatus when Model.HasMce:
                registers.McgStatus = value & 7;
                return true;
            case Msr.MiscEnable when Model.Vendor == Vendor.Intel:
                registers.MiscEnable = (value & ModelRegisterFile.MiscEnableWritable) | ModelRegisterFile.MiscEnableFixed;
                return true;
            case MsrDebugControl when (value & ~3UL) == 0:
                registers.DebugControl = value;
                return true;
            case MsrP5Address or MsrP5Type or MsrEblPowerOn when Model.Vendor == Vendor.Intel:
                return true;
            case AmdHwcr when Model.Vendor == Vendor.Amd:
                registers.AmdHwcr = value;
                return true;
            case AmdDeCfg when Model.Vendor == Vendor.Amd:
                registers.AmdDeCfg = value | 2;
                return true;
            case AmdSyscfg or AmdNbCfg or AmdIntPending or AmdLsCfg or AmdDcCfg or AmdBuCfg2 when Model.Vendor == Vendor.Amd:
                return true;
            case Msr.Pkrs when Model.HasPks && value >> 32 == 0:
                if (registers.Pkrs != value)
                {
                    registers.Pkrs = value;
                    FlushTlb();
                }
                return true;
            case Msr.TscAdjust or Msr.TscAux or Msr.Pat or Msr.Pkrs or Msr.Xss or Msr.SpecCtrl or Msr.PredCmd or MsrFlushCmd or MsrDebugControl:
            case Msr.MtrrCap or Msr.ArchCapabilities or Msr.McgCap or Msr.FeatureControl or Msr.PlatformId or MsrSmiCount or MsrPlatformInfo:
                return false;
            default:
                if (Model.Vendor == Vendor.Amd && index - AmdFirstCounter < AmdCounters)
                    return true;
                if (ModelRegisterFile.IsMachineCheck(index))
                    return Model.HasMce && registers.WriteMachineCheck(index, value);
                return (Model.HasMtrr && registers.ReadMtrr(index, out _))
                    ? registers.WriteMtrr(index, value, Model.PhysicalBits) : Handler.WriteMsr(index, value);
        }
    }

    private bool WriteAddress(ref ulong register, ulong value)
    {
        if (!IsLoadable(value))
            return false;
        register = value;
        return true;
    }
}
