namespace Aerostat.Guest.Agent;

/// <summary>What freezing needs of the system; tests have one of their own.</summary>
internal interface IFileSystems
{
    IReadOnlyList<Freezable> List();

    /// <summary>A descriptor of the file system, or an error below 0.</summary>
    int Open(Freezable fileSystem);

    int Freeze(int descriptor);

    int Thaw(int descriptor);

    void Close(int descriptor);

    /// <summary>Notes that something is, or may be, frozen, for whoever comes after a program that could not thaw it.</summary>
    void Mark(bool frozen);
}

/// <summary>
/// Freezes all file systems or none. Everything is opened before the first one is frozen, so that nothing has to be looked up afterwards. Whatever
/// ends it, what was frozen is thawed: a failure, the time limit, the end of the program. Any thread may call it.
/// </summary>
internal sealed class Freezer(IFileSystems fileSystems, ILog log) : IDisposable
{
    private readonly Lock _lock = new(), _thawing = new();
    // In the order in which they were frozen.
    private readonly List<(Freezable What, int Descriptor)> _frozen = [];
    private readonly List<int> _open = [];
    private bool _active, _abandoned;
    private Timer? _watchdog;

    /// <summary>File systems are frozen.</summary>
    public bool IsFrozen
    {
        get
        {
            lock (_lock)
                return _active;
        }
    }

    /// <summary>Freezes. Answers 0, or the error number of the first failure, after everything is as before.</summary>
    /// <param name="limit">After that long it is thawed, whatever happens.</param>
    public int Freeze(TimeSpan limit)
    {
        lock (_lock)
        {
            if (_active)
                return Host.Busy;
            (_active, _abandoned) = (true, false);
        }
        List<(Freezable What, int Descriptor)> all = [];
        int error = OpenAll(all);
        if (error != 0)
        {
            Thaw();
            return error;
        }
        fileSystems.Mark(frozen: true);
        // From here on, because the freezing itself can hang.
        lock (_lock)
            _watchdog = new Timer(_ => Abandon("frozen for too long"), null, limit, Timeout.InfiniteTimeSpan);
        foreach ((Freezable what, int descriptor) in all)
        {
            error = -fileSystems.Freeze(descriptor);
            // Types without freezing, such as vfat, keep no journal that could be out of step.
            if (error is Host.NotSupported or Host.NotTyped)
            {
                log.Write(LogLevel.Notice, $"{what.Paths[0]} ({what.Type}) cannot be frozen and is left alone");
                continue;
            }
            bool late = false;
            lock (_lock)
            {
                if (error == 0)
                    _frozen.Add((what, descriptor));
                late = _abandoned;
            }
            if (error == 0 && !late)
                continue;
            if (error == 0)
                error = Host.TimedOut;
            log.Write(LogLevel.Error, $"{what.Paths[0]} could not be frozen: {(error == Host.Busy ? "somebody else has frozen it" : Host.Text(error))}; everything is thawed");
            Thaw();
            return error;
        }
        lock (_lock)
            if (!_abandoned)
                return 0;
        Thaw();
        return Host.TimedOut;
    }

    /// <summary>Thaws what is frozen. Answers 0, or the first error: also when it was thawed before its time.</summary>
    public int Thaw()
    {
        // Not while somebody else still uses a descriptor.
        lock (_thawing)
        {
            int error = Drain();
            lock (_lock)
            {
                _watchdog?.Dispose();
                _watchdog = null;
                foreach (int descriptor in _open)
                    fileSystems.Close(descriptor);
                _open.Clear();
                if (_abandoned && error == 0)
                    error = Host.TimedOut;
                (_active, _abandoned) = (false, false);
            }
            fileSystems.Mark(frozen: false);
            return error;
        }
    }

    /// <summary>Thaws before it was asked for; a freeze under way fails, and the next <see cref="Thaw"/> says it.</summary>
    /// <param name="why">What the log says.</param>
    public void Abandon(string why)
    {
        lock (_lock)
        {
            if (!_active)
                return;
            _abandoned = true;
        }
        log.Write(LogLevel.Error, $"{why}: everything is thawed");
        lock (_thawing)
            Drain();
    }

    /// <summary>Thaws what somebody left behind who could not; the next <see cref="Thaw"/> says that it was before its time.</summary>
    public void ThawLeftovers()
    {
        lock (_lock)
            _abandoned = true;
        foreach (Freezable what in fileSystems.List())
        {
            int descriptor = fileSystems.Open(what);
            if (descriptor < 0)
                continue;
            // Most are not frozen, which is an error (EINVAL).
            if (fileSystems.Thaw(descriptor) >= 0)
                log.Write(LogLevel.Notice, $"{what.Paths[0]} was still frozen, and is thawed");
            fileSystems.Close(descriptor);
        }
        fileSystems.Mark(frozen: false);
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        if (IsFrozen)
            Thaw();
    }

    // The last one first: the root, which was frozen last, is written to by everybody.
    private int Drain()
    {
        int error = 0;
        while (true)
        {
            (Freezable What, int Descriptor) last;
            lock (_lock)
            {
                if (_frozen.Count == 0)
                    return error;
                last = _frozen[^1];
                _frozen.RemoveAt(_frozen.Count - 1);
            }
            int result = -fileSystems.Thaw(last.Descriptor);
            if (result <= 0)
                continue;
            log.Write(LogLevel.Error, $"{last.What.Paths[0]} could not be thawed: {Host.Text(result)}");
            if (error == 0)
                error = result;
        }
    }

    private int OpenAll(List<(Freezable What, int Descriptor)> all)
    {
        foreach (Freezable what in fileSystems.List())
        {
            int descriptor = fileSystems.Open(what);
            if (descriptor < 0)
            {
                log.Write(LogLevel.Error, $"{what.Paths[0]} cannot be opened: {Host.Text(descriptor)}; nothing is frozen");
                return -descriptor;
            }
            lock (_lock)
                _open.Add(descriptor);
            all.Add((what, descriptor));
        }
        return 0;
    }
}

/// <summary>The guest's own.</summary>
internal sealed class GuestFileSystems : IFileSystems
{
    // In memory, as everything in /run.
    private const string MarkPath = "/run/aerostat-agent.frozen";

    public static bool IsMarked => File.Exists(MarkPath);

    public IReadOnlyList<Freezable> List() => MountTable.Read(File.ReadLines("/proc/self/mountinfo"));

    // A path can lead to what was mounted over it: then another one is taken.
    public int Open(Freezable fileSystem)
    {
        int error = -Host.NoEntry;
        foreach (string path in fileSystem.Paths)
        {
            if (fileSystem.Type != "btrfs" && Host.DeviceOf(path) != fileSystem.Device)
                continue;
            int descriptor = Host.Open(path, write: false);
            if (descriptor >= 0)
                return descriptor;
            error = descriptor;
        }
        return error;
    }

    public int Freeze(int descriptor) => Host.Freeze(descriptor);

    public int Thaw(int descriptor) => Host.Thaw(descriptor);

    public void Close(int descriptor) => Host.Close(descriptor);

    public void Mark(bool frozen)
    {
        try
        {
            if (frozen)
                File.WriteAllBytes(MarkPath, []);
            else
                File.Delete(MarkPath);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            // Without /run nobody comes after, either.
        }
    }
}
