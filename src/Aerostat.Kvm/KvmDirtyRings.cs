using Aerostat.Memory;

namespace Aerostat.Kvm;

/// <summary>
/// Written pages as each vCPU's ring tells them (KVM_CAP_DIRTY_LOG_RING): what there is to do grows with the pages written, not with the machine's
/// memory. Entries are taken in order and given back together; until then the page is not watched again.
/// </summary>
internal sealed unsafe class KvmDirtyRings : IDisposable
{
    // 256 KiB for each vCPU.
    private const int Entries = 16384;

    private readonly List<Ring> rings = [];
    private readonly GuestMemory memory;
    private readonly int machine, entries;

    private sealed class Ring(KvmProcessor processor, nint pages)
    {
        public KvmProcessor Processor { get; } = processor;

        public KvmDirtyPage* Pages => (KvmDirtyPage*)pages;

        public uint Next;
    }

    private KvmDirtyRings(GuestMemory memory, int machine, int entries)
    {
        this.memory = memory;
        this.machine = machine;
        this.entries = entries;
    }

    /// <summary>Pages told so far.</summary>
    public long Pages { get; private set; }

    /// <summary>Turns the rings on, before the first vCPU is made; null: the kernel has none.</summary>
    public static KvmDirtyRings? Create(GuestMemory memory, int machine, KvmCapabilities capabilities)
    {
        int entries = Math.Min(Entries, capabilities.DirtyRingEntries);
        if (entries == 0)
            return null;
        KvmEnableCapability ring = new() { Capability = (uint)KvmCapability.DirtyRing };
        ring.Arguments[0] = (ulong)entries * (ulong)sizeof(KvmDirtyPage);
        return KvmCalls.Control(machine, KvmIoctl.EnableCapability, &ring) >= 0 ? new KvmDirtyRings(memory, machine, entries) : null;
    }

    /// <summary>A vCPU has been made.</summary>
    /// <exception cref="KvmException">Its ring cannot be mapped.</exception>
    public void Add(KvmProcessor processor)
    {
        byte* pages = KvmCalls.MapRing(processor.Descriptor, (nuint)(entries * sizeof(KvmDirtyPage)));
        if (pages == null)
            throw new KvmException($"the dirty ring of vCPU {processor.Index}", 12);
        rings.Add(new Ring(processor, (nint)pages));
    }

    /// <summary>Takes a vCPU out of the guest for a moment: processors that note written pages themselves hand them over then.</summary>
    public void Flush()
    {
        foreach (Ring ring in rings)
            ring.Processor.LeaveGuestOnce();
    }

    /// <summary>Tells the memory what is in the rings. One caller at a time.</summary>
    /// <param name="slots">What the entries' numbers mean.</param>
    public void Collect(IReadOnlyList<KvmSlots.Slot> slots)
    {
        bool any = false;
        foreach (Ring ring in rings)
        {
            while (true)
            {
                // SAFETY: the index is below the number of entries mapped.
                KvmDirtyPage* page = ring.Pages + (ring.Next & (uint)(entries - 1));
                if ((Volatile.Read(ref page->Flags) & KvmDirtyPage.Dirty) == 0)
                    break;
                int number = (int)(page->Slot & 0xFFFF);
                foreach (KvmSlots.Slot slot in slots)
                    if (slot.Number == number && page->Offset < slot.Bytes >> 12)
                        memory.NotifyWrite(slot.Address + (page->Offset << 12), 4096);
                Volatile.Write(ref page->Flags, KvmDirtyPage.Reset);
                ring.Next++;
                Pages++;
                any = true;
            }
        }
        if (any)
            _ = KvmCalls.Control(machine, KvmIoctl.ResetDirtyRings);
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        foreach (Ring ring in rings)
            KvmCalls.Unmap((byte*)ring.Pages, (nuint)(entries * sizeof(KvmDirtyPage)));
        rings.Clear();
    }
}
