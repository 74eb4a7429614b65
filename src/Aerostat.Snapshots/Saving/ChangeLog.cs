using Aerostat.Memory;

namespace Aerostat.Snapshots;

/// <summary>Which pages of a machine have been written since a snapshot. Bits are kept until a snapshot that has them is complete.</summary>
internal sealed class ChangeLog : IDisposable
{
    private readonly DirtyLog[] logs;
    private readonly ulong[][] pending;
    private readonly ulong[][] fresh;

    /// <summary>Starts to log. What was written before is in memory when this returns, what is written from now on is in the log.</summary>
    public ChangeLog(GuestMemory memory)
    {
        Memory = memory;
        logs = [.. memory.Regions.Select(memory.StartDirtyLog)];
        pending = [.. logs.Select(l => new ulong[l.WordCount])];
        fresh = [.. logs.Select(l => new ulong[l.WordCount])];
    }

    /// <summary>Whose pages.</summary>
    public GuestMemory Memory { get; }

    /// <summary>The pages written since the last snapshot, by region, as far as was collected.</summary>
    public IReadOnlyList<ulong[]> Pending => pending;

    /// <summary>The pages written since the last call, by region, good until the next. Their contents are to be looked at afterwards.</summary>
    public IReadOnlyList<ulong[]> Collect()
    {
        for (int i = 0; i < logs.Length; i++)
        {
            if (logs[i].GetAndClear(fresh[i]) == 0)
                continue;
            for (int word = 0; word < fresh[i].Length; word++)
                pending[i][word] |= fresh[i][word];
        }
        return fresh;
    }

    /// <summary>What <see cref="Collect"/> has answered is in a snapshot now.</summary>
    public void Forget()
    {
        foreach (ulong[] bits in pending)
            Array.Clear(bits);
    }

    /// <summary>Ends logging.</summary>
    public void Dispose()
    {
        foreach (DirtyLog log in logs)
            log.Dispose();
    }
}
