using Aerostat.Interrupts;

namespace Aerostat.Chipset;

/// <summary>
/// Ticks of a periodic timer that came while the one before still waited to be taken. A real processor takes each tick in its
/// period; a vCPU whose host thread gets no time does not, and a guest that counts ticks would fall behind for ever. So they
/// are kept, and each is sent when the guest has taken the one before. The owner locks.
/// <para>Ticks that nobody listens for are lost, as on a real machine, and so are those kept before them.</para>
/// </summary>
internal struct TickQueue
{
    /// <summary>The most that are kept: what a guest gets at once after a long time without a processor.</summary>
    public const int Most = 1000;

    private int _waiting;

    /// <summary>Ticks that wait to be sent.</summary>
    public int Waiting
    {
        readonly get => _waiting;
        set => _waiting = Math.Clamp(value, 0, Most);
    }

    /// <summary>Sends the ticks of <paramref name="periods"/> periods that have just ended: one now, the others when it has been taken.</summary>
    public void Send(IInterruptLine? line, long periods)
    {
        if (line is not ITickLine tick)
        {
            line?.Pulse();
            return;
        }
        Note(tick.Tick(), periods);
    }

    /// <summary>Keeps what a first tick with this outcome leaves of <paramref name="periods"/> periods.</summary>
    public void Note(Reception first, long periods) => _waiting = first switch
    {
        Reception.Lost => 0,
        Reception.Accepted => (int)Math.Min(_waiting + periods - 1, Most),
        _ => (int)Math.Min(_waiting + periods, Most),
    };

    /// <summary>The guest has taken a tick: sends one that waits.</summary>
    public void Resend(ITickLine line)
    {
        if (_waiting != 0)
            Note(line.Tick(), 0);
    }
}
