using Aerostat.Processors;

namespace Aerostat.Kvm;

/// <summary>
/// Writes that have no consequence until something else is done ("coalesced"): the kernel keeps them in a ring, and they reach the devices, in
/// their order, before whatever exit comes next. The index registers of CMOS, PCI configuration space and the I/O APIC, and the ports that kernels write
/// to in order to wait.
/// </summary>
internal sealed unsafe class KvmGatheredWrites
{
    // The ring is a page of the shared area.
    private const int RingPage = 2, PageBytes = 4096;

    private static readonly (ulong Port, uint Bytes)[] s_ports = [(0x70, 1), (0x80, 1), (0xED, 1), (0xCF8, 4)];

    // IOREGSEL (82093AA data sheet, section 3.1): says which register IOWIN shows. Every access to one of those is a write here first.
    private const ulong IoApicSelect = 0xFEC0_0000;

    private readonly Lock gate = new();
    private long count;

    internal KvmGatheredWrites()
    {
    }

    /// <summary>Writes gathered so far.</summary>
    public long Count => Volatile.Read(ref count);

    /// <summary>Asks the kernel to gather; null: it does not.</summary>
    public static KvmGatheredWrites? Create(int machine, KvmCapabilities capabilities)
    {
        if (!capabilities.CoalescedPorts)
            return null;
        foreach ((ulong port, uint bytes) in s_ports)
        {
            KvmGatheredZone zone = new() { Address = port, Size = bytes, IsPort = 1 };
            if (KvmCalls.Control(machine, KvmIoctl.RegisterGathered, &zone) < 0)
                return null;
        }
        // The others stay exits where the kernel does not want this one.
        KvmGatheredZone select = new() { Address = IoApicSelect, Size = 4 };
        if (capabilities.CoalescedMmio)
            _ = KvmCalls.Control(machine, KvmIoctl.RegisterGathered, &select);
        return new KvmGatheredWrites();
    }

    /// <summary>Hands what is in the ring to the devices. The ring is the machine's; each vCPU shows it in its own shared area.</summary>
    public void Drain(byte* area, IExitHandler handler)
    {
        KvmGatheredRing* ring = (KvmGatheredRing*)(area + (RingPage * PageBytes));
        if (Volatile.Read(ref ring->First) == Volatile.Read(ref ring->Last))
            return;
        lock (gate)
        {
            const uint Entries = (PageBytes - 8) / 24;
            KvmGatheredWrite* writes = (KvmGatheredWrite*)(ring + 1);
            uint first = ring->First;
            while (first != Volatile.Read(ref ring->Last) && first < Entries)
            {
                // SAFETY: the index is below the number of entries that the page has room for.
                KvmGatheredWrite write = writes[first];
                count++;
                int size = (int)Math.Min(write.Length, 8);
                if (write.IsPort == 0)
                    handler.WriteMmio(write.Address, size, write.Data);
                else if (size is 1 or 2 or 4)
                    handler.WritePort((ushort)write.Address, size, (uint)(write.Data & (uint.MaxValue >> (32 - (8 * size)))));
                // Not before: another vCPU that finds the ring empty goes on to what depends on the write. The kernel may fill the place from now on.
                first = (first + 1) % Entries;
                Volatile.Write(ref ring->First, first);
            }
        }
    }
}
