using System.ComponentModel;
using System.Runtime.InteropServices;

namespace Aerostat.Platform;

/// <summary>
/// Which pages of this process' private memory the host holds, in memory or swapped out: proc_pid_pagemap(5), asked with PAGEMAP_SCAN (Linux 6.7)
/// where there is that, else read. A page of a mapped file counts when it was written, and has become the process' own. The page of zeros that a look at
/// untouched memory maps does not count (before Linux 6.7 it does, for it cannot be told from others). Any thread.
/// </summary>
public sealed unsafe partial class HostPages : IDisposable
{
    private const int ReadOnly = 0, CloseOnExec = 0x80000;
    // _IOWR('f', 16, struct pm_scan_arg), the same on x86 and ARM.
    private const nuint PageMapScan = 0xC060_6610;
    private const ulong IsFile = 1 << 2, IsPresent = 1 << 3, IsSwapped = 1 << 4, IsZeroPage = 1 << 5;
    // Of an entry of the file: in memory, swapped out, of a file or shared.
    private const ulong Present = 1UL << 63, Swapped = 1UL << 62, Shared = 1UL << 61;
    private const int EntriesAtOnce = 512, RunsAtOnce = 128;

    private readonly bool canScan;
    private int descriptor;

    /// <summary>Opens the page map. A host that does not show it is one that holds all pages: nothing is said to be free that is not.</summary>
    public HostPages()
        : this(scan: true)
    {
    }

    internal HostPages(bool scan)
    {
        descriptor = open("/proc/self/pagemap", ReadOnly | CloseOnExec);
        if (descriptor < 0)
            return;
        byte* here = (byte*)((nint)(&scan) & ~(nint)(HostMapping.PageSize - 1));
        Region region;
        canScan = scan && Scan(here, here + HostMapping.PageSize, &region, 1) >= 0;
    }

    /// <summary>Whether the host tells at all.</summary>
    public bool CanTell => descriptor >= 0;

    /// <summary>
    /// The first run of held pages in a range that starts and ends with a page; false: there is none. What happens to the pages meanwhile may be in the answer or not.
    /// </summary>
    public bool TryNextHeld(byte* from, byte* to, out byte* start, out byte* stop)
    {
        start = stop = to;
        if (from >= to)
            return false;
        if (canScan)
        {
            Region region;
            int count = Scan(from, to, &region, 1);
            if (count >= 0)
            {
                if (count == 0)
                    return false;
                start = (byte*)region.Start;
                stop = (byte*)region.End;
                return true;
            }
        }
        return ReadNextHeld(from, to, out start, out stop);
    }

    /// <summary>How much of a range the host holds, in bytes.</summary>
    public ulong CountHeld(byte* from, byte* to)
    {
        ulong bytes = 0;
        if (canScan)
        {
            Region* regions = stackalloc Region[RunsAtOnce];
            for (byte* at = from; at < to;)
            {
                int count = Scan(at, to, regions, RunsAtOnce);
                if (count < 0)
                    return CountSingly(from, to);
                for (int i = 0; i < count; i++)
                    bytes += regions[i].End - regions[i].Start;
                if (count < RunsAtOnce)
                    break;
                at = (byte*)regions[count - 1].End;
            }
            return bytes;
        }
        return CountSingly(from, to);
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        int fd = Interlocked.Exchange(ref descriptor, -1);
        if (fd >= 0)
            _ = close(fd);
    }

    private ulong CountSingly(byte* from, byte* to)
    {
        ulong bytes = 0;
        for (byte* at = from; ReadNextHeld(at, to, out byte* start, out byte* stop); at = stop)
            bytes += (ulong)(stop - start);
        return bytes;
    }

    private bool ReadNextHeld(byte* from, byte* to, out byte* start, out byte* stop)
    {
        ulong* entries = stackalloc ulong[EntriesAtOnce];
        start = null;
        // One first: most questions are about one page.
        int step = 1;
        for (byte* at = from; at < to; step = EntriesAtOnce)
        {
            int wanted = (int)Math.Min((ulong)(to - at) / HostMapping.PageSize, (ulong)step);
            nint read = pread(descriptor, entries, (nuint)wanted * sizeof(ulong), (nint)((ulong)at / HostMapping.PageSize * sizeof(ulong)));
            int count = (int)(read / sizeof(ulong));
            for (int i = 0; i < wanted; i++, at += HostMapping.PageSize)
            {
                bool held = i >= count || ((entries[i] & (Present | Swapped)) != 0 && (entries[i] & Shared) == 0);
                if (held && start == null)
                    start = at;
                else if (!held && start != null)
                {
                    stop = at;
                    return true;
                }
            }
        }
        stop = to;
        if (start != null)
            return true;
        start = to;
        return false;
    }

    // Runs of held pages; negative: the host does not do that.
    private int Scan(byte* from, byte* to, Region* regions, int most)
    {
        ScanArguments arguments = new()
        {
            Size = (ulong)sizeof(ScanArguments),
            Start = (ulong)from,
            End = (ulong)to,
            Regions = (ulong)regions,
            RegionCount = (ulong)most,
            Inverted = IsFile | IsZeroPage,
            All = IsFile | IsZeroPage,
            Any = IsPresent | IsSwapped,
        };
        return ioctl(descriptor, PageMapScan, &arguments);
    }

    // struct pm_scan_arg and struct page_region (linux/fs.h).
    private struct ScanArguments
    {
        public ulong Size, Flags, Start, End, WalkEnd, Regions, RegionCount, MostPages, Inverted, All, Any, Returned;
    }

    private struct Region
    {
        public ulong Start, End, Categories;
    }

    [LibraryImport("libc", StringMarshalling = StringMarshalling.Utf8)]
    private static partial int open(string path, int flags);

    [LibraryImport("libc")]
    private static partial int ioctl(int fd, nuint request, ScanArguments* arguments);

    [LibraryImport("libc")]
    private static partial nint pread(int fd, ulong* buffer, nuint bytes, nint offset);

    [LibraryImport("libc")]
    private static partial int close(int fd);
}
