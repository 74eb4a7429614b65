namespace Aerostat.Cpu;

/// <summary>
/// Lets one vCPU thread (or a control thread) act while no other vCPU of the machine is inside the guest.
/// </summary>
/// <remarks>
/// Each vCPU publishes whether it is in the guest. <see cref="Enter"/> sets that mark, then looks at the owner; <see cref="BeginExclusive"/>
/// sets the owner, then looks at the marks. Both are sequentially consistent, so at least one side sees the other (Dekker). A vCPU
/// that finds the gate taken takes its mark back and waits. Marks are down while exit handlers run, so a handler that blocks
/// holds nobody up. Inside the guest a vCPU looks at its Request word at every block boundary, which bounds the wait.
/// </remarks>
internal sealed class ExecutionGate
{
    private readonly Lock exclusive = new();
    private readonly List<Interpreter> members = [];
    private volatile Interpreter[] snapshot = [];
    private volatile bool taken;
    private volatile Interpreter? owner;

    public void Add(Interpreter member)
    {
        lock (members)
        {
            members.Add(member);
            snapshot = [.. members];
        }
    }

    public void Remove(Interpreter member)
    {
        lock (members)
        {
            members.Remove(member);
            snapshot = [.. members];
        }
    }

    /// <summary>All vCPUs.</summary>
    public Interpreter[] Members => snapshot;

    /// <summary>Puts the caller into the guest, waiting while someone acts exclusively.</summary>
    public void Enter(Interpreter self)
    {
        while (true)
        {
            Interlocked.Exchange(ref self.InGuest, 1);
            // The owner comes by here when it calls a handler in the middle of its exclusive section.
            if (!taken || owner == self)
                return;
            Interlocked.Exchange(ref self.InGuest, 0);
            lock (exclusive)
            {
                // Only waits for the owner to finish.
            }
        }
    }

    /// <summary>Takes the caller out of the guest.</summary>
    public static void Leave(Interpreter self) => Volatile.Write(ref self.InGuest, 0);

    /// <summary>
    /// Waits until no other vCPU is in the guest and keeps it so. <paramref name="self"/> is the calling vCPU, which is at a point where its
    /// own cached state may change under it, or null for a control thread.
    /// </summary>
    public void BeginExclusive(Interpreter? self)
    {
        if (self != null)
            Leave(self);
        exclusive.Enter();
        owner = self;
        taken = true;
        Interlocked.MemoryBarrier();
        foreach (Interpreter other in snapshot)
        {
            if (other == self)
                continue;
            other.RequestLeave();
            SpinWait spin = default;
            while (Volatile.Read(ref other.InGuest) != 0)
                spin.SpinOnce(sleep1Threshold: 1000);
        }
    }

    /// <summary>Ends what <see cref="BeginExclusive"/> began; the calling vCPU is in the guest again.</summary>
    public void EndExclusive(Interpreter? self)
    {
        owner = null;
        taken = false;
        if (self != null)
            Volatile.Write(ref self.InGuest, 1);
        exclusive.Exit();
    }
}
