using System.Buffers.Binary;
using Aerostat.Interrupts;

namespace Aerostat.Chipset;

// A local APIC whose registers the hypervisor keeps. This one then holds the saved state's form of them and the 8259 pair's wire, and nothing
// else: no message, no register access and no timer comes here.
public sealed partial class LocalApic
{
    private readonly IHostedLocalApics? _hosted;

    /// <summary>Whether the hypervisor keeps the registers.</summary>
    public bool IsHosted => _hosted is not null;

    // The pair's request goes to the bootstrap processor's hypervisor, which knows whether LINT0 lets it through.
    private void SetHostedLint0(bool asserted)
    {
        Volatile.Write(ref _lint0, asserted ? 1 : 0);
        if (_options.Id == 0)
            _pins.SetInterruptRequest(asserted);
    }

    private int AcknowledgeHosted()
    {
        int vector = Volatile.Read(ref _lint0) != 0 ? _fabric.AcknowledgeExternal() : -1;
        if (Volatile.Read(ref _lint0) == 0)
            _pins.SetInterruptRequest(false);
        // It may have come up again in between.
        Interlocked.MemoryBarrier();
        if (Volatile.Read(ref _lint0) != 0)
            _pins.SetInterruptRequest(true);
        return vector;
    }

    /// <summary>Gives the registers of a fresh, or freshly restored, APIC to the hypervisor.</summary>
    private void Publish()
    {
        if (_hosted is null)
            return;
        byte[] page = new byte[1024];
        void Put(int register, uint value) => BinaryPrimitives.WriteUInt32LittleEndian(page.AsSpan(register * 16), value);
        void PutBits(int register, Bits256 bits)
        {
            ulong[] words = bits.ToArray();
            for (int i = 0; i < 8; i++)
                Put(register + i, (uint)(words[i >> 1] >> (32 * (i & 1))));
        }
        Put(RegId, _xApicId << 24);
        Put(RegVersion, VersionValue);
        Put(RegTpr, _tpr);
        Put(RegLdr, _x2Mode ? X2LogicalId : _ldr);
        Put(RegDfr, _dfr);
        Put(RegSvr, _svr);
        PutBits(RegIsr, _isr);
        PutBits(RegTmr, _tmr);
        PutBits(RegIrr, _irr);
        Put(RegEsr, _esr);
        Put(RegIcr, (uint)_icr);
        Put(RegIcrHigh, (uint)(_icr >> 32));
        ulong deadline;
        lock (_timerLock)
        {
            for (int i = 0; i < LvtCount; i++)
                Put(RegLvt + i, _lvt[i]);
            Put(RegInitialCount, _initialCount);
            Put(RegCurrentCount, CurrentCount(_clock.Now));
            Put(RegDivide, _divide);
            deadline = _deadline;
            _timer.Disarm();
        }
        _hosted.Write(_options.Id, new HostedLocalApicState(_base, deadline, page));
    }

    /// <summary>Takes the registers from the hypervisor, for a saved state.</summary>
    private void Fetch()
    {
        if (_hosted is null)
            return;
        HostedLocalApicState state = _hosted.Read(_options.Id);
        byte[] page = state.Registers;
        uint Get(int register) => BinaryPrimitives.ReadUInt32LittleEndian(page.AsSpan(register * 16));
        void GetBits(int register, Bits256 bits)
        {
            ulong[] words = new ulong[4];
            for (int i = 0; i < 8; i++)
                words[i >> 1] |= (ulong)Get(register + i) << (32 * (i & 1));
            bits.Load(words);
        }
        _base = state.Base;
        ApplyBase();
        if (!_x2Mode)
        {
            _xApicId = Get(RegId) >> 24;
            _ldr = Get(RegLdr);
        }
        _tpr = Get(RegTpr) & 0xFF;
        _dfr = Get(RegDfr);
        _svr = Get(RegSvr);
        GetBits(RegIsr, _isr);
        GetBits(RegTmr, _tmr);
        GetBits(RegIrr, _irr);
        _esr = Get(RegEsr);
        _icr = Get(RegIcr) | ((ulong)Get(RegIcrHigh) << 32);
        lock (_timerLock)
        {
            for (int i = 0; i < LvtCount; i++)
                _lvt[i] = Get(RegLvt + i);
            _divide = Get(RegDivide) & 0xB;
            _initialCount = Get(RegInitialCount);
            _deadline = IsDeadlineMode ? state.Deadline : 0;
            long now = _clock.Now;
            uint left = Get(RegCurrentCount);
            bool ranOut = _initialCount != 0 && left == 0 && !IsDeadlineMode;
            _lastFired = now - ShortestPeriod;
            _counting = _initialCount != 0 && !IsDeadlineMode && (left != 0 || ranOut);
            if (_counting)
            {
                long passed = (long)(_initialCount - Math.Min(left, _initialCount)) << DivideShift;
                _countStart = now - VmClock.TimeOfTick(passed, _options.TimerFrequencyHz);
            }
            _nextExpiry = _counting && (!ranOut || IsPeriodic) ? ExpiryAfter(now) : long.MaxValue;
            _timer.Disarm();
        }
    }
}
