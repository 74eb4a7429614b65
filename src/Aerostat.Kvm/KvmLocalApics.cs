using Aerostat.Interrupts;
using Aerostat.X86;

namespace Aerostat.Kvm;

/// <summary>
/// The local APICs in the kernel, with the other interrupt controllers outside (KVM_CAP_SPLIT_IRQCHIP). Messages go in by KVM_SIGNAL_MSI, and those
/// that come often by an event descriptor of their own (KVM_IRQFD). The routing table's first numbers stand for the I/O APIC's pins: from them
/// the kernel learns whose ends of interrupt to tell.
/// </summary>
internal sealed unsafe class KvmLocalApics : IHostedLocalApics, IDisposable
{
    /// <summary>The I/O APIC's pins.</summary>
    public const int Pins = 24;

    private const long KernelFrequencyHz = 1_000_000_000;
    private const int PageBytes = 1024, TimerEntry = 0x320, InitialCount = 0x380, CurrentCount = 0x390, Requested = 0x200, InService = 0x100;
    private const uint Masked = 1 << 16, ModeMask = 3 << 17, DeadlineMode = 2 << 17;

    // A message gets its descriptor when it has come this often; so many have one at most.
    private const int Often = 32, MostDescriptors = 128;

    private readonly int machine;
    private readonly bool descriptors;
    private readonly Lock gate = new();
    private readonly List<KvmProcessor> processors = [];
    private readonly Dictionary<(ulong, uint), Messenger> messengers = [];
    private readonly Dictionary<int, Timer> timers = [];
    private readonly List<(ulong Address, uint Data)> watched = [];
    private bool holding = true, disposed;

    private sealed class Messenger
    {
        public int Count, Descriptor = -1;
        public uint Gsi;
    }

    private readonly record struct Timer(uint Count, ulong Deadline);

    /// <summary>Turns the kernel's local APICs on. Before the first vCPU is made.</summary>
    /// <exception cref="KvmException">The kernel refuses.</exception>
    public KvmLocalApics(int machine, KvmCapabilities capabilities, long frequencyHz, bool descriptors)
    {
        this.machine = machine;
        this.descriptors = descriptors && capabilities.EventDescriptors;
        KvmEnableCapability split = new() { Capability = (uint)KvmCapability.SplitIrqchip };
        split.Arguments[0] = Pins;
        KvmException.Check(KvmCalls.Control(machine, KvmIoctl.EnableCapability, &split), "the kernel's local APICs");
        TimerFrequencyHz = KernelFrequencyHz;
        if (!capabilities.ApicTimerFrequency)
            return;
        KvmEnableCapability cycle = new() { Capability = (uint)KvmCapability.ApicBusCycle };
        cycle.Arguments[0] = (ulong)(1_000_000_000 / frequencyHz);
        if (KvmCalls.Control(machine, KvmIoctl.EnableCapability, &cycle) >= 0)
            TimerFrequencyHz = frequencyHz;
    }

    /// <inheritdoc/>
    public long TimerFrequencyHz { get; }

    /// <inheritdoc/>
    public Action<byte>? EndOfInterrupt { get; set; }

    /// <summary>How many messages have an event descriptor.</summary>
    public int DescriptorCount
    {
        get
        {
            lock (gate)
                return messengers.Values.Count(m => m.Descriptor >= 0);
        }
    }

    /// <summary>A vCPU has been made.</summary>
    public void Add(KvmProcessor processor)
    {
        lock (gate)
            processors.Add(processor);
    }

    /// <inheritdoc/>
    public int Send(ulong address, uint data)
    {
        if (descriptors)
        {
            int result = SendByDescriptor(address, data);
            if (result != 0)
                return result;
        }
        KvmMessage message = new() { AddressLow = (uint)address, AddressHigh = (uint)(address >> 32), Data = data };
        return KvmCalls.Control(machine, KvmIoctl.SignalMessage, &message);
    }

