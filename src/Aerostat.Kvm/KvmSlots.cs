using Aerostat.Memory;

namespace Aerostat.Kvm;

/// <summary>
/// Guest memory as KVM's memory slots, one for each region but for pages that are shown as copies (<see cref="KvmBreakpoints"/>), and the guest's writes as far as anybody asks for them: KVM keeps a bitmap of
/// dirty pages for each slot, or a ring for each vCPU, once <see cref="GuestMemory"/> has armed a watch, and what is in it is told to the memory before the memory
/// answers questions about writes.
/// </summary>
internal sealed unsafe class KvmSlots : IDisposable
{
    private readonly GuestMemory memory;
    private readonly int machine;
    private readonly Lock gate = new();
    private readonly List<Slot> slots = [];
    // Slots are only replaced while no vCPU is in the guest.
    private readonly Lock layoutGate = new();
    private readonly List<KvmProcessor> processors = [];
    private volatile bool closed;
    private volatile KvmProcessor? alone;
    // For machines so big that to look through bitmaps costs more than rings.
    private const ulong RingFrom = 16UL << 30;

    private readonly KvmDirtyRings? rings;
    private bool logging, disposed;

    /// <summary>A piece of guest memory by the kernel's number for it.</summary>
    internal sealed class Slot
    {
        public required int Number { get; init; }

        public required ulong Address { get; init; }

        public required ulong Bytes { get; init; }

        public required nint Host { get; init; }

        // The guest's writes to it come out.
        public required bool Copy { get; init; }

        public ulong[] Bits { get; set; } = [];
    }

    /// <summary>Gives the regions to the kernel.</summary>
    /// <exception cref="KvmException">It does not take them.</exception>
    public KvmSlots(GuestMemory memory, int machine, KvmCapabilities capabilities, KvmDirtyTracking tracking)
    {
        this.memory = memory;
        this.machine = machine;
        if (tracking == KvmDirtyTracking.Ring || (tracking == KvmDirtyTracking.Automatic && memory.TotalBytes >= RingFrom))
            rings = KvmDirtyRings.Create(memory, machine, capabilities);
        if (rings is null && tracking == KvmDirtyTracking.Ring)
            throw new NotSupportedException("this host's KVM has no dirty rings");
        foreach (MemoryRegion region in memory.Regions)
        {
            Slot slot = Make(region.Base.Value, region.End, null);
            KvmException.Check(Set(slot), $"guest memory '{region.Name}'");
            slots.Add(slot);
        }
        memory.WatchTightened += StartLogging;
        memory.CollectWrites += Collect;
    }

    /// <summary>Pages that rings have told of; null: there are none.</summary>
    public long? RingPages => rings?.Pages;

    /// <summary>A vCPU has been made.</summary>
    public void Add(KvmProcessor processor)
    {
        lock (gate)
            rings?.Add(processor);
        lock (layoutGate)
            processors.Add(processor);
    }

    /// <summary>Before a vCPU enters the guest, after it has said that it will: false, and after a while, it may not.</summary>
    public bool MayEnter(KvmProcessor processor) => !closed && (alone is null || alone == processor);

    /// <summary>Takes all other vCPUs out of the guest until <see cref="LetAll"/>. On the thread of the one that stays.</summary>
    public void LetOnly(KvmProcessor processor)
    {
        layoutGate.Enter();
        alone = processor;
        KeepOut();
    }

    /// <summary>Ends <see cref="LetOnly"/>, on the same thread.</summary>
    public void LetAll()
    {
        alone = null;
        layoutGate.Exit();
    }

    // Layout gate held.
    private void KeepOut()
    {
        Interlocked.MemoryBarrier();
        foreach (KvmProcessor processor in processors)
            processor.StayOut();
    }

    /// <summary>Waits until vCPUs may be in the guest again.</summary>
    public void WaitToEnter()
    {
        lock (layoutGate)
        {
        }
    }

    /// <summary>Shows the guest copies in place of some pages. The copies are not freed before another call has taken them away.</summary>
    /// <param name="copies">By page frame number, all that there are to be.</param>
    /// <exception cref="KvmException">The kernel refuses.</exception>
    public void Show(IReadOnlyDictionary<ulong, nint> copies)
    {
        List<(ulong Start, ulong End, nint? Copy)> wanted = [];
        foreach (MemoryRegion region in memory.Regions)
        {
            ulong at = region.Base.Value;
            foreach ((ulong page, nint copy) in copies.Where(c => c.Key << 12 >= region.Base.Value && c.Key << 12 < region.End).OrderBy(c => c.Key))
            {
                if (page << 12 > at)
                    wanted.Add((at, page << 12, null));
                wanted.Add((page << 12, (page + 1) << 12, copy));
                at = (page + 1) << 12;
            }
            if (at < region.End)
                wanted.Add((at, region.End, null));
        }
        if (wanted.Count == slots.Count && wanted.All(w => slots.Any(s => Matches(s, w))))
            return;
        lock (layoutGate)
        {
            closed = true;
            try
            {
                KeepOut();
                // What the old slots know of writes goes with them.
                Collect();
                lock (gate)
                {
                    if (!disposed)
                        Replace(wanted);
                }
            }
            finally
            {
                closed = false;
            }
        }
    }

