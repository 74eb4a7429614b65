namespace Aerostat.Guest.Drivers;

/// <summary>
/// One processor's synthetic interrupt controller and the hypercalls that a VMBus needs (Hypervisor Top-Level Functional Specification 6.0b, chapters 3 and 11): one
/// interrupt source, a slot for its messages, its event flags.
/// </summary>
public sealed class SyntheticInterrupts(DriverPlatform platform, HyperVPlatform hypervisor)
{
    /// <summary>The source that a VMBus uses.</summary>
    public const byte Source = 2;

    public const int LongestMessage = 240, EventWords = 64;

    /// <summary>What the hypervisor answers to a message or an event.</summary>
    public const uint Success = 0, InsufficientMemory = 11, InvalidConnection = 18, InsufficientBuffers = 19;

    private const uint GuestOsId = 0x4000_0000, HypercallPage = 0x4000_0001, VpIndex = 0x4000_0002, Control = 0x4000_0080, EventFlagsPage = 0x4000_0082,
        MessagePage = 0x4000_0083, EndOfMessage = 0x4000_0084, FirstSource = 0x4000_0090;
    private const ulong Enable = 1, Masked = 1 << 16, EndsItself = 1 << 17;

    // Open source, and none of the systems that have numbers (TLFS, 2.6).
    private const ulong OwnId = (1UL << 63) | 0x10000;
    private const ulong PostMessage = 0x5C, SignalEvent = 0x5D, Fast = 1 << 16;
    private const int PagesOrder = 2;
    private const uint SlotAt = Source * 256, EventsAt = Source * 256;
    private const uint VmbusMessage = 1, MessagePending = 1;

    private ulong pages;

    private ulong Messages => pages + DriverPlatform.PageSize;

    private ulong Events => pages + (2 * DriverPlatform.PageSize);

    private ulong Input => pages + (3 * DriverPlatform.PageSize);

    public bool IsOn { get; private set; }

    /// <summary>This processor's number in the hypervisor's counting.</summary>
    public uint Processor { get; private set; }

    /// <summary>Takes the controller into use; null, or what is wrong.</summary>
    public string? Start()
    {
        if (!hypervisor.IsPresent)
            return "the machine is none of Hyper-V's";
        // A page for the hypervisor's code, for messages, for event flags, and for the input of hypercalls.
        if (pages == 0 && (pages = platform.AllocatePages(PagesOrder)) == 0)
            return "no pages for the hypervisor";
        for (ulong at = pages + DriverPlatform.PageSize; at < pages + (DriverPlatform.PageSize << PagesOrder); at += 8)
            platform.Write64(at, 0);
        hypervisor.WriteMsr(GuestOsId, OwnId);
        hypervisor.WriteMsr(HypercallPage, pages | Enable);
        if ((hypervisor.ReadMsr(HypercallPage) & Enable) == 0)
            return "the hypervisor gives no hypercall page";
        hypervisor.UseHypercallPage(pages);
        Processor = (uint)hypervisor.ReadMsr(VpIndex);
        hypervisor.WriteMsr(MessagePage, Messages | Enable);
        hypervisor.WriteMsr(EventFlagsPage, Events | Enable);
        hypervisor.WriteMsr(FirstSource + Source, hypervisor.Vector | (hypervisor.EndsInterrupts ? 0 : EndsItself));
        hypervisor.WriteMsr(Control, Enable);
        IsOn = true;
        return null;
    }

    /// <summary>The other way round.</summary>
    public void Stop()
    {
        if (!IsOn)
            return;
        IsOn = false;
        hypervisor.WriteMsr(FirstSource + Source, Masked | hypervisor.Vector);
        hypervisor.WriteMsr(MessagePage, 0);
        hypervisor.WriteMsr(EventFlagsPage, 0);
        hypervisor.WriteMsr(Control, 0);
        hypervisor.UseHypercallPage(0);
        hypervisor.WriteMsr(HypercallPage, 0);
        hypervisor.WriteMsr(GuestOsId, 0);
    }

    /// <summary>Takes the next message of the bus: how many bytes, or -1 when there is none.</summary>
    public int TakeMessage(byte[] to)
    {
        while (IsOn)
        {
            uint type = platform.Read(Messages + SlotAt, 4);
            if (type == 0)
                return -1;
            platform.Fence();
            int length = (int)System.Math.Min(platform.Read(Messages + SlotAt + 4, 1), (uint)LongestMessage);
            platform.CopyOut(Messages + SlotAt + 16, to, 0, length);
            // The slot is emptied first and the flag looked at after that; the hypervisor does it the other way round (TLFS, 11.10.3).
            hypervisor.Exchange(Messages + SlotAt, 0);
            platform.Fence();
            if ((platform.Read(Messages + SlotAt + 5, 1) & MessagePending) != 0)
                hypervisor.WriteMsr(EndOfMessage, 0);
            if (type == VmbusMessage)
                return length;
        }
        return -1;
    }

    /// <summary>Takes 32 event flags, which are clear after that.</summary>
    public uint TakeEvents(int word)
    {
        ulong at = Events + EventsAt + (4 * (uint)word);
        return !IsOn || platform.Read(at, 4) == 0 ? 0 : hypervisor.Exchange(at, 0);
    }

    /// <summary>Posts a message to a connection of the host's; the hypervisor's answer.</summary>
    public uint Post(uint connection, ulong message, int length)
    {
        platform.Write(Input, 4, connection);
        platform.Write(Input + 4, 4, 0);
        platform.Write(Input + 8, 4, VmbusMessage);
        platform.Write(Input + 12, 4, (uint)length);
        for (uint i = 0; i < length; i += 8)
            platform.Write64(Input + 16 + i, platform.Read64(message + i));
        return (uint)hypervisor.Hypercall(PostMessage, Input, 0) & 0xFFFF;
    }

    /// <summary>Signals a channel's other end.</summary>
    public void Signal(uint connection) => hypervisor.Hypercall(SignalEvent | Fast, connection, 0);
}
