using System.Collections.Concurrent;
using Aerostat.Processors;

namespace Aerostat.Machine.Tests;

/// <summary>A processor that does what a test scripts: each Run takes the next step, and without one waits for a kick.</summary>
internal sealed class FakeProcessor(int index = 0) : IVirtualProcessor
{
    private readonly ManualResetEventSlim kicked = new();
    private volatile bool hasWork;

    public ConcurrentQueue<Func<IExitHandler, ProcessorExit>> Steps { get; } = [];

    public int Runs;

    public int Resets;

    public int InGuest;

    public int Index => index;

    public ITimestampCounter Timestamp { get; } = new FixedTimestamp();

    public bool HasWork
    {
        get => hasWork;
        set
        {
            hasWork = value;
            if (value)
                WakeUp?.Invoke();
        }
    }

    public Action? WakeUp { get; set; }

    public ProcessorCounters Counters { get; } = new();

    public IReadOnlyList<(ulong From, ulong To)> LastBranches => [(0x1000, 0x2000)];

    public IReadOnlyList<DeliveredEvent> FaultsBeforeShutdown { get; set; } = [];

    public ProcessorExit Run(IExitHandler handler)
    {
        Interlocked.Increment(ref Runs);
        Interlocked.Exchange(ref InGuest, 1);
        try
        {
            if (Steps.TryDequeue(out Func<IExitHandler, ProcessorExit>? step))
                return step(handler);
            kicked.Wait();
            kicked.Reset();
            return new(ExitReason.Interrupted);
        }
        finally
        {
            Interlocked.Exchange(ref InGuest, 0);
        }
    }

    public void RequestInterruptWindow()
    {
    }

    public void Kick() => kicked.Set();

    public ProcessorState GetState() => new() { Rip = 0x1234 };

    public ProcessorState? LastSet { get; private set; }

    public void SetState(ProcessorState state) => LastSet = state;

    public void Reset() => Resets++;

    public void SetInterruptRequest(bool asserted) => HasWork = asserted;

    public void RaiseNmi() => HasWork = true;

    public void RaiseInit() => HasWork = true;

    public void RaiseStartup(byte vector) => HasWork = true;

    public void Dispose()
    {
    }
}

/// <summary>A time-stamp counter that stands still.</summary>
internal sealed class FixedTimestamp : ITimestampCounter
{
    public long FrequencyHz => 1_000_000_000;

    public event Action? Adjusted
    {
        add { }
        remove { }
    }

    public ulong Read() => 0;
}
