namespace Aerostat.Guest.Agent;

/// <summary>Carries out the host's requests, one at a time, as they come over a channel.</summary>
internal sealed class Agent(Freezer freezer, Hooks hooks, TimeSpan limit, ILog log)
{
    // HRESULTs, which is what the host is told: E_FAIL.
    private const uint Failure = 0x80004005;
    private const int Wait = 250;

    private volatile bool _stopping;

    /// <summary>Ends <see cref="Serve"/>; whatever is frozen is thawed at once.</summary>
    public void Stop()
    {
        _stopping = true;
        freezer.Abandon("the agent ends");
    }

    /// <summary>Serves until it is stopped or the channel is gone; nothing is frozen afterwards. Answers why the channel is gone, or 0.</summary>
    public int Serve(IChannel channel)
    {
        try
        {
            while (!_stopping)
            {
                int operation = channel.Receive(Wait);
                if (operation < 0)
                    return operation;
                if (operation == 0)
                    continue;
                uint status = operation switch
                {
                    Operation.Freeze => Freeze(),
                    Operation.Thaw => Thaw(),
                    Operation.HotBackup => 0,
                    _ => Failure,
                };
                int error = channel.Reply(status);
                // The host does not wait for what has its time now: it would count as frozen.
                if (operation == Operation.Thaw)
                    hooks.AfterThaw();
                // An answer that comes too late is refused: then the host does not know that anything is frozen.
                if (error < 0)
                    return error;
            }
            return 0;
        }
        finally
        {
            if (freezer.IsFrozen)
            {
                Thaw();
                hooks.AfterThaw();
            }
        }
    }

    private uint Freeze()
    {
        if (!hooks.BeforeFreeze())
            return Failure;
        int error = freezer.Freeze(limit);
        // A stop may have come in between.
        if (error == 0 && _stopping)
        {
            freezer.Thaw();
            error = Host.TimedOut;
        }
        if (error != 0)
        {
            hooks.AfterThaw();
            return Failure;
        }
        log.Write(LogLevel.Info, "frozen");
        return 0;
    }

    private uint Thaw()
    {
        int error = freezer.Thaw();
        log.Write(error == 0 ? LogLevel.Info : LogLevel.Error, error == 0 ? "thawed" : $"thawed: {(error == Host.TimedOut ? "but before it was asked for" : Host.Text(error))}");
        return error == 0 ? 0 : Failure;
    }
}
