using Aerostat.Interrupts;

namespace Aerostat.Chipset;

/// <summary>
/// The bus between local APICs, I/O APICs, message-signalled interrupts and the 8259 pair (Intel SDM vol. 3, 11.6.2 for
/// destinations, 11.11 for messages).
/// <para>Not emulated: arbitration (messages never collide), SMI, the 15-bit extended destination of MSIs.</para>
/// </summary>
/// <remarks>
/// Lock order: device, GSI router, 8259 or I/O APIC. The local APICs come last and take no lock when a message arrives, and no
/// local APIC calls out while it holds its timer lock; so any thread may deliver from any place.
/// </remarks>
public sealed class InterruptFabric : IMessageInterrupts
{
    private readonly Lock _attaching = new();
    private LocalApic[] _locals = [];
    private IoApic[] _ioApics = [];
    private IExternalInterruptController? _external;
    private int _turn;
    private readonly IHostedLocalApics? _hosted;

    /// <summary>Makes a fabric without anything attached.</summary>
    public InterruptFabric()
    {
        ExternalInterrupt = new ExternalInterruptLine(this);
        NonMaskableInterrupt = new NmiLine(this);
    }

    /// <summary>
    /// Where the 8259 pair's INTR output goes: LINT0 of every local APIC. To be given to the <see cref="Pic"/>.
    /// </summary>
    public IInterruptLine ExternalInterrupt { get; }

    /// <summary>A line that is wired to LINT1 of every local APIC: the machine's NMI button and parity errors.</summary>
    public IInterruptLine NonMaskableInterrupt { get; }

    /// <summary>Local APICs that the hypervisor keeps: messages go there. Set before the local APICs are made, or never.</summary>
    public IHostedLocalApics? Hosted
    {
        get => _hosted;
        init
        {
            _hosted = value;
            if (value is not null)
                value.EndOfInterrupt = EndHosted;
        }
    }

    /// <summary>Answers the acknowledge cycle of ExtINT. Set once, while the board is built.</summary>
    public IExternalInterruptController? ExternalInterruptController
    {
        get => _external;
        set => _external = value;
    }

    internal void Attach(LocalApic apic)
    {
        lock (_attaching)
            _locals = [.. _locals, apic];
    }

    internal void Attach(IoApic apic)
    {
        lock (_attaching)
            _ioApics = [.. _ioApics, apic];
    }

    internal int AcknowledgeExternal() => _external?.Acknowledge() ?? -1;

    internal void BroadcastEndOfInterrupt(byte vector)
    {
        foreach (IoApic apic in _ioApics)
            apic.EndOfInterrupt(vector);
    }

    /// <summary>A local APIC has handed an interrupt to its processor; on that processor's thread, without any lock.</summary>
    internal void NoteTaken(byte vector)
    {
        foreach (IoApic apic in _ioApics)
            apic.NoteTaken(vector);
    }

    /// <summary>
    /// A memory write to 0xFEExxxxx (SDM 11.11): bits 19..12 of the address are the destination, 3 the redirection hint,
    /// 2 the destination mode; data bits 7..0 the vector, 10..8 the delivery mode, 14 the level, 15 the trigger mode.
    /// Other addresses are ignored.
    /// </summary>
    public void Send(ulong address, uint data)
    {
        if (address >> 20 != 0xFEE)
            return;
        if (_hosted is not null)
        {
            _hosted.Send(address, data);
            return;
        }
        bool level = (data & 0x8000) != 0;
        if (level && (data & 0x4000) == 0)
            return;
        var mode = (DeliveryMode)(data >> 8 & 7);
        Deliver(new InterruptMessage(
            Destination: (byte)(address >> 12), Wide: false, Logical: (address & 4) != 0, mode, (byte)data, level,
            OneOf: mode == DeliveryMode.LowestPriority || (address & 8) != 0));
    }

