using Aerostat.State;

namespace Aerostat.Chipset;

/// <summary>A local APIC at rest. Times are relative to the moment of saving.</summary>
[SavedState("local-apic", 1)]
public sealed record LocalApicSavedState
{
    /// <summary>IA32_APIC_BASE.</summary>
    public ulong Base { get; init; }
    /// <summary>xAPIC ID.</summary>
    public uint Id { get; init; }
    /// <summary>TPR.</summary>
    public uint TaskPriority { get; init; }
    /// <summary>LDR of xAPIC mode.</summary>
    public uint LogicalDestination { get; init; }
    /// <summary>DFR.</summary>
    public uint DestinationFormat { get; init; }
    /// <summary>SVR.</summary>
    public uint Spurious { get; init; }
    /// <summary>ICR, both halves.</summary>
    public ulong InterruptCommand { get; init; }
    /// <summary>ESR as last shown.</summary>
    public uint ErrorStatus { get; init; }
    /// <summary>Errors gathered for the next ESR write.</summary>
    public uint PendingErrors { get; init; }
    /// <summary>Timer, thermal, performance, LINT0, LINT1, error entries.</summary>
    public uint[] LocalVectors { get; init; } = [];
    /// <summary>IRR, 4 words.</summary>
    public ulong[] Requested { get; init; } = [];
    /// <summary>ISR, 4 words.</summary>
    public ulong[] InService { get; init; } = [];
    /// <summary>TMR, 4 words.</summary>
    public ulong[] TriggerMode { get; init; } = [];
    /// <summary>The guest may have ended the interrupt in service through its flag.</summary>
    public bool EndLent { get; init; }
    /// <summary>ExtINT message not yet acknowledged.</summary>
    public bool ExternalLatched { get; init; }
    /// <summary>LINT0 wire.</summary>
    public bool Lint0 { get; init; }
    /// <summary>LINT1 wire.</summary>
    public bool Lint1 { get; init; }
    /// <summary>Timer divide configuration.</summary>
    public uint Divide { get; init; }
    /// <summary>Timer initial count.</summary>
    public uint InitialCount { get; init; }
    /// <summary>The counter runs, or has run out in one-shot mode.</summary>
    public bool Counting { get; init; }
    /// <summary>Nanoseconds since the counter started.</summary>
    public long CountElapsed { get; init; }
    /// <summary>Nanoseconds to the next expiry, negative when overdue; null: none.</summary>
    public long? UntilExpiry { get; init; }
    /// <summary>Nanoseconds since the timer last fired; matters to the pace of very short periods only.</summary>
    public long SinceFired { get; init; }
    /// <summary>IA32_TSC_DEADLINE.</summary>
    public ulong Deadline { get; init; }
}

public sealed partial class LocalApic
{
    /// <inheritdoc/>
    public LocalApicSavedState Save()
    {
        // A loan stays one: the flag is in guest memory, which may have been saved already.
        ApplyPendingInit();
        Fetch();
        lock (_timerLock)
        {
            long now = _clock.Now;
            return new LocalApicSavedState
            {
                Base = _base,
                Id = _xApicId,
                TaskPriority = _tpr,
                LogicalDestination = _ldr,
                DestinationFormat = _dfr,
                Spurious = _svr,
                InterruptCommand = _icr,
                ErrorStatus = _esr,
                PendingErrors = _errors,
                LocalVectors = [.. _lvt],
                Requested = _irr.ToArray(),
                InService = _isr.ToArray(),
                TriggerMode = _tmr.ToArray(),
                EndLent = _endLent,
                ExternalLatched = _extIntLatched,
                Lint0 = _lint0 != 0,
                Lint1 = _lint1 != 0,
                Divide = _divide,
                InitialCount = _initialCount,
                Counting = _counting,
                CountElapsed = _counting ? now - _countStart : 0,
                UntilExpiry = _nextExpiry == long.MaxValue ? null : _nextExpiry - now,
                SinceFired = Math.Clamp(now - _lastFired, 0, ShortestPeriod),
                Deadline = _deadline,
            };
        }
    }

    /// <inheritdoc/>
    public void Restore(LocalApicSavedState state)
    {
        _initPending = false;
        _endLent = state.EndLent;
        _endFlag = null;
        _base = state.Base;
        ApplyBase();
        _xApicId = state.Id & 0xFF;
        _tpr = state.TaskPriority & 0xFF;
        _ldr = state.LogicalDestination;
        _dfr = state.DestinationFormat;
        _svr = state.Spurious;
        _icr = state.InterruptCommand;
        _esr = state.ErrorStatus;
        _errors = state.PendingErrors;
        _irr.Load(state.Requested);
        _isr.Load(state.InService);
        _tmr.Load(state.TriggerMode);
        _extIntLatched = state.ExternalLatched;
        _lint0 = state.Lint0 ? 1 : 0;
        _lint1 = state.Lint1 ? 1 : 0;
        lock (_timerLock)
        {
            long now = _clock.Now;
            Array.Fill(_lvt, LvtMasked);
            state.LocalVectors.AsSpan(0, Math.Min(LvtCount, state.LocalVectors.Length)).CopyTo(_lvt);
            _divide = state.Divide & 0xB;
            _initialCount = state.InitialCount;
            _counting = state.Counting && _initialCount != 0;
            _countStart = now - state.CountElapsed;
            _nextExpiry = _counting && state.UntilExpiry is long wait ? now + wait : long.MaxValue;
            _lastFired = now - Math.Clamp(state.SinceFired, 0, ShortestPeriod);
            _deadline = state.Deadline;
            _timer.Expired();
            Arm();
        }
        UpdatePriority();
        if (IsHosted && _endLent)
            TakeBackEnd();
        Publish();
    }
}