    // 0: this message has no descriptor. Level-triggered ones never get one: the I/O APIC wants to know what became of them.
    private int SendByDescriptor(ulong address, uint data)
    {
        if ((data & 0x8000) != 0)
            return 0;
        lock (gate)
        {
            if (disposed)
                return -1;
            if (!messengers.TryGetValue((address, data), out Messenger? messenger))
            {
                if (messengers.Count >= MostDescriptors)
                    Forget();
                messengers.Add((address, data), messenger = new Messenger());
            }
            if (messenger.Descriptor < 0)
            {
                if (++messenger.Count < Often || !Open(messenger))
                    return 0;
            }
            return KvmCalls.SignalEvent(messenger.Descriptor) ? 1 : 0;
        }
    }

    private bool Open(Messenger messenger)
    {
        messenger.Count = 0;
        HashSet<uint> taken = [.. messengers.Values.Where(m => m.Descriptor >= 0).Select(m => m.Gsi)];
        uint gsi = Pins;
        while (taken.Contains(gsi))
            gsi++;
        int descriptor = KvmCalls.OpenEvent();
        if (descriptor < 0)
            return false;
        messenger.Gsi = gsi;
        messenger.Descriptor = descriptor;
        KvmInterruptDescriptor request = new() { Descriptor = (uint)descriptor, Gsi = gsi };
        if (Route() && KvmCalls.Control(machine, KvmIoctl.InterruptDescriptor, &request) >= 0)
            return true;
        KvmCalls.Close(descriptor);
        messenger.Descriptor = -1;
        // Not again for a long time.
        messenger.Count = int.MinValue;
        return false;
    }

    // Guests change their messages seldom: when there are too many, most are old.
    private void Forget()
    {
        foreach (Messenger messenger in messengers.Values)
            Release(messenger);
        messengers.Clear();
        Route();
    }

    private void Release(Messenger messenger)
    {
        if (messenger.Descriptor < 0)
            return;
        KvmInterruptDescriptor request = new() { Descriptor = (uint)messenger.Descriptor, Gsi = messenger.Gsi, Flags = KvmInterruptDescriptor.Deassign };
        _ = KvmCalls.Control(machine, KvmIoctl.InterruptDescriptor, &request);
        KvmCalls.Close(messenger.Descriptor);
        messenger.Descriptor = -1;
    }

    /// <inheritdoc/>
    public void Watch(ReadOnlySpan<(ulong Address, uint Data)> messages)
    {
        lock (gate)
        {
            if (disposed)
                return;
            if (messages.SequenceEqual(System.Runtime.InteropServices.CollectionsMarshal.AsSpan(watched)))
                return;
            watched.Clear();
            watched.AddRange(messages[..Math.Min(messages.Length, Pins)]);
            Route();
        }
    }

    // The table is replaced as a whole. Gate held.
    private bool Route()
    {
        List<KvmRoute> routes = [];
        foreach ((ulong address, uint data) in watched)
            routes.Add(MakeRoute((uint)routes.Count, address, data));
        foreach (((ulong address, uint data), Messenger messenger) in messengers)
            if (messenger.Descriptor >= 0)
                routes.Add(MakeRoute(messenger.Gsi, address, data));
        byte[] table = new byte[8 + (routes.Count * sizeof(KvmRoute))];
        // SAFETY: the block holds the header and as many entries as it says.
        fixed (byte* pointer = table)
        {
            *(uint*)pointer = (uint)routes.Count;
            for (int i = 0; i < routes.Count; i++)
                ((KvmRoute*)(pointer + 8))[i] = routes[i];
            return KvmCalls.Control(machine, KvmIoctl.SetRouting, pointer) >= 0;
        }
    }

    private static KvmRoute MakeRoute(uint gsi, ulong address, uint data) => new()
    {
        Gsi = gsi,
        Type = KvmRoute.MessageSignalled,
        AddressLow = (uint)address,
        AddressHigh = (uint)(address >> 32),
        Data = data,
    };

