namespace Aerostat.Chipset;

// The register file: the 4 KiB page of xAPIC mode (Intel SDM vol. 3, table 11-1) and the MSRs of x2APIC mode (table 11-6).
public sealed partial class LocalApic
{
    private const uint FirstX2Msr = 0x800;
    private const uint LastX2Msr = 0x8FF;

    // Register numbers: page offset / 16, or MSR - 0x800.
    private const int RegId = 0x02;
    private const int RegVersion = 0x03;
    private const int RegTpr = 0x08;
    private const int RegApr = 0x09;
    private const int RegPpr = 0x0A;
    private const int RegEoi = 0x0B;
    private const int RegRemoteRead = 0x0C;
    private const int RegLdr = 0x0D;
    private const int RegDfr = 0x0E;
    private const int RegSvr = 0x0F;
    private const int RegIsr = 0x10;
    private const int RegTmr = 0x18;
    private const int RegIrr = 0x20;
    private const int RegEsr = 0x28;
    private const int RegIcr = 0x30;
    private const int RegIcrHigh = 0x31;
    private const int RegLvt = 0x32;
    private const int RegInitialCount = 0x38;
    private const int RegCurrentCount = 0x39;
    private const int RegDivide = 0x3E;
    private const int RegSelfIpi = 0x3F;

    // Integrated APIC, highest LVT entry 5, no EOI-broadcast suppression.
    private const uint VersionValue = 0x14 | (LvtCount - 1) << 16;

    /// <inheritdoc/>
    /// <remarks>Called only while <see cref="MmioBase"/> is an address. Registers are 32 bits at each 16 bytes; the rest reads as zero.</remarks>
    public ulong ReadMmio(ulong offset, int size)
    {
        Settle();
        int inside = (int)offset & 15;
        if (inside >= 4 || !_hardwareEnabled || _x2Mode)
            return 0;
        if (!TryRead((int)(offset >> 4) & 0xFF, out uint value))
        {
            RecordError(ErrorIllegalRegister);
            return 0;
        }
        ulong shifted = value >> (8 * inside);
        return size >= 4 ? shifted : shifted & ((1UL << (8 * size)) - 1);
    }

    /// <inheritdoc/>
    /// <remarks>Only aligned accesses of 4 bytes or more have an effect (11.4.1).</remarks>
    public void WriteMmio(ulong offset, int size, ulong value)
    {
        Settle();
        if (((int)offset & 15) != 0 || size < 4 || !_hardwareEnabled || _x2Mode)
            return;
        if (!TryWrite((int)(offset >> 4) & 0xFF, (uint)value))
            RecordError(ErrorIllegalRegister);
    }

    /// <summary>Whether <see cref="ReadMsr"/> and <see cref="WriteMsr"/> are responsible for a register.</summary>
    public static bool OwnsMsr(uint index) => index is BaseMsr or DeadlineMsr or >= FirstX2Msr and <= LastX2Msr;

    /// <summary>RDMSR of 0x1B, 0x6E0 or 0x800..0x8FF; false: #GP.</summary>
    public bool ReadMsr(uint index, out ulong value)
    {
        if (IsHosted)
        {
            value = 0;
            return false;
        }
        Settle();
        value = 0;
        switch (index)
        {
            case BaseMsr:
                value = _base;
                return true;
            case DeadlineMsr:
                if (!_options.TscDeadline)
                    return false;
                value = ReadDeadline();
                return true;
            case < FirstX2Msr or > LastX2Msr:
                return false;
        }
        if (!_x2Mode)
            return false;
        int register = (int)(index - FirstX2Msr);
        switch (register)
        {
            case RegIcr:
                value = _icr;
                return true;
            case RegId:
                value = (uint)_options.Id;
                return true;
            case RegLdr:
                value = X2LogicalId;
                return true;
            case RegDfr or RegApr or RegIcrHigh or RegEoi or RegRemoteRead or RegSelfIpi:
                return false;
        }
        if (!TryRead(register, out uint low))
            return false;
        value = low;
        return true;
    }

    /// <summary>WRMSR of 0x1B, 0x6E0 or 0x800..0x8FF; false: #GP.</summary>
    public bool WriteMsr(uint index, ulong value)
    {
        if (IsHosted)
            return false;
        Settle();
        switch (index)
        {
            case BaseMsr:
                return WriteBase(value);
            case DeadlineMsr:
                if (!_options.TscDeadline)
                    return false;
                WriteDeadline(value);
                return true;
            case < FirstX2Msr or > LastX2Msr:
                return false;
        }
        if (!_x2Mode)
            return false;
        int register = (int)(index - FirstX2Msr);
        if (register == RegIcr)
        {
            // Bits 31..20, 17..16 and 13 are reserved; bit 12 is read-only (11.12.9).
            if ((value & 0xFFF3_2000) != 0)
                return false;
            _icr = value & ~0x1000UL;
            SendIpi((uint)_icr, (uint)(value >> 32), wide: true);
            return true;
        }
        if (value >> 32 != 0)
            return false;
        uint low = (uint)value;
        switch (register)
        {
            case RegEoi or RegEsr:
                return low == 0 && TryWrite(register, 0);
            case RegSelfIpi:
                if (low > 0xFF)
                    return false;
                SendSelf((byte)low);
                return true;
            case RegTpr:
                return low <= 0xFF && TryWrite(register, low);
            case RegSvr:
                return (low & ~0x3FFu) == 0 && TryWrite(register, low);
            case RegDivide:
                return (low & ~0xBu) == 0 && TryWrite(register, low);
            case RegId or RegLdr or RegDfr or RegIcrHigh:
                return false;
            case >= RegLvt and < RegLvt + LvtCount:
                // Delivery status and remote IRR are read-only, not reserved.
                return (low & ~(LvtWritable[register - RegLvt] | 0x5000)) == 0 && TryWrite(register, low);
        }
        return TryWrite(register, low);
    }

