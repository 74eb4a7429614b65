using System.Buffers.Binary;
using System.Runtime.InteropServices;
using Aerostat.Chipset;
using Aerostat.Memory;

namespace Aerostat.HyperV;

/// <summary>
/// A processor's synthetic interrupt controller and timers (TLFS, chapters 11 and 12): sixteen interrupt sources, each with a slot for a message
/// in one page and 2048 event flags in another.
/// <para>Not emulated: proxy interrupts; a lazy timer is not late on purpose.</para>
/// </summary>
/// <remarks>
/// Registers belong to the vCPU's thread; messages, events and timers come from any. The guest empties a slot by writing its type, then looks at
/// the pending flag; here the flag is set, then the type looked at again, both with a full fence between: one of them sees the other. What
/// finds its page off, its source masked or its slot full is kept until that changes.
/// </remarks>
internal sealed partial class SyntheticInterruptController
{
    public const int Sources = 16, Timers = 4, EventFlags = 2048;

    // Messages that wait for one slot. Senders of many look at the length first.
    public const int QueueLimit = 256;

    private const ulong EnableBit = 1, MaskedBit = 1 << 16, AutoEndBit = 1 << 17, PollingBit = 1 << 18;
    private const uint TimerExpired = 0x8000_0010;
    private const int TimerPayload = 24, EventBytes = EventFlags / 8;
    private const int FirstVector = 16;

    private readonly Lock gate = new();
    private readonly LocalApic apic;
    private readonly ReferenceClock time;
    private readonly TimeProvider clock;
    private readonly ulong[] sints = new ulong[Sources];
    private readonly Queue<SynicMessage>[] queues = new Queue<SynicMessage>[Sources];
    private readonly ulong[]?[] heldEvents = new ulong[]?[Sources];
    private readonly SyntheticTimer[] timers = new SyntheticTimer[Timers];
    private readonly OverlayPage messagePage, eventPage;
    private ulong control, simp, siefp;
    private ITimer? alarm;
    private ulong alarmDue = ulong.MaxValue;

    public SyntheticInterruptController(GuestMemory memory, LocalApic apic, ReferenceClock time, TimeProvider clock)
    {
        this.apic = apic;
        this.time = time;
        this.clock = clock;
        messagePage = new OverlayPage(memory);
        eventPage = new OverlayPage(memory);
        for (int i = 0; i < Sources; i++)
        {
            sints[i] = MaskedBit;
            queues[i] = new Queue<SynicMessage>();
        }
        for (int i = 0; i < Timers; i++)
            timers[i] = new SyntheticTimer();
    }

    /// <summary>Messages that wait for a source's slot.</summary>
    public int Waiting(int sint)
    {
        lock (gate)
            return queues[sint].Count;
    }

    /// <summary>RDMSR; false: not a register of this controller.</summary>
    public bool Read(uint index, out ulong value)
    {
        lock (gate)
        {
            value = index switch
            {
                HyperVMsr.SControl => control,
                HyperVMsr.SVersion => 1,
                HyperVMsr.Siefp => siefp,
                HyperVMsr.Simp => simp,
                >= HyperVMsr.Sint0 and <= HyperVMsr.Sint15 => sints[index - HyperVMsr.Sint0],
                >= HyperVMsr.StimerFirst and <= HyperVMsr.StimerLast => ReadTimer(index - HyperVMsr.StimerFirst),
                // Write-only, but reading does no harm.
                HyperVMsr.Eom => 0,
                _ => ulong.MaxValue,
            };
            return index is (>= HyperVMsr.SControl and <= HyperVMsr.Eom) or (>= HyperVMsr.Sint0 and <= HyperVMsr.Sint15) or (>= HyperVMsr.StimerFirst and <= HyperVMsr.StimerLast);
        }
    }

    /// <summary>WRMSR; false: not a register of this controller, or a value it does not take.</summary>
    public bool Write(uint index, ulong value)
    {
        lock (gate)
        {
            switch (index)
            {
                case HyperVMsr.SControl:
                    control = value & EnableBit;
                    break;
                case HyperVMsr.Siefp:
                    siefp = value;
                    eventPage.Follow(value, default);
                    break;
                case HyperVMsr.Simp:
                    simp = value;
                    messagePage.Follow(value, default);
                    break;
                case HyperVMsr.Eom:
                    break;
                case >= HyperVMsr.Sint0 and <= HyperVMsr.Sint15:
                    if ((value & 0xFF) < FirstVector && (value & MaskedBit) == 0)
                        return false;
                    // Nobody here sees such an APIC hand a vector over; CPUID asks guests not to want it.
                    if (apic.IsHosted && (value & (AutoEndBit | MaskedBit)) == AutoEndBit)
                        return false;
                    sints[index - HyperVMsr.Sint0] = value;
                    PublishAutomaticEnds();
                    break;
                case >= HyperVMsr.StimerFirst and <= HyperVMsr.StimerLast:
                    WriteTimer(index - HyperVMsr.StimerFirst, value);
                    return true;
                default:
                    return false;
            }
            DeliverAll();
            return true;
        }
    }

