using Aerostat.Memory;

namespace Aerostat.Kvm;

/// <summary>
/// Guest memory as KVM's memory slots, one for each region, and the guest's writes as far as anybody asks for them: KVM keeps a bitmap of
/// dirty pages for each slot once <see cref="GuestMemory"/> has armed a watch, and what is in it is told to the memory before the memory
/// answers questions about writes.
/// </summary>
internal sealed unsafe class KvmSlots : IDisposable
{
    private readonly GuestMemory memory;
    private readonly int machine;
    private readonly Lock gate = new();
    private readonly ulong[][] bitmaps;
    private bool logging, disposed;

    /// <summary>Gives the regions to the kernel.</summary>
    /// <exception cref="KvmException">It does not take them.</exception>
    public KvmSlots(GuestMemory memory, int machine)
    {
        this.memory = memory;
        this.machine = machine;
        bitmaps = new ulong[memory.Regions.Count][];
        for (int i = 0; i < memory.Regions.Count; i++)
            KvmException.Check(SetSlot(i, 0), $"guest memory '{memory.Regions[i].Name}'");
        memory.WatchTightened += StartLogging;
        memory.CollectWrites += Collect;
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        lock (gate)
            disposed = true;
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
        lock (gate)
        {
            if (disposed || !logging)
                return;
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
