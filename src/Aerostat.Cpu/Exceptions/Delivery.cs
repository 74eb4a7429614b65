using Aerostat.X86;

namespace Aerostat.Cpu;

/// <content>
/// Delivery of interrupts and exceptions (Intel SDM vol. 3 chapter 7), and what happens when the delivery itself faults.
/// </content>
internal sealed unsafe partial class Interpreter
{
    private const ulong Dr7GeneralDetect = 1 << 13;
    private const ulong Dr6GeneralDetect = 1 << 13;

    // An exception whose delivery keeps raising benign exceptions (#AC in a user-mode handler) would spin for ever; a real processor
    // does, but a host thread must not.
    private const int MostNested = 32;

    // Vectors that push RF = 1 because they are faults: the restarted instruction must not hit its breakpoint again
    // (Intel SDM vol. 3 section 18.3.1.1). #DB is a fault only for general detect; see raisedGeneralDetect.
    private const uint FaultVectors = 1u << Vector.DivideError | 1u << Vector.BoundRange | 1u << Vector.InvalidOpcode | 1u << Vector.DeviceNotAvailable
        | 1u << Vector.InvalidTss | 1u << Vector.SegmentNotPresent | 1u << Vector.StackFault | 1u << Vector.GeneralProtection | 1u << Vector.PageFault
        | 1u << Vector.FloatingPoint | 1u << Vector.AlignmentCheck | 1u << Vector.SimdFloatingPoint | 1u << Vector.Virtualization | 1u << Vector.ControlProtection;

    private const uint ContributoryVectors = 1u << Vector.DivideError | 1u << Vector.InvalidTss | 1u << Vector.SegmentNotPresent
        | 1u << Vector.StackFault | 1u << Vector.GeneralProtection | 1u << Vector.ControlProtection;

    /// <summary>Set with a #DB from a debug register access under DR7.GD.</summary>
    private bool raisedGeneralDetect;

    /// <summary>Made when a delivery first faults; complete when one has ended in a triple fault.</summary>
    private FaultChain? faultChain;

    private enum ExceptionClass
    {
        Benign,
        Contributory,
        PageFault,
        DoubleFault,
    }

    private static ExceptionClass Classify(EventKind kind, int vector) =>
        kind != EventKind.HardwareException ? ExceptionClass.Benign
        : vector is Vector.PageFault or Vector.Virtualization ? ExceptionClass.PageFault
        : vector == Vector.DoubleFault ? ExceptionClass.DoubleFault
        : (uint)vector < 32 && (ContributoryVectors >> vector & 1) != 0 ? ExceptionClass.Contributory
        : ExceptionClass.Benign;

    /// <summary>
    /// Delivers an event; <c>s-&gt;Rip</c> is the return address. Exceptions met on the way are delivered in its place or turned into a
    /// double fault (Intel SDM vol. 3 table 7-5). False: triple fault.
    /// </summary>
    internal bool Deliver(CpuState* s, EventKind kind, int vector, bool hasError, uint error)
    {
        deliveringEvent = true;
        bool done = DeliverAll(s, kind, vector, hasError, error);
        deliveringEvent = false;
        return done;
    }

    private bool DeliverAll(CpuState* s, EventKind kind, int vector, bool hasError, uint error)
    {
        s->Shadow = 0;
        if (kind == EventKind.Nmi)
            s->NmiBlocked = 1;
        for (int round = 0; round < MostNested; round++)
        {
            if (kind == EventKind.HardwareException && vector == Vector.PageFault)
                s->Cr2 = faultAddress;
            if (TryDeliver(s, kind, vector, hasError, error, s->Rip))
                return true;
            NoteNested(s, round, kind, vector, hasError, error);
            ExceptionClass first = Classify(kind, vector), second = Classify(EventKind.HardwareException, raisedVector);
            if (first == ExceptionClass.DoubleFault && second is ExceptionClass.Contributory or ExceptionClass.PageFault)
                return false;
            kind = EventKind.HardwareException;
            if ((first == ExceptionClass.Contributory && second == ExceptionClass.Contributory)
                || (first == ExceptionClass.PageFault && second is ExceptionClass.Contributory or ExceptionClass.PageFault))
            {
                if (raisedVector == Vector.PageFault)
                    s->Cr2 = faultAddress;
                (vector, hasError, error) = (Vector.DoubleFault, true, 0);
            }
            else
            {
                (vector, hasError, error) = (raisedVector, raisedHasError, raisedError);
            }
        }
        return false;
    }

