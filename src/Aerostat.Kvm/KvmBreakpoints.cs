using System.Runtime.InteropServices;
using Aerostat.Memory;
using Aerostat.Processors;

namespace Aerostat.Kvm;

/// <summary>
/// Breakpoints by address without a change to guest memory. A page that has some is shown to the guest as a copy, with INT3 where they are, in
/// a memory slot of its own that the guest cannot write: its writes come out as if the page were a device's, go to the memory, and from there into
/// the copy, as do those of devices. So code that is loaded or patched later loses no breakpoint, and nobody but the guest sees one.
/// </summary>
/// <remarks>The guest itself would, if it read the page as data. Any thread.</remarks>
internal sealed unsafe class KvmBreakpoints : IDisposable
{
    // Each takes a memory slot, and splits another.
    private const int MostPages = 1024;
    private const byte Int3 = 0xCC;

    private readonly GuestMemory memory;
    private readonly KvmSlots slots;
    private readonly Lock gate = new();
    private readonly Dictionary<ulong, Page> pages = [];
    private bool disposed;

    // SAFETY: the copy has 4096 bytes and lives from when its page gets its first breakpoint to after its slot has gone.
    private sealed class Page(nint copy)
    {
        public byte* Copy => (byte*)copy;

        // How many vCPUs want a breakpoint at an offset, and how many are stepping over it.
        public Dictionary<int, (int Wanted, int Lifted)> Points { get; } = [];
    }

    public KvmBreakpoints(GuestMemory memory, KvmSlots slots)
    {
        this.memory = memory;
        this.slots = slots;
        memory.CodeChanged += Renew;
    }

    /// <summary>Adds breakpoints at physical addresses and takes others away. Not by a vCPU's thread inside KVM_RUN, which there cannot be.</summary>
    /// <exception cref="GuestDebugException">They would be on too many pages; nothing has changed.</exception>
    public void Change(IReadOnlyCollection<ulong> added, IReadOnlyCollection<ulong> removed)
    {
        if (added.Count == 0 && removed.Count == 0)
            return;
        lock (gate)
        {
            if (disposed)
                return;
            int fresh = added.Select(a => a >> 12).Distinct().Count(p => !pages.ContainsKey(p));
            if (pages.Count + fresh > MostPages)
                throw new GuestDebugException(GuestDebugError.TooMany, $"code breakpoints on {pages.Count + fresh} pages; on KVM there can be 0 to {MostPages}");
            foreach (ulong address in added)
            {
                if (!pages.TryGetValue(address >> 12, out Page? page))
                    pages.Add(address >> 12, page = new Page((nint)NativeMemory.AlignedAlloc(4096, 4096)));
                Count(page, address, 1, 0);
            }
            List<Page> unused = [];
            foreach (ulong address in removed)
                if (pages.TryGetValue(address >> 12, out Page? page))
                {
                    Count(page, address, -1, 0);
                    if (page.Points.Count == 0)
                    {
                        pages.Remove(address >> 12);
                        unused.Add(page);
                    }
                }
            foreach ((ulong number, Page page) in pages)
            {
                memory.MarkCode(number << 12, 4096);
                Compose(number, page);
            }
            slots.Show(pages.ToDictionary(p => p.Key, p => (nint)p.Value.Copy));
            foreach (Page page in unused)
                NativeMemory.AlignedFree(page.Copy);
        }
    }

    /// <summary>Whether there is one at a physical address.</summary>
    public bool IsPlanted(ulong physical)
    {
        lock (gate)
            return pages.TryGetValue(physical >> 12, out Page? page) && page.Points.ContainsKey((int)(physical & 4095));
    }

    /// <summary>Takes one away for the time of one instruction, or puts it back. Other vCPUs do not meet it either, so they had better be elsewhere.</summary>
    public void Lift(ulong physical, bool lifted)
    {
        lock (gate)
        {
            if (!pages.TryGetValue(physical >> 12, out Page? page) || !page.Points.ContainsKey((int)(physical & 4095)))
                return;
            Count(page, physical, 0, lifted ? 1 : -1);
            Compose(physical >> 12, page);
        }
    }

    private static void Count(Page page, ulong address, int wanted, int lifted)
    {
        int offset = (int)(address & 4095);
        (int w, int l) = page.Points.GetValueOrDefault(offset);
        if (w + wanted <= 0)
            page.Points.Remove(offset);
        else
            page.Points[offset] = (w + wanted, Math.Max(0, l + lifted));
    }

    // Byte by byte, only what differs: guests may be executing it.
    private void Compose(ulong number, Page page)
    {
        byte* real = memory.TryGetPage(number << 12);
        if (real == null)
            return;
        for (int i = 0; i < 4096; i++)
        {
            byte wanted = page.Points.Count != 0 && page.Points.TryGetValue(i, out (int Wanted, int Lifted) point) && point.Lifted == 0 ? Int3 : real[i];
            if (page.Copy[i] != wanted)
                Volatile.Write(ref page.Copy[i], wanted);
        }
    }

    // The memory has been written. The mark that told of it has gone with that.
    private void Renew(ulong number)
    {
        lock (gate)
        {
            if (!pages.TryGetValue(number, out Page? page))
                return;
            memory.MarkCode(number << 12, 4096);
            Compose(number, page);
        }
    }

    /// <summary>After the slots have gone.</summary>
    public void Dispose()
    {
        memory.CodeChanged -= Renew;
        lock (gate)
        {
            disposed = true;
            foreach (Page page in pages.Values)
                NativeMemory.AlignedFree(page.Copy);
            pages.Clear();
        }
    }
}
