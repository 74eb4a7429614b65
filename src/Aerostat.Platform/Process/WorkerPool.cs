namespace Aerostat.Platform;

/// <summary>
/// A few threads that do a device's work when they are told that there is some. They are made when they are first needed, so that a device
/// nobody uses costs none.
/// </summary>
/// <remarks>
/// The body does what there is to do and returns; told again while it runs, it is called once more. It should look at
/// <see cref="IsPausing"/> between two pieces of work and return when that is set; whoever resumes signals for what was left behind.
/// A pool starts paused if asked to. One that works by hand has no threads, but somebody who calls <see cref="TryRun"/>.
/// </remarks>
/// <param name="name">Of the threads; a number follows where there are several.</param>
/// <param name="threads">How many there may be.</param>
/// <param name="body">Does the work.</param>
/// <param name="failed">Takes what the body throws.</param>
/// <param name="paused">Starts as after one <see cref="Pause"/>.</param>
/// <param name="byHand">Has no threads.</param>
public sealed class WorkerPool(string name, int threads, Action body, Action<Exception> failed, bool paused = false, bool byHand = false)
{
    private readonly object _lock = new();
    private readonly List<Thread> _threads = [];
    private int _signals, _running;
    private int _pauses = paused ? 1 : 0;
    private bool _stopped;

    /// <summary>Whether the body is to return soon.</summary>
    public bool IsPausing => Volatile.Read(ref _pauses) > 0 || Volatile.Read(ref _stopped);

    /// <summary>Whether the body is to be run.</summary>
    public bool HasWork
    {
        get
        {
            lock (_lock)
                return !_stopped && _pauses == 0 && _signals > 0;
        }
    }

    /// <summary>Runs the body once if it is to be run; for a pool that works by hand.</summary>
    public bool TryRun()
    {
        lock (_lock)
        {
            if (_stopped || _pauses > 0 || _signals == 0)
                return false;
            _signals--;
            _running++;
        }
        RunBody();
        return true;
    }

    /// <summary>There is work. Any thread, whatever locks it holds.</summary>
    public void Signal()
    {
        lock (_lock)
        {
            if (_stopped || _signals >= threads)
                return;
            _signals++;
            if (_pauses > 0)
                return;
            StartThreads();
            Monitor.PulseAll(_lock);
        }
    }

    /// <summary>Waits until no body runs, and lets none start.</summary>
    public void Pause()
    {
        lock (_lock)
        {
            _pauses++;
            while (_running > 0)
                Monitor.Wait(_lock);
        }
    }

    /// <summary>Takes one <see cref="Pause"/> back.</summary>
    public void Resume()
    {
        lock (_lock)
        {
            if (--_pauses > 0)
                return;
            StartThreads();
            Monitor.PulseAll(_lock);
        }
    }

    /// <summary>Waits until there is nothing left to do. For tests; must not be paused.</summary>
    public void WaitUntilIdle()
    {
        lock (_lock)
        {
            while (_signals > 0 || _running > 0)
                Monitor.Wait(_lock);
        }
    }

    /// <summary>Ends the threads and waits for them.</summary>
    public void Stop()
    {
        Thread[] all;
        lock (_lock)
        {
            _stopped = true;
            Monitor.PulseAll(_lock);
            all = [.. _threads];
        }
        foreach (Thread thread in all)
            thread.Join();
    }

    // Lock held: as many as have something to do, up to what there may be.
    private void StartThreads()
    {
        while (!byHand && !_stopped && _threads.Count < threads && _threads.Count - _running < _signals)
        {
            Thread thread = new(Loop) { Name = threads == 1 ? name : $"{name}.{_threads.Count}", IsBackground = true };
            _threads.Add(thread);
            thread.Start();
        }
    }

    private void Loop()
    {
        while (true)
        {
            lock (_lock)
            {
                while (!_stopped && (_pauses > 0 || _signals == 0))
                    Monitor.Wait(_lock);
                if (_stopped)
                    return;
                _signals--;
                _running++;
            }
            RunBody();
        }
    }

    private void RunBody()
    {
        try
        {
            body();
        }
        catch (Exception e)
        {
            failed(e);
        }
        lock (_lock)
        {
            _running--;
            // Others of this pool sleep here too, but there are few.
            if (_running == 0)
                Monitor.PulseAll(_lock);
        }
    }
}
