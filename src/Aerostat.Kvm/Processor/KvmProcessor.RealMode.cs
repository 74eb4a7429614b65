using Aerostat.Processors;
using Aerostat.X86;

namespace Aerostat.Kvm;

/// <content>
/// The stack of an interrupt in real mode: FLAGS, CS and IP must lie inside the limit of SS (Intel SDM vol. 3 section 21.1.4). A KVM that emulates its
/// guest there does not look, nor does QEMU's emulation of SVM, so it is looked at here, before the vector is handed over.
/// </content>
internal sealed unsafe partial class KvmProcessor
{
    private const int StackFault = 12, DoubleFault = 8;
    private const int RealFrameWords = 3;

    private DeliveredEvent[] faultsBeforeShutdown = [];

    /// <inheritdoc/>
    public IReadOnlyList<DeliveredEvent> FaultsBeforeShutdown => activity == ActivityState.Shutdown ? faultsBeforeShutdown : [];

    /// <summary>
    /// Whether an interrupt's frame has room. Where it has none, #SS has none either, for it is pushed to the same place, and so on to shutdown: that is
    /// noted. The vCPU is not in the middle of an instruction.
    /// </summary>
    private bool HasRoomForInterrupt(int vector)
    {
        KvmSpecialRegisters special;
        if (KvmCalls.Control(fd, KvmIoctl.GetSpecialRegisters, &special) < 0 || (special.Cr0 & Cr0.Pe) != 0)
            return true;
        KvmRegisters registers;
        if (KvmCalls.Control(fd, KvmIoctl.GetRegisters, &registers) < 0 || HasRoom(special.Ss, registers.Rsp))
            return true;
        DeliveredEvent stackFault = new(EventOrigin.Exception, StackFault, 0, null, special.Cs.Selector, registers.Rip);
        faultsBeforeShutdown =
        [
            stackFault with { Origin = EventOrigin.ExternalInterrupt, Vector = vector, Error = null }, stackFault, stackFault,
            stackFault with { Vector = DoubleFault }, stackFault,
        ];
        activity = ActivityState.Shutdown;
        return false;
    }

    /// <summary>Whether three words can be pushed, each inside the segment; the stack pointer has the segment's width.</summary>
    internal static bool HasRoom(in KvmSegment stack, ulong pointer)
    {
        const int expandDown = 4, code = 8;
        uint mask = stack.Db != 0 ? uint.MaxValue : ushort.MaxValue;
        bool down = (stack.Type & (expandDown | code)) == expandDown;
        for (uint i = 1; i <= RealFrameWords; i++)
        {
            uint first = ((uint)pointer - (2 * i)) & mask;
            ulong last = first + 1UL;
            if (down ? first <= stack.Limit || last > mask : last > stack.Limit)
                return false;
        }
        return true;
    }
}