    /// <summary>Sends a message; false: too many wait already.</summary>
    public bool Post(int sint, SynicMessage message)
    {
        lock (gate)
        {
            if (queues[sint].Count >= QueueLimit)
                return false;
            queues[sint].Enqueue(message);
            DeliverMessages(sint);
            return true;
        }
    }

    /// <summary>Sets an event flag and, if it was clear, asks for an interrupt.</summary>
    public void Signal(int sint, int flag)
    {
        lock (gate)
        {
            (heldEvents[sint] ??= new ulong[EventFlags / 64])[flag >> 6] |= 1UL << flag;
            DeliverEvents(sint);
        }
    }

    /// <summary>Asks for the interrupt of a source, as a device of its own would.</summary>
    public bool Raise(int sint)
    {
        lock (gate)
        {
            if ((control & EnableBit) == 0 || (sints[sint] & MaskedBit) != 0)
                return false;
            Interrupt(sint);
            return true;
        }
    }

    /// <summary>Drops what waits for a source: its sender has started anew.</summary>
    public void Drop(int sint)
    {
        lock (gate)
        {
            queues[sint].Clear();
            heldEvents[sint] = null;
        }
    }

    private void DeliverAll()
    {
        for (int sint = 0; sint < Sources; sint++)
        {
            DeliverMessages(sint);
            DeliverEvents(sint);
        }
    }

    private bool IsOpen(int sint, OverlayPage page) => (control & EnableBit) != 0 && (sints[sint] & MaskedBit) == 0 && page.Address is not null;

    private void DeliverMessages(int sint)
    {
        Queue<SynicMessage> queue = queues[sint];
        while (true)
        {
            SyntheticTimer? timer = NextTimerMessage(sint);
            if ((timer is null && queue.Count == 0) || !IsOpen(sint, messagePage)
                || !messagePage.TryGet(sint * SynicMessage.SlotSize, SynicMessage.SlotSize, out Span<byte> slot))
                return;
            ref uint type = ref MemoryMarshal.AsRef<uint>(slot);
            if (Volatile.Read(ref type) != 0)
            {
                slot[SynicMessage.FlagsOffset] |= SynicMessage.PendingFlag;
                messagePage.Written(sint * SynicMessage.SlotSize, SynicMessage.PayloadOffset);
                Interlocked.MemoryBarrier();
                if (Volatile.Read(ref type) != 0)
                    return;
            }
            SynicMessage message;
            if (timer is not null)
            {
                message = TimerMessage(timer);
                timer.MessagePending = false;
            }
            else
            {
                message = queue.Dequeue();
            }
            bool more = queue.Count > 0 || NextTimerMessage(sint) is not null;
            message.Payload.CopyTo(slot[SynicMessage.PayloadOffset..]);
            slot[SynicMessage.PayloadOffset..][message.Payload.Length..].Clear();
            BinaryPrimitives.WriteUInt64LittleEndian(slot[SynicMessage.SenderOffset..], message.Sender);
            slot[SynicMessage.SizeOffset] = (byte)message.Payload.Length;
            slot[SynicMessage.FlagsOffset] = more ? SynicMessage.PendingFlag : (byte)0;
            slot[SynicMessage.FlagsOffset + 1] = slot[SynicMessage.FlagsOffset + 2] = 0;
            Volatile.Write(ref type, message.Type);
            messagePage.Written(sint * SynicMessage.SlotSize, SynicMessage.SlotSize);
            Interrupt(sint);
        }
    }

    private void DeliverEvents(int sint)
    {
        if (heldEvents[sint] is not { } held || !IsOpen(sint, eventPage) || !eventPage.TryGet(sint * EventBytes, EventBytes, out Span<byte> area))
            return;
        heldEvents[sint] = null;
        Span<ulong> flags = MemoryMarshal.Cast<byte, ulong>(area);
        bool fresh = false;
        for (int i = 0; i < held.Length; i++)
        {
            if (held[i] != 0)
                fresh |= (Interlocked.Or(ref flags[i], held[i]) & held[i]) != held[i];
        }
        eventPage.Written(sint * EventBytes, EventBytes);
        if (fresh)
            Interrupt(sint);
    }

    private void Interrupt(int sint)
    {
        if ((sints[sint] & PollingBit) == 0)
            apic.Deliver((byte)sints[sint]);
    }

    // Vectors that the local APIC ends when it hands them over (TLFS, 11.4).
    private void PublishAutomaticEnds()
    {
        ulong[]? vectors = null;
        foreach (ulong sint in sints)
        {
            if ((sint & (AutoEndBit | MaskedBit)) == AutoEndBit)
                (vectors ??= new ulong[4])[(byte)sint >> 6] |= 1UL << (byte)sint;
        }
        apic.AutomaticEnds = vectors;
    }
}
