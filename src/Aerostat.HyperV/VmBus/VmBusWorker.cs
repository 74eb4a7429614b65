namespace Aerostat.HyperV;

/// <summary>
/// The bus's thread: calls its body when it is told that there is work. Made when it is first needed. Without a thread of its own the body is called by
/// whoever wants it called, for tests.
/// </summary>
internal sealed class VmBusWorker(Action body, Action<Exception> failed, bool threaded)
{
    private readonly object gate = new();
    private Thread? thread;
    private bool signalled, running, stopped;
    // As a machine is made.
    private bool paused = true;

    /// <summary>There is work. Any thread.</summary>
    public void Signal()
    {
        lock (gate)
        {
            signalled = true;
            Begin();
        }
    }

    /// <summary>Waits until the body does not run, and lets it not start.</summary>
    public void Pause()
    {
        lock (gate)
        {
            paused = true;
            while (running)
                Monitor.Wait(gate);
        }
    }

    /// <summary>Goes on.</summary>
    public void Resume()
    {
        lock (gate)
        {
            paused = false;
            Begin();
        }
    }

    /// <summary>Ends the thread and waits for it.</summary>
    public void Stop()
    {
        Thread? last;
        lock (gate)
        {
            stopped = true;
            Monitor.PulseAll(gate);
            last = thread;
        }
        last?.Join();
    }

    private void Begin()
    {
        if (!threaded || paused || stopped || !signalled)
            return;
        if (thread is null)
        {
            thread = new Thread(Loop) { Name = "vmbus", IsBackground = true };
            thread.Start();
        }
        Monitor.PulseAll(gate);
    }

    private void Loop()
    {
        while (true)
        {
            lock (gate)
            {
                while (!stopped && (paused || !signalled))
                    Monitor.Wait(gate);
                if (stopped)
                    return;
                signalled = false;
                running = true;
            }
            try
            {
                body();
            }
            catch (Exception e)
            {
                failed(e);
            }
            lock (gate)
            {
                running = false;
                Monitor.PulseAll(gate);
            }
        }
    }
}
