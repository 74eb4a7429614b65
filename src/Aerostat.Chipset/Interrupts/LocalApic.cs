using Aerostat.Devices;
using Aerostat.Interrupts;
using Aerostat.Processors;
using Aerostat.State;

namespace Aerostat.Chipset;

/// <summary>What a local APIC is made from.</summary>
public sealed record LocalApicOptions
{
    /// <summary>Initial APIC ID, 0..254; equals the vCPU number.</summary>
    public required int Id { get; init; }

    /// <summary>Whether this is the bootstrap processor's. Default: ID 0.</summary>
    public bool? Bootstrap { get; init; }

    /// <summary>Input clock of the timer in hertz, before the divider; CPUID.15H must say the same.</summary>
    public long TimerFrequencyHz { get; init; } = PcLayout.LocalApicTimerHz;

    /// <summary>MAXPHYADDR of CPUID: higher bits of IA32_APIC_BASE are reserved.</summary>
    public int PhysicalAddressBits { get; init; } = 46;

    /// <summary>Whether CPUID offers x2APIC mode.</summary>
    public bool X2Apic { get; init; } = true;

    /// <summary>Whether CPUID offers the TSC-deadline timer.</summary>
    public bool TscDeadline { get; init; } = true;
}

/// <summary>
/// A local APIC in xAPIC and x2APIC mode: Intel SDM vol. 3, chapter 11 (section numbers in comments are of that chapter).
/// <para>Not emulated: SMI delivery, remote read, the CMCI entry, EOI-broadcast suppression, focus processors, the arbitration
/// register (reads as zero); thermal and performance entries hold their value but nothing raises them.</para>
/// </summary>
/// <remarks>
/// Register accesses, <see cref="AcknowledgeInterrupt"/> and <see cref="TaskPriority"/> belong to the vCPU's thread. Messages, LINT
/// wires and the timer come from any thread. A sender sets an IRR bit and then looks at PPR; the owner sets PPR and then looks
/// at IRR; both with a full fence, so one of them sees that the wire must go up. Only the owner lowers the wire, and looks
/// again afterwards. A wire that is up for nothing costs one acknowledge cycle that answers -1.
/// </remarks>
public sealed partial class LocalApic : IDevice, IMmioDevice, ISavable<LocalApicSavedState>
{
    /// <summary>IA32_APIC_BASE.</summary>
    public const uint BaseMsr = 0x1B;

    private const ulong BaseBootstrap = 1 << 8;
    private const ulong BaseExtended = 1 << 10;
    private const ulong BaseEnable = 1 << 11;
    private const ulong BaseAddressMask = ~0xFFFUL;

    private const uint SoftwareEnable = 1 << 8;
    private const uint LvtMasked = 1 << 16;
    private const int LvtTimer = 0;
    private const int LvtLint0 = 3;
    private const int LvtLint1 = 4;
    private const int LvtError = 5;
    private const int LvtCount = 6;

    private const uint ErrorSendIllegalVector = 1 << 5;
    private const uint ErrorReceiveIllegalVector = 1 << 6;
    private const uint ErrorIllegalRegister = 1 << 7;

    // Timer, thermal, performance, LINT0, LINT1, error (11.5.1, figure 11-8): which bits can be written.
    private static ReadOnlySpan<uint> LvtWritable => [0x700FF, 0x107FF, 0x107FF, 0x1A7FF, 0x1A7FF, 0x100FF];

    private readonly LocalApicOptions _options;
    private readonly IProcessorPins _pins;
    private readonly InterruptFabric _fabric;
    private readonly Bits256 _irr = new();
    private readonly Bits256 _isr = new();
    private readonly Bits256 _tmr = new();
    private readonly uint[] _lvt = new uint[LvtCount];

    private ulong _base;
    private volatile bool _hardwareEnabled;
    private volatile bool _x2Mode;
    private ulong _mmioBase;
    private uint _xApicId;
    private volatile uint _tpr;
    private volatile uint _ppr;
    private volatile uint _ldr;
    private volatile uint _dfr;
    private volatile uint _svr;
    private ulong _icr;
    private uint _esr;
    private uint _errors;

    private volatile bool _wire;
    private volatile bool _initPending;
    private volatile bool _extIntLatched;
    private int _lint0;
    private int _lint1;

