namespace Aerostat.Guest.Agent;

/// <summary>
/// A freeze and thaw of everything, without the two calls that do it: whatever they need is in memory afterwards, and compiled. The first thaw would
/// compile all its code while every file system stands still.
/// </summary>
internal sealed class Rehearsal : IFileSystems, IChannel, ILog
{
    private const int NoFile = -1, NotOpened = int.MaxValue;
    private static readonly int[] s_operations = [Operation.HotBackup, Operation.Freeze, Operation.Thaw, -Host.NoEntry];

    private readonly IFileSystems _fileSystems;
    private int _next;

    private Rehearsal(IFileSystems fileSystems) => _fileSystems = fileSystems;

    /// <summary>Once, before the host can ask for anything.</summary>
    public static void Run(IFileSystems fileSystems, TimeSpan limit)
    {
        using Rehearsal rehearsal = new(fileSystems);
        using Freezer freezer = new(rehearsal, rehearsal);
        // Hooks of no folder: what they do is no rehearsal.
        new Agent(freezer, new Hooks("", limit, rehearsal), limit, rehearsal).Serve(rehearsal);
    }

    public IReadOnlyList<Freezable> List() => _fileSystems.List();

    // One that cannot be opened now goes through the rest all the same, as if it were open.
    public int Open(Freezable fileSystem) => _fileSystems.Open(fileSystem) is >= 0 and var descriptor ? descriptor : NotOpened;

    public int Freeze(int descriptor)
    {
        // Of no file: nothing but an error comes of it.
        _ = _fileSystems.Freeze(NoFile);
        return 0;
    }

    public int Thaw(int descriptor)
    {
        _ = _fileSystems.Thaw(NoFile);
        return 0;
    }

    public void Close(int descriptor)
    {
        if (descriptor != NotOpened)
            _fileSystems.Close(descriptor);
    }

    public void Mark(bool frozen) => _fileSystems.Mark(frozen);

    // The calls that a channel consists of, on no file.
    public int Receive(int milliseconds)
    {
        _ = Host.Poll(NoFile, 0);
        _ = Host.Read(NoFile, stackalloc byte[Operation.MessageLength]);
        return s_operations[_next++];
    }

    public int Reply(uint status)
    {
        _ = Host.Write(NoFile, stackalloc byte[Operation.MessageLength]);
        return 0;
    }

    public void Write(LogLevel level, string text)
    {
    }

    public void Dispose()
    {
    }
}
