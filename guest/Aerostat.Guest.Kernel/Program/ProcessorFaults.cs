namespace Aerostat.Guest.Kernel;

/// <summary>The ways in which several processors go wrong.</summary>
internal static unsafe class ProcessorFaults
{
    private static SpinLock left;
    private static SpinLock right;
    private static uint arrived;

    public static void Make(ulong kind)
    {
        if (kind == 6)
        {
            left.Enter();
            left.Enter();
        }
        if (Processors.Count < 2)
            Panic.Stop("that takes two processors");
        Processors.RunOnAll(new Wrong(kind));
    }

    private static void MeetOne()
    {
        fixed (uint* at = &arrived)
        {
            Processor.AddExchange(at, 1);
            while (Processor.Load(at) < 2)
                Processor.Pause();
        }
    }

    private sealed class Wrong(ulong kind) : ProcessorWork
    {
        public override void Run(uint part, uint parts)
        {
            if (part > 1)
                return;
            switch (kind)
            {
                case 7:
                    // Each has one when it wants the other.
                    if (part == 0)
                        left.Enter();
                    else
                        right.Enter();
                    MeetOne();
                    if (part == 0)
                        right.Enter();
                    else
                        left.Enter();
                    break;
                case 8:
                    // One goes away with it.
                    if (part == 1)
                        left.Enter();
                    MeetOne();
                    if (part == 0)
                        left.Enter();
                    break;
                default:
                    if (part == 1)
                        Processor.Undefined();
                    break;
            }
        }
    }
}