    private bool TryRead(int register, out uint value)
    {
        value = 0;
        switch (register)
        {
            case RegId:
                value = _xApicId << 24;
                return true;
            case RegVersion:
                value = VersionValue;
                return true;
            case RegTpr:
                value = _tpr;
                return true;
            case RegPpr:
                value = _ppr;
                return true;
            case RegApr or RegRemoteRead or RegEoi:
                return true;
            case RegLdr:
                value = _ldr;
                return true;
            case RegDfr:
                value = _dfr;
                return true;
            case RegSvr:
                value = _svr;
                return true;
            case >= RegIsr and < RegIsr + 8:
                value = _isr.Register(register - RegIsr);
                return true;
            case >= RegTmr and < RegTmr + 8:
                value = _tmr.Register(register - RegTmr);
                return true;
            case >= RegIrr and < RegIrr + 8:
                value = _irr.Register(register - RegIrr);
                return true;
            case RegEsr:
                value = _esr;
                return true;
            case RegIcr:
                value = (uint)_icr;
                return true;
            case RegIcrHigh:
                value = (uint)(_icr >> 32);
                return true;
            case >= RegLvt and < RegLvt + LvtCount:
                value = _lvt[register - RegLvt];
                return true;
            case RegInitialCount:
                value = InitialCount;
                return true;
            case RegCurrentCount:
                value = ReadCurrentCount();
                return true;
            case RegDivide:
                value = _divide;
                return true;
            default:
                return false;
        }
    }

    private bool TryWrite(int register, uint value)
    {
        switch (register)
        {
            case RegId:
                _xApicId = value >> 24;
                return true;
            case RegTpr:
                SetTaskPriority(value & 0xFF);
                return true;
            case RegEoi:
                EndOfInterrupt();
                return true;
            case RegLdr:
                _ldr = value & 0xFF00_0000;
                return true;
            case RegDfr:
                _dfr = value | 0x0FFF_FFFF;
                return true;
            case RegSvr:
                WriteSpurious(value);
                return true;
            case RegEsr:
                // A write shows what has gathered since the last one (11.5.3).
                _esr = Interlocked.Exchange(ref _errors, 0);
                return true;
            case RegIcr:
                _icr = _icr & ~0xFFFF_FFFFUL | value & 0x000C_CFFF;
                SendIpi((uint)_icr, (uint)(_icr >> 56), wide: false);
                return true;
            case RegIcrHigh:
                _icr = (uint)_icr | (ulong)(value & 0xFF00_0000) << 32;
                return true;
            case RegLvt:
                WriteTimerEntry(value & LvtWritable[0]);
                return true;
            case > RegLvt and < RegLvt + LvtCount:
                WriteEntry(register - RegLvt, value);
                return true;
            case RegInitialCount:
                WriteInitialCount(value);
                return true;
            case RegDivide:
                WriteDivide(value & 0xB);
                return true;
            case RegVersion or RegApr or RegPpr or RegRemoteRead or RegCurrentCount or (>= RegIsr and < RegEsr):
                // Read-only: ignored in memory, #GP as MSRs.
                return !_x2Mode;
            default:
                return false;
        }
    }

    private void WriteEntry(int index, uint value)
    {
        value &= LvtWritable[index];
        if ((_svr & SoftwareEnable) == 0)
            value |= LvtMasked;
        Volatile.Write(ref _lvt[index], value);
        // LINT0 may just have been opened for a request that was already there.
        if (index == LvtLint0)
        {
            if (IsLevelEntry(value) && Volatile.Read(ref _lint0) != 0)
                DeliverLocal(value, level: true);
            UpdateRequest();
        }
    }

    private void WriteSpurious(uint value)
    {
        _svr = value & 0x3FF;
        if ((value & SoftwareEnable) != 0)
            return;
        // Software disable masks every local entry (11.4.7.2).
        for (int i = 1; i < LvtCount; i++)
            Volatile.Write(ref _lvt[i], _lvt[i] | LvtMasked);
        WriteTimerEntry(_lvt[LvtTimer] | LvtMasked);
        UpdateRequest();
    }

    private void SendSelf(byte vector)
    {
        if (vector < 16)
            RecordError(ErrorSendIllegalVector);
        else
            AcceptFixed(vector, level: false);
    }

    /// <summary>Sends what the low half of ICR says (11.6.1).</summary>
    private void SendIpi(uint command, uint destination, bool wide)
    {
        var mode = (DeliveryMode)(command >> 8 & 7);
        byte vector = (byte)command;
        bool level = (command & 0x8000) != 0;
        switch (mode)
        {
            case DeliveryMode.Smi or DeliveryMode.Reserved or DeliveryMode.ExtInt:
                return;
            case DeliveryMode.Init when level && (command & 0x4000) == 0:
                // INIT level de-assert only synchronised arbitration IDs on old processors.
                return;
            case DeliveryMode.Fixed or DeliveryMode.LowestPriority when vector < 16:
                RecordError(ErrorSendIllegalVector);
                return;
        }
        var message = new InterruptMessage(
            destination, wide, (command & 0x800) != 0, mode, vector, Level: false, OneOf: mode == DeliveryMode.LowestPriority);
        switch (command >> 18 & 3)
        {
            case 0:
                _fabric.Deliver(message);
                break;
            case 1:
                if (mode == DeliveryMode.Fixed)
                    AcceptFixed(vector, level: false);
                break;
            case 2:
                _fabric.DeliverToAll(message, except: null);
                break;
            default:
                _fabric.DeliverToAll(message, except: this);
                break;
        }
    }
}