    /// <inheritdoc/>
    public HostedLocalApicState Read(int index)
    {
        KvmProcessor processor = Find(index);
        byte[] page = ReadPage(processor);
        processor.TryReadMsr(Msr.ApicBase, out ulong apicBase);
        processor.TryReadMsr(Msr.TscDeadline, out ulong deadline);
        lock (gate)
        {
            if (holding && timers.TryGetValue(index, out Timer timer))
            {
                // What has run out meanwhile has not in VM time.
                (deadline, uint count) = (timer.Deadline, timer.Count);
                Write(page, CurrentCount, count);
            }
        }
        // A one-shot timer that ran out while nobody was in the guest waits where it cannot be seen. One interrupt too many does no harm.
        uint entry = Read(page, TimerEntry);
        if ((entry & (ModeMask | Masked)) == 0 && Read(page, InitialCount) != 0 && Read(page, CurrentCount) == 0 && (entry & 0xFF) >= 16)
        {
            int at = (int)(entry & 0xFF) / 32 * 16;
            uint bit = 1u << (int)(entry & 31);
            if ((Read(page, InService + at) & bit) == 0)
                Write(page, Requested + at, Read(page, Requested + at) | bit);
        }
        return new HostedLocalApicState(apicBase, deadline, page);
    }

    /// <inheritdoc/>
    public void Write(int index, HostedLocalApicState state)
    {
        KvmProcessor processor = Find(index);
        processor.WriteMsr(Msr.ApicBase, state.Base);
        WritePage(processor, state.Registers);
        processor.WriteMsr(Msr.TscDeadline, state.Deadline);
        lock (gate)
        {
            timers.Remove(index);
            if (holding && (state.Deadline != 0 || Read(state.Registers, CurrentCount) != 0))
                timers[index] = new Timer(Read(state.Registers, CurrentCount), state.Deadline);
        }
    }

    /// <inheritdoc/>
    public void HoldTime()
    {
        lock (gate)
        {
            if (holding)
                return;
            holding = true;
            timers.Clear();
            foreach (KvmProcessor processor in processors)
            {
                byte[] page = ReadPage(processor);
                bool byDeadline = (Read(page, TimerEntry) & ModeMask) == DeadlineMode;
                ulong deadline = 0;
                if (byDeadline)
                    processor.TryReadMsr(Msr.TscDeadline, out deadline);
                uint count = byDeadline ? 0 : Read(page, CurrentCount);
                if (deadline != 0 || count != 0)
                    timers[processor.Index] = new Timer(count, deadline);
            }
        }
    }

    /// <inheritdoc/>
    public void ReleaseTime()
    {
        lock (gate)
        {
            if (!holding)
                return;
            holding = false;
            foreach (KvmProcessor processor in processors)
            {
                processor.ResumeTimestamp();
                if (!timers.TryGetValue(processor.Index, out Timer timer))
                    continue;
                if (timer.Count != 0)
                {
                    byte[] page = ReadPage(processor);
                    Write(page, CurrentCount, timer.Count);
                    WritePage(processor, page);
                }
                if (timer.Deadline != 0)
                    processor.WriteMsr(Msr.TscDeadline, timer.Deadline);
            }
            timers.Clear();
        }
    }

    private KvmProcessor Find(int index)
    {
        lock (gate)
            return processors.First(p => p.Index == index);
    }

    private static byte[] ReadPage(KvmProcessor processor)
    {
        byte[] page = new byte[PageBytes];
        fixed (byte* pointer = page)
            KvmException.Check(KvmCalls.Control(processor.Descriptor, KvmIoctl.GetLocalApic, pointer), "a local APIC's registers");
        return page;
    }

    private static void WritePage(KvmProcessor processor, byte[] page)
    {
        fixed (byte* pointer = page)
            KvmException.Check(KvmCalls.Control(processor.Descriptor, KvmIoctl.SetLocalApic, pointer), "these registers of a local APIC");
    }

    private static uint Read(byte[] page, int at) => BitConverter.ToUInt32(page, at);

    private static void Write(byte[] page, int at, uint value) => BitConverter.TryWriteBytes(page.AsSpan(at), value);

    /// <inheritdoc/>
    public void Dispose()
    {
        lock (gate)
        {
            if (disposed)
                return;
            disposed = true;
            foreach (Messenger messenger in messengers.Values)
                Release(messenger);
            messengers.Clear();
        }
    }
}