    /// <summary>Makes a local APIC in its power-on state and attaches it to the fabric.</summary>
    /// <param name="options">What it is.</param>
    /// <param name="pins">The inputs of its processor.</param>
    /// <param name="timestamp">Its processor's time-stamp counter, for the TSC-deadline timer.</param>
    /// <param name="fabric">Where its messages go and come from.</param>
    /// <param name="time">VM time.</param>
    public LocalApic(
        LocalApicOptions options, IProcessorPins pins, ITimestampCounter timestamp, InterruptFabric fabric, TimeProvider time)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(options.Id);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(options.Id, 254);
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(options.TimerFrequencyHz);
        _options = options;
        _pins = pins;
        _fabric = fabric;
        _hosted = fabric.Hosted;
        if (_hosted is not null)
            _options = options with { TimerFrequencyHz = _hosted.TimerFrequencyHz };
        _clock = new VmClock(time);
        _timestamp = timestamp;
        _timer = new VmTimer(_clock, OnTimer);
        Name = $"lapic{options.Id}";
        Lint0 = new LintWire(this, first: true);
        Lint1 = new LintWire(this, first: false);
        Reset();
        fabric.Attach(this);
        timestamp.Adjusted += OnTimestampAdjusted;
    }

    /// <inheritdoc/>
    public string Name { get; }

    /// <summary>Counts a second of the timer before division.</summary>
    public long TimerFrequencyHz => _options.TimerFrequencyHz;

    /// <summary>The LINT0 input; the fabric drives it with the 8259 pair's request.</summary>
    public IInterruptLine Lint0 { get; }

    /// <summary>The LINT1 input; NMI.</summary>
    public IInterruptLine Lint1 { get; }

    /// <summary>
    /// Guest physical address of the register page, or <see cref="ulong.MaxValue"/> when the registers are not in memory (APIC
    /// disabled, or in x2APIC mode). The owner compares the page of each MMIO access of this vCPU with it.
    /// </summary>
    public ulong MmioBase => IsHosted ? ulong.MaxValue : _mmioBase;

    /// <summary>Whether IA32_APIC_BASE enables the APIC: CPUID.1:EDX.APIC.</summary>
    public bool IsEnabled => _hardwareEnabled;

    /// <summary>Whether the APIC is in x2APIC mode.</summary>
    public bool IsX2Mode => _x2Mode;

    /// <summary>The APIC ID that messages find it under.</summary>
    public uint ApicId => _x2Mode ? (uint)_options.Id : _xApicId;

    /// <inheritdoc/>
    public void Reset()
    {
        _initPending = false;
        _base = PcLayout.LocalApicBase | BaseEnable | (_options.Bootstrap ?? _options.Id == 0 ? BaseBootstrap : 0);
        ApplyBase();
        _tpr = 0;
        ResetRegisters();
        Publish();
    }

    /// <summary>
    /// Does to a freshly reset APIC what a BIOS does before it starts a system (MultiProcessor specification 1.4, 3.6.2.2, virtual
    /// wire mode): enables it, lets the 8259 pair through on LINT0 and NMI on LINT1. For the bootstrap processor of a machine
    /// that boots without firmware.
    /// </summary>
    public void ConfigureVirtualWire()
    {
        _svr = SoftwareEnable | 0xFF;
        _lvt[LvtLint0] = (uint)DeliveryMode.ExtInt << 8;
        _lvt[LvtLint1] = (uint)DeliveryMode.Nmi << 8;
        UpdateRequest();
        Publish();
    }

    /// <summary>
    /// CR8, 0..15: bits 7..4 of the task priority register; setting clears bits 3..0. Works even while the APIC is disabled.
    /// </summary>
    public ulong TaskPriority
    {
        get
        {
            Settle();
            return _tpr >> 4;
        }
        set
        {
            Settle();
            SetTaskPriority((uint)(value & 15) << 4);
        }
    }

    /// <summary>
    /// The acknowledge cycle: the vector of the 8259 pair when it asks through LINT0 or ExtINT, else the highest requested vector
    /// above the processor priority, which moves from IRR to ISR; -1 when there is none.
    /// </summary>
    public int AcknowledgeInterrupt()
    {
        if (IsHosted)
            return AcknowledgeHosted();
        Settle();
        if (ExternalPending)
        {
            _extIntLatched = false;
            int external = _fabric.AcknowledgeExternal();
            UpdateRequest();
            if (external >= 0)
                return external;
        }
        if (_hardwareEnabled)
        {
            int vector = _irr.Highest;
            if (vector >> 4 > (int)(_ppr >> 4))
            {
                _irr.Clear(vector);
                if (_automaticEnds is not null && EndsByItself(vector))
                    return vector;
                _isr.SetOwned(vector);
                UpdatePriority();
                _fabric.NoteTaken((byte)vector);
                if (_endFlag is not null)
                    LendEnd(vector);
                return vector;
            }
        }
        LowerWire();
        return -1;
    }

    /// <summary>Whether fixed interrupts are accepted at all (11.4.7.2: not while software-disabled).</summary>
    internal bool TakesFixed => _hardwareEnabled && (_svr & SoftwareEnable) != 0 && !_initPending;

    /// <summary>For lowest-priority delivery: the class of the processor's work, 0..15.</summary>
    internal int ArbitrationPriority => (int)Math.Max(_ppr >> 4, (uint)Math.Max(_irr.Highest, 0) >> 4);

    /// <summary>Whether a message is addressed to this APIC (11.6.2).</summary>
    internal bool Matches(in InterruptMessage message)
    {
        if (!_hardwareEnabled)
            return false;
        if (message.IsBroadcast)
            return true;
        uint destination = message.Destination;
        if (!message.Logical)
            return destination == ApicId;
        if (_x2Mode)
        {
            uint own = X2LogicalId;
            return destination >> 16 == own >> 16 && (destination & own & 0xFFFF) != 0;
        }
        if (destination > 0xFF)
            return false;
        uint id = _ldr >> 24;
        return _dfr >> 28 == 0xF
            ? (destination & id) != 0
            : destination >> 4 == id >> 4 && (destination & id & 0xF) != 0;
    }

    /// <summary>Takes a message from any thread.</summary>
    internal Reception Accept(DeliveryMode mode, byte vector, bool level)
    {
        switch (mode)
        {
            case DeliveryMode.Fixed:
            case DeliveryMode.LowestPriority:
                return AcceptFixed(vector, level);
            case DeliveryMode.Nmi:
                if (!_hardwareEnabled)
                    return Reception.Lost;
                _pins.RaiseNmi();
                return Reception.Accepted;
            case DeliveryMode.Init:
                // The owner resets the registers at its next access; until then nothing else is accepted (11.4.7.3).
                _initPending = true;
                _pins.RaiseInit();
                return Reception.Accepted;
            case DeliveryMode.Startup:
                _pins.RaiseStartup(vector);
                return Reception.Accepted;
            case DeliveryMode.ExtInt:
                if (!_hardwareEnabled)
                    return Reception.Lost;
                _extIntLatched = true;
                RaiseWire();
                return Reception.Accepted;
            default:
                return Reception.Lost;
        }
    }

    private Reception AcceptFixed(byte vector, bool level)
    {
        if (!TakesFixed)
            return Reception.Lost;
        if (vector < 16)
        {
            RecordError(ErrorReceiveIllegalVector);
            return Reception.Lost;
        }
        // The TMR bit says at EOI time whether the I/O APICs must hear of it (11.8.4).
        if (_tmr[vector] != level)
        {
            if (level)
                _tmr.Set(vector);
            else
                _tmr.Clear(vector);
        }
        bool added = _irr.Set(vector);
        // While the end of an interrupt is lent to the guest, PPR may be higher than it ought to be.
        if (vector >> 4 > (int)(_ppr >> 4) || _endLent)
            RaiseWire();
        return added ? Reception.Accepted : Reception.Merged;
    }

    /// <summary>Delivers what a local vector table entry says (11.5.1).</summary>
    private void DeliverLocal(uint entry, bool level)
    {
        if ((entry & LvtMasked) != 0)
            return;
        switch ((DeliveryMode)(entry >> 8 & 7))
        {
            case DeliveryMode.Fixed:
                AcceptFixed((byte)entry, level);
                break;
            case DeliveryMode.Nmi:
                _pins.RaiseNmi();
                break;
            case DeliveryMode.ExtInt:
                RaiseWire();
                break;
        }
    }

    private bool ExternalPending
    {
        get
        {
            if (_extIntLatched)
                return true;
            if (Volatile.Read(ref _lint0) == 0)
                return false;
            // A disabled APIC leaves LINT0 as the plain INTR input (11.4.3).
            return !_hardwareEnabled
                || (Volatile.Read(ref _lvt[LvtLint0]) & (LvtMasked | 0x700)) == (uint)DeliveryMode.ExtInt << 8;
        }
    }

    private void SetLint0(bool asserted)
    {
        if (IsHosted)
        {
            SetHostedLint0(asserted);
            return;
        }
        int now = asserted ? 1 : 0;
        if (Interlocked.Exchange(ref _lint0, now) == now || !asserted)
            return;
        if (!_hardwareEnabled)
        {
            RaiseWire();
            return;
        }
        uint entry = Volatile.Read(ref _lvt[LvtLint0]);
        DeliverLocal(entry, IsLevelEntry(entry));
    }

    private void SetLint1(bool asserted)
    {
        int now = asserted ? 1 : 0;
        if (Interlocked.Exchange(ref _lint1, now) == now || !asserted)
            return;
        if (!_hardwareEnabled || IsHosted)
        {
            _pins.RaiseNmi();
            return;
        }
        // LINT1 is edge-sensitive whatever its trigger bit says (11.5.1).
        DeliverLocal(Volatile.Read(ref _lvt[LvtLint1]) & ~0x8000u, level: false);
    }

    private static bool IsLevelEntry(uint entry) => (entry & 0x8700) == 0x8000;

    private void EndOfInterrupt()
    {
        int vector = _isr.Highest;
        if (vector < 0)
            return;
        _isr.ClearOwned(vector);
        UpdatePriority();
        if (!_tmr[vector])
            return;
        _fabric.BroadcastEndOfInterrupt((byte)vector);
        // A level-triggered LINT0 that is still up asks again.
        uint entry = _lvt[LvtLint0];
        if (IsLevelEntry(entry) && (byte)entry == vector && Volatile.Read(ref _lint0) != 0)
            DeliverLocal(entry, level: true);
    }

    private void SetTaskPriority(uint value)
    {
        _tpr = value;
        UpdatePriority();
    }

    /// <summary>PPR from TPR and the highest vector in service (11.8.3.1); owner only.</summary>
    private void UpdatePriority()
    {
        uint tpr = _tpr;
        int inService = _isr.Highest;
        uint service = inService < 0 ? 0 : (uint)inService & 0xF0;
        _ppr = (tpr & 0xF0) >= service ? tpr : service;
        UpdateRequest();
    }

    // The hypervisor delivers what it keeps; here the wire is the 8259 pair's alone.
    private bool IsDeliverable => IsHosted ? Volatile.Read(ref _lint0) != 0 && _options.Id == 0 : ExternalPending || (_hardwareEnabled && _irr.Highest >> 4 > (int)(_ppr >> 4));

    /// <summary>Brings the wire into line with the registers; owner only.</summary>
    private void UpdateRequest()
    {
        Interlocked.MemoryBarrier();
        if (IsDeliverable)
            RaiseWire();
        else if (_wire)
            LowerWire();
    }

    private void RaiseWire()
    {
        _wire = true;
        _pins.SetInterruptRequest(true);
    }

    private void LowerWire()
    {
        _wire = false;
        _pins.SetInterruptRequest(false);
        Interlocked.MemoryBarrier();
        if (IsDeliverable)
            RaiseWire();
    }

    /// <summary>Notes an error for ESR and raises the error entry, once until ESR is written (11.5.3).</summary>
    private void RecordError(uint error)
    {
        if (Interlocked.Or(ref _errors, error) == 0)
            DeliverLocal(Volatile.Read(ref _lvt[LvtError]), level: false);
    }

    /// <summary>What has happened beside the owner is brought into the registers before it looks at them.</summary>
    private void Settle()
    {
        if (_endLent)
            TakeBackEnd();
        ApplyPendingInit();
    }

    private void ApplyPendingInit()
    {
        if (!_initPending)
            return;
        _tpr = 0;
        ResetRegisters();
        _initPending = false;
    }

    /// <summary>State after power-up (11.4.7.1), but for IA32_APIC_BASE and TPR.</summary>
    private void ResetRegisters()
    {
        StopTimer();
        if (_endLent)
            _endFlag?.Clear();
        _endLent = false;
        _endFlag = null;
        _xApicId = (uint)_options.Id;
        _ldr = 0;
        _dfr = 0xFFFF_FFFF;
        _svr = 0xFF;
        _icr = 0;
        _esr = 0;
        Interlocked.Exchange(ref _errors, 0);
        Array.Fill(_lvt, LvtMasked);
        _irr.Clear();
        _isr.Clear();
        _tmr.Clear();
        _extIntLatched = false;
        UpdatePriority();
        if (!IsDeliverable)
            LowerWire();
    }

    private void ApplyBase()
    {
        _hardwareEnabled = (_base & BaseEnable) != 0;
        _x2Mode = (_base & BaseExtended) != 0;
        _mmioBase = _hardwareEnabled && !_x2Mode ? _base & BaseAddressMask : ulong.MaxValue;
    }

    /// <summary>IA32_APIC_BASE and the modes it selects (11.12.5, figure 11-27); false: #GP.</summary>
    private bool WriteBase(ulong value)
    {
        ulong addressBits = ((1UL << _options.PhysicalAddressBits) - 1) & BaseAddressMask;
        ulong allowed = addressBits | BaseBootstrap | BaseEnable | (_options.X2Apic ? BaseExtended : 0);
        if ((value & ~allowed) != 0)
            return false;
        bool enable = (value & BaseEnable) != 0;
        bool extend = (value & BaseExtended) != 0;
        if (extend && !enable)
            return false;
        if (extend && !_hardwareEnabled)
            return false;
        if (!extend && enable && _x2Mode)
            return false;
        bool disabling = _hardwareEnabled && !enable;
        _base = value;
        ApplyBase();
        if (disabling)
            ResetRegisters();
        else
            UpdateRequest();
        return true;
    }

    private uint X2LogicalId => (uint)_options.Id >> 4 << 16 | 1u << (_options.Id & 15);

    private sealed class LintWire(LocalApic apic, bool first) : IInterruptLine
    {
        public void Set(bool asserted)
        {
            if (first)
                apic.SetLint0(asserted);
            else
                apic.SetLint1(asserted);
        }
    }
}
