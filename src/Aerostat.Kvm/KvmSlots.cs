using Aerostat.Memory;

namespace Aerostat.Kvm;

/// <summary>
/// Guest memory as KVM's memory slots, one for each region, and the guest's writes as far as anybody asks for them: KVM keeps a bitmap of
/// dirty pages for each slot, or a ring for each vCPU, once <see cref="GuestMemory"/> has armed a watch, and what is in it is told to the memory before the memory
/// answers questions about writes.
/// </summary>
internal sealed unsafe class KvmSlots : IDisposable
{
    private readonly GuestMemory memory;
    private readonly int machine;
    private readonly Lock gate = new();
    private readonly ulong[][] bitmaps;
    // For machines so big that to look through bitmaps costs more than rings.
    private const ulong RingFrom = 16UL << 30;

    private readonly KvmDirtyRings? rings;
    private bool logging, disposed;

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
        bitmaps = new ulong[memory.Regions.Count][];
        for (int i = 0; i < memory.Regions.Count; i++)
            KvmException.Check(SetSlot(i, 0), $"guest memory '{memory.Regions[i].Name}'");
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
    }

    /// <summary>A ring is full: its vCPU cannot go on. On that vCPU's thread.</summary>
    public void EmptyRings()
    {
        lock (gate)
        {
            if (!disposed)
                rings?.Collect();
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

    private int SetSlot(int index, uint flags)
    {
        MemoryRegion region = memory.Regions[index];
        // SAFETY: the region is mapped at this host address until the memory is disposed of, which outlives the machine.
        KvmMemorySlot slot = new()
        {
            Slot = (uint)index,
            Flags = flags,
            GuestAddress = region.Base.Value,
            Size = region.Size,
            HostAddress = (ulong)(memory.HostBase + region.Base.Value),
        };
        return KvmCalls.Control(machine, KvmIoctl.SetUserMemoryRegion, &slot);
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
                for (int i = 0; i < bitmaps.Length; i++)
                {
                    if (rings is null)
                        bitmaps[i] = new ulong[checked((int)(((memory.Regions[i].Size >> 12) + 63) / 64))];
                    KvmException.Check(SetSlot(i, KvmMemorySlot.LogDirtyPages), "a dirty log");
                }
                logging = true;
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
                rings.Collect();
                return;
            }
            for (int i = 0; i < bitmaps.Length; i++)
            {
                ulong[] bits = bitmaps[i];
                Array.Clear(bits);
                // SAFETY: the bitmap has a bit for each page of the slot, in whole words.
                fixed (ulong* pointer = bits)
                {
                    KvmDirtyLogRequest request = new() { Slot = (uint)i, Bitmap = (ulong)pointer };
                    KvmException.Check(KvmCalls.Control(machine, KvmIoctl.GetDirtyLog, &request), "its dirty pages");
                }
                for (int word = 0; word < bits.Length; word++)
                    for (ulong set = bits[word]; set != 0; set &= set - 1)
                    {
                        ulong page = memory.Regions[i].Base.Page + ((ulong)word << 6) + ulong.TrailingZeroCount(set);
                        memory.NotifyWrite(page << 12, 4096);
                    }
            }
        }
    }
}