    /// <summary>
    /// Delivers what the low half of an interrupt command register asks for (fixed or NMI, SDM 11.6.1) to one APIC ID, whatever its
    /// destination fields say; true if it was taken.
    /// </summary>
    public bool SendCommand(uint apicId, uint command)
    {
        var mode = (DeliveryMode)(command >> 8 & 7);
        return mode is DeliveryMode.Fixed or DeliveryMode.Nmi && apicId != uint.MaxValue
            && Deliver(new InterruptMessage(apicId, Wide: true, Logical: false, mode, (byte)command, Level: false, OneOf: false))
                != Reception.Lost;
    }

    /// <summary>Delivers to every matching local APIC.</summary>
    internal Reception Deliver(in InterruptMessage message)
    {
        if (_hosted is not null)
            return DeliverHosted(_hosted, message);
        LocalApic[] locals = _locals;
        if (message.OneOf)
            return DeliverToOne(locals, message);
        var best = Reception.Lost;
        foreach (LocalApic apic in locals)
        {
            if (!apic.Matches(message))
                continue;
            Reception reception = apic.Accept(message.Mode, message.Vector, message.Level);
            if (reception > best)
                best = reception;
        }
        return best;
    }

    /// <summary>The shorthands "all including self" and "all excluding self".</summary>
    internal void DeliverToAll(in InterruptMessage message, LocalApic? except)
    {
        foreach (LocalApic apic in _locals)
        {
            if (apic != except)
                apic.Accept(message.Mode, message.Vector, message.Level);
        }
    }

    /// <summary>Lowest priority: the matching processor with the lowest priority class, in turn among equals.</summary>
    private Reception DeliverToOne(LocalApic[] locals, in InterruptMessage message)
    {
        if (locals.Length == 0)
            return Reception.Lost;
        int start = (int)((uint)Interlocked.Increment(ref _turn) % (uint)locals.Length);
        LocalApic? best = null;
        int bestPriority = int.MaxValue;
        for (int i = 0; i < locals.Length; i++)
        {
            int index = start + i;
            LocalApic apic = locals[index < locals.Length ? index : index - locals.Length];
            if (!apic.TakesFixed || !apic.Matches(message))
                continue;
            int priority = apic.ArbitrationPriority;
            if (priority < bestPriority)
                (best, bestPriority) = (apic, priority);
        }
        return best?.Accept(message.Mode, message.Vector, message.Level) ?? Reception.Lost;
    }

    /// <summary>The message as the memory write that a device would make for it.</summary>
    internal static (ulong Address, uint Data) Encode(in InterruptMessage message) => (
        0xFEE0_0000 | ((ulong)(message.Destination & 0xFF) << 12) | (message.OneOf ? 8u : 0) | (message.Logical ? 4u : 0),
        message.Vector | ((uint)message.Mode << 8) | (message.Level ? 0xC000u : 0));

    private static Reception DeliverHosted(IHostedLocalApics hosted, in InterruptMessage message)
    {
        // The 8259 pair's request has a way of its own.
        if (message.Mode is DeliveryMode.ExtInt or DeliveryMode.Reserved or DeliveryMode.Smi)
            return Reception.Lost;
        (ulong address, uint data) = Encode(message);
        return hosted.Send(address, data) switch { < 0 => Reception.Lost, 0 => Reception.Merged, _ => Reception.Accepted };
    }

    // The hypervisor does not say when an interrupt is taken; the end of its handler is near enough for ticks that wait.
    private void EndHosted(byte vector)
    {
        BroadcastEndOfInterrupt(vector);
        NoteTaken(vector);
    }

    private sealed class ExternalInterruptLine(InterruptFabric fabric) : IInterruptLine
    {
        public void Set(bool asserted)
        {
            foreach (LocalApic apic in fabric._locals)
                apic.Lint0.Set(asserted);
        }
    }

    private sealed class NmiLine(InterruptFabric fabric) : IInterruptLine
    {
        public void Set(bool asserted)
        {
            foreach (LocalApic apic in fabric._locals)
                apic.Lint1.Set(asserted);
        }
    }
}

/// <summary>An 8259-compatible controller, as the processor's acknowledge cycle sees it.</summary>
public interface IExternalInterruptController
{
    /// <summary>Answers INTA: a vector 0..255; the spurious vector when the request has gone. Any thread.</summary>
    int Acknowledge();
}