    // What was to be delivered, and what was raised instead.
    private void NoteNested(CpuState* s, int round, EventKind kind, int vector, bool hasError, uint error)
    {
        faultChain ??= new FaultChain(2 * MostNested);
        if (round == 0)
            faultChain.Clear();
        // What the last round raised is there already, unless it became a double fault.
        if (round == 0 || vector == Vector.DoubleFault)
            faultChain.Add(s, kind, vector, hasError, error, s->Cr2);
        faultChain.Add(s, EventKind.HardwareException, raisedVector, raisedHasError, raisedError, faultAddress);
    }

    /// <summary>After a triple fault: the events that led to it, first first; empty otherwise.</summary>
    internal IReadOnlyList<Aerostat.Processors.DeliveredEvent> FaultsBeforeShutdown() =>
        State->Activity == (int)Aerostat.Processors.ActivityState.Shutdown && faultChain is { } chain ? chain.Read() : [];

    /// <summary>The single-step trap after an instruction that has set RIP and returns Jump; a triple fault shows in the activity state.</summary>
    internal void TrapSingleStep(CpuState* s)
    {
        s->Dr[6] |= Dr6SingleStep;
        if (!Deliver(s, EventKind.HardwareException, Vector.Debug, hasError: false, 0))
            s->Activity = (int)Aerostat.Processors.ActivityState.Shutdown;
    }

    /// <summary>Delivers an event once; false: it faulted, the fault is recorded and the state is as before.</summary>
    internal bool TryDeliver(CpuState* s, EventKind kind, int vector, bool hasError, uint error, ulong rip)
    {
        bool done = (s->Efer & Efer.Lma) != 0 ? DeliverLong(s, kind, vector, hasError, error, rip)
            : (s->Cr0 & Cr0.Pe) != 0 ? DeliverProtected(s, kind, vector, hasError, error, rip)
            : DeliverReal(s, kind, vector, rip);
        if (done && vector == Vector.Debug && kind is EventKind.HardwareException or EventKind.PrivilegedSoftwareException)
            s->Dr[7] &= ~Dr7GeneralDetect;
        return done;
    }

    private uint FlagsToPush(CpuState* s, EventKind kind, int vector)
    {
        uint flags = CpuStateExtensions.GetRflags(s);
        if (kind == EventKind.HardwareException)
        {
            if ((FaultVectors >> vector & 1) != 0 || (vector == Vector.Debug && raisedGeneralDetect))
                flags |= RFlags.Rf;
            raisedGeneralDetect = false;
        }
        return flags;
    }

    private static uint ExternalBit(EventKind kind) => kind is EventKind.SoftwareInterrupt or EventKind.SoftwareException ? 0u : 1;

    private bool FailIdt(int exception, int vector, uint ext)
    {
        Raise(exception, ((uint)vector << 3) | 2 | ext);
        return false;
    }

    private bool Fail(int exception, ulong selector, uint ext)
    {
        RaiseSelector(exception, selector, ext);
        return false;
    }

    // Intel SDM vol. 3 section 21.1.4: far pointers of four bytes, no error codes.
    private bool DeliverReal(CpuState* s, EventKind kind, int vector, ulong rip)
    {
        if ((uint)(vector * 4) + 3 > s->IdtLimit)
            return FailIdt(Vector.GeneralProtection, vector, ExternalBit(kind));
        if (!LoadSystem<uint>(s, s->IdtBase + ((ulong)vector * 4), out ulong pointer))
            return false;
        ulong rsp = s->Gpr[4];
        if (!PushSized(s, 2, FlagsToPush(s, kind, vector)) || !PushSized(s, 2, s->Cs.Selector) || !PushSized(s, 2, rip))
        {
            s->Gpr[4] = rsp;
            return false;
        }
        s->SystemFlags &= ~(RFlags.If | RFlags.Tf | RFlags.Ac | RFlags.Rf);
        s->Cs.Selector = (ushort)(pointer >> 16);
        s->Cs.Base = (ulong)s->Cs.Selector << 4;
        s->Rip = pointer & 0xFFFF;
        UpdateMode();
        return true;
    }
}