    private static bool Matches(Slot slot, (ulong Start, ulong End, nint? Copy) wanted) =>
        slot.Address == wanted.Start && slot.Bytes == wanted.End - wanted.Start && slot.Copy == wanted.Copy is not null && (wanted.Copy is null || slot.Host == wanted.Copy);

    private void Replace(List<(ulong Start, ulong End, nint? Copy)> wanted)
    {
        foreach (Slot old in slots.ToArray())
            if (!wanted.Any(w => Matches(old, w)))
            {
                KvmMemorySlot none = new() { Slot = (uint)old.Number };
                KvmException.Check(KvmCalls.Control(machine, KvmIoctl.SetUserMemoryRegion, &none), "that memory goes");
                slots.Remove(old);
            }
        foreach ((ulong start, ulong end, nint? copy) in wanted)
            if (!slots.Any(s => Matches(s, (start, end, copy))))
            {
                Slot slot = Make(start, end, copy);
                KvmException.Check(Set(slot), "guest memory in pieces");
                slots.Add(slot);
            }
    }

    private Slot Make(ulong start, ulong end, nint? copy)
    {
        int number = 0;
        while (slots.Any(s => s.Number == number))
            number++;
        return new Slot { Number = number, Address = start, Bytes = end - start, Host = copy ?? (nint)(memory.HostBase + start), Copy = copy is not null };
    }

    /// <summary>A ring is full: its vCPU cannot go on. On that vCPU's thread.</summary>
    public void EmptyRings()
    {
        lock (gate)
        {
            if (!disposed)
                rings?.Collect(slots);
        }
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        lock (gate)
        {
            disposed = true;
            rings?.Dispose();
        }
        memory.WatchTightened -= StartLogging;
        memory.CollectWrites -= Collect;
    }

    // Gives a slot to the kernel, or changes whether it notes writes.
    private int Set(Slot slot)
    {
        if (logging && rings is null && !slot.Copy)
            slot.Bits = new ulong[checked((int)(((slot.Bytes >> 12) + 63) / 64))];
        // SAFETY: regions are mapped at their host address until the memory is disposed of, which outlives the machine; copies live longer than their slots.
        KvmMemorySlot request = new()
        {
            Slot = (uint)slot.Number,
            Flags = slot.Copy ? KvmMemorySlot.Readonly : logging ? KvmMemorySlot.LogDirtyPages : 0,
            GuestAddress = slot.Address,
            Size = slot.Bytes,
            HostAddress = (ulong)slot.Host,
        };
        return KvmCalls.Control(machine, KvmIoctl.SetUserMemoryRegion, &request);
    }

    // A watch has been set: from the return of this call on, each first write to a page leaves a bit. Bits of pages that are not watched
    // cost little and are ignored by the memory.
    private void StartLogging()
    {
        lock (gate)
        {
            if (disposed)
                return;
            if (!logging)
            {
                logging = true;
                foreach (Slot slot in slots)
                    if (!slot.Copy)
                        KvmException.Check(Set(slot), "a dirty log");
            }
        }
    }

    // Reading the bitmap also clears it and write-protects the pages again, in one step.
    private void Collect()
    {
        // Before the lock: a vCPU on its way out may want it.
        if (Volatile.Read(ref logging))
            rings?.Flush();
        lock (gate)
        {
            if (disposed || !logging)
                return;
            if (rings is not null)
            {
                rings.Collect(slots);
                return;
            }
            foreach (Slot slot in slots)
            {
                if (slot.Copy)
                    continue;
                ulong[] bits = slot.Bits;
                Array.Clear(bits);
                // SAFETY: the bitmap has a bit for each page of the slot, in whole words.
                fixed (ulong* pointer = bits)
                {
                    KvmDirtyLogRequest request = new() { Slot = (uint)slot.Number, Bitmap = (ulong)pointer };
                    KvmException.Check(KvmCalls.Control(machine, KvmIoctl.GetDirtyLog, &request), "its dirty pages");
                }
                for (int word = 0; word < bits.Length; word++)
                    for (ulong set = bits[word]; set != 0; set &= set - 1)
                    {
                        ulong page = (slot.Address >> 12) + ((ulong)word << 6) + ulong.TrailingZeroCount(set);
                        memory.NotifyWrite(page << 12, 4096);
                    }
            }
        }
    }
}
