namespace Aerostat.Machine;

/// <summary>Something that happened to a machine.</summary>
/// <param name="Sequence">Counts from 1 without gaps.</param>
/// <param name="Time">When, by the host's clock.</param>
/// <param name="Kind">Stable name: "started", "paused", "resumed", "reset", "power-button", "ended", ...</param>
/// <param name="Message">For people: one line that goes on from the machine's name.</param>
public sealed record MachineEvent(long Sequence, DateTimeOffset Time, string Kind, string Message);

/// <summary>
/// What happened to a machine, the latest of it: a ring that readers follow at their own pace. A slow reader misses events and can tell how many;
/// it costs the writer nothing. Any thread.
/// </summary>
/// <param name="capacity">Events kept.</param>
public sealed class MachineJournal(int capacity = 1024)
{
    private const int LongestMessage = 500;

    private readonly Lock gate = new();
    private readonly MachineEvent?[] ring = new MachineEvent?[capacity];
    private long last;
    private TaskCompletionSource? news;

    /// <summary>Number of the latest event; 0 before the first.</summary>
    public long Last
    {
        get
        {
            lock (gate)
                return last;
        }
    }

    /// <summary>Writes an event. Returns at once, so vCPU threads may call it; what a guest can cause without end is for the caller to limit.</summary>
    public void Write(string kind, string message)
    {
        ArgumentNullException.ThrowIfNull(message);
        DateTimeOffset now = TimeProvider.System.GetUtcNow();
        TaskCompletionSource? awaited;
        lock (gate)
        {
            last++;
            ring[last % ring.Length] = new MachineEvent(last, now, kind, message.Length > LongestMessage ? message[..LongestMessage] : message);
            awaited = news;
            news = null;
        }
        awaited?.TrySetResult();
    }

    /// <summary>The events after number <paramref name="after"/> that are still there, oldest first.</summary>
    public IReadOnlyList<MachineEvent> Read(long after)
    {
        lock (gate)
        {
            long first = Math.Max(Math.Clamp(after, 0, last), last - ring.Length) + 1;
            List<MachineEvent> found = [];
            for (long i = first; i <= last; i++)
                found.Add(ring[i % ring.Length]!);
            return found;
        }
    }

    /// <summary>Completes when there is an event after number <paramref name="after"/>.</summary>
    public Task WaitAsync(long after, CancellationToken cancellation = default)
    {
        lock (gate)
        {
            if (last > after)
                return Task.CompletedTask;
            news ??= new TaskCompletionSource(TaskCreationOptions.RunContinuationsAsynchronously);
            return news.Task.WaitAsync(cancellation);
        }
    }
}
