using Aerostat.Platform;
using Aerostat.X86;

namespace Aerostat.Cpu;

/// <content>What a guest that reads the time may rely on: that the timers it has set are not further behind than a host's hiccup.</content>
internal sealed unsafe partial class Interpreter
{
    // Below this the timer thread is just on its way. A guest that waits for several ticks of a timer by the time-stamp counter has
    // periods of milliseconds in mind.
    private const long TimerLag = 1_000_000;

    // A spin lock's holder is mostly done within this many turns of the waiting loop, when its host thread runs at all.
    private const int PausesPerYield = 256;

    private int pauses;

    /// <summary>
    /// PAUSE: a guest that spins may wait for a vCPU that the host does not run, and with queued locks for a whole chain of them. Now and then
    /// it lets another thread of the host have the processor (as pause-loop exiting does: Intel SDM vol. 3 section 26.1.3). The translator
    /// steps PAUSE here as well.
    /// </summary>
    internal void NotePause()
    {
        if (++pauses < PausesPerYield || gate.Members.Length == 1)
            return;
        pauses = 0;
        spinYields++;
        ExecutionGate.Leave(this);
        Thread.Yield();
        gate.Enter(this);
    }

    /// <summary>
    /// To be asked by an instruction that shows the time-stamp counter for what it shows. False: an interrupt comes first and the
    /// instruction is to be repeated (<see cref="Outcome.Repeat"/>).
    /// </summary>
    /// <remarks>
    /// VM time goes on while the host gives this thread, or the timer thread, no time. When this one runs again, the timers of the time
    /// lost may not have called yet, or their interrupts wait for the end of the block. A guest that now read the counter would conclude
    /// that its timer is dead: Linux's check of the timer interrupt does. On a real processor it could not have come this far without taking
    /// the interrupts, so here it takes them first.
    /// </remarks>
    internal bool CanShowTime(CpuState* s, out ulong counter)
    {
        // To ask the host for the time takes longer than all else here, so it is asked once.
        if (vmClock == null)
        {
            counter = Timestamp.Read();
        }
        else
        {
            long now = vmClock.GetTimestamp();
            if (now - TimerLag > vmClock.NextDue)
            {
                // As around a call of the exit handler: others may act while this vCPU waits.
                ExecutionGate.Leave(this);
                vmClock.DispatchDue();
                gate.Enter(this);
                now = vmClock.GetTimestamp();
            }
            counter = Timestamp.At(now);
        }
        return (Volatile.Read(ref s->Request) & (int)Request.Interrupt) == 0
            || (s->SystemFlags & (RFlags.If | RFlags.Tf)) != RFlags.If || s->Shadow != 0 || (debug | hostDebug) != 0;
    }
}
