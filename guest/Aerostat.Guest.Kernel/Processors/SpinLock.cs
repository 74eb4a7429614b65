using System.Runtime.CompilerServices;

namespace Aerostat.Guest.Kernel;

/// <summary>
/// A lock for a few instructions; not to be taken by interrupts. A deadlock does not stand still: whoever waits looks whether the lock's owner waits, by way of others,
/// for itself, and ends the guest with where each of them stands. So does one that has waited for longer than <see cref="Limit"/>.
/// </summary>
internal unsafe struct SpinLock
{
    private const uint LookEvery = 1024;

    // 0: free, otherwise 1 + the index of the processor that has it.
    private uint owner;
    private ulong takenAt;

    /// <summary>How long somebody waits for a lock before it is told of, in units of the time-stamp counter; 0: for ever, before there is a clock.</summary>
    public static ulong Limit { get; set; }

    /// <summary>Whether this processor has it.</summary>
    public bool IsMine
    {
        get
        {
            fixed (uint* at = &owner)
                return Processor.Load(at) == Processors.Current->Index + 1;
        }
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    public void Enter()
    {
        uint me = Processors.Current->Index + 1;
        fixed (SpinLock* self = &this)
        {
            if (Processor.CompareExchange(&self->owner, me, 0) != 0)
                Wait(self, me, ReturnAddress(Processor.ReadFrame()));
            self->takenAt = ReturnAddress(Processor.ReadFrame());
        }
    }

    public void Exit()
    {
        fixed (uint* at = &owner)
        {
            if (*at != Processors.Current->Index + 1)
                Panic.Stop("gave back a lock that another processor has, or nobody");
            Processor.Exchange(at, 0);
        }
    }

    private static void Wait(SpinLock* self, uint me, ulong from)
    {
        ProcessorData* mine = Processors.Current;
        mine->WaitingAt = from;
        mine->Waits++;
        mine->WaitingFor = self;
        ulong begun = Processor.ReadTimestamp();
        for (uint spins = 1; ; spins++)
        {
            if (Processor.Load(&self->owner) == 0 && Processor.CompareExchange(&self->owner, me, 0) == 0)
                break;
            Processor.Pause();
            if (spins % LookEvery != 1)
                continue;
            // Who waits in both looks has waited in between, and given nothing back: what was seen was so at one time.
            if (IsCircle(self, me, out uint first) && IsCircle(self, me, out uint second) && first == second)
                Tell("deadlock", self, mine);
            if (Limit != 0 && Processor.ReadTimestamp() - begun > Limit)
                Tell("a lock is not given back", self, mine);
        }
        mine->WaitingFor = null;
    }

    // From this lock to its owner, to the lock that it waits for: does that lead back?
    private static bool IsCircle(SpinLock* from, uint me, out uint waits)
    {
        waits = 0;
        SpinLock* at = from;
        for (uint i = 0; i <= Processors.Count; i++)
        {
            uint owner = Processor.Load(&at->owner);
            if (owner == me)
                return true;
            ProcessorData* other = owner == 0 ? null : Processors.At(owner - 1);
            if (other is null)
                return false;
            waits = (waits * 31) + other->Waits;
            at = other->WaitingFor;
            if (at is null)
                return false;
        }
        return false;
    }

    private static void Tell(string what, SpinLock* from, ProcessorData* mine)
    {
        Panic.Begin();
        Console.Write("PANIC: ");
        Console.WriteLine(what);
        SpinLock* at = from;
        ProcessorData* waiting = mine;
        for (uint i = 0; i <= Processors.Count; i++)
        {
            Console.Write("  processor ");
            Console.Write((ulong)waiting->Index);
            Console.Write(" waits at 0x");
            Console.WriteHex(waiting->WaitingAt);
            Console.Write(" for the lock at 0x");
            Console.WriteHex((ulong)at);
            uint owner = at->owner;
            if (owner == 0)
                break;
            Console.Write(", which processor ");
            Console.Write((ulong)owner - 1);
            Console.Write(" took at 0x");
            Console.WriteHex(at->takenAt);
            Console.Write('\n');
            waiting = Processors.At(owner - 1);
            if (waiting == mine || waiting is null || waiting->WaitingFor is null)
                break;
            at = waiting->WaitingFor;
        }
        Panic.EndHere();
    }

    // Of the method whose frame it is: where its caller goes on.
    private static ulong ReturnAddress(ulong frame) => ((ulong*)frame)[1];
}
