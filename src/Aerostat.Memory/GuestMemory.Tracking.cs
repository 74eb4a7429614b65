using System.Runtime.CompilerServices;
using Aerostat.Platform;

namespace Aerostat.Memory;

/// <summary>Why writes to a page must take the slow path.</summary>
[Flags]
public enum PageWatch : byte
{
    /// <summary>Writes may go straight to memory.</summary>
    None = 0,
    /// <summary>Some processor holds decoded code from this page.</summary>
    Code = 1,
    /// <summary>The dirty log is armed and the page is still clean.</summary>
    Clean = 2,
}

/// <content>
/// Write watching. A processor may keep a fast path for writes to a page only while its watch byte is zero. Setting a bit
/// therefore takes two steps: set it here, then make every processor forget its fast write paths and wait until all have.
/// <para>
/// Code tracking: before a processor decodes bytes it calls <see cref="MarkCode"/> and, if that says the page is newly
/// watched, waits for the others; then it reads <see cref="CodeGeneration"/> and decodes. Every write to a watched page is
/// followed by <see cref="NotifyWrite"/>, which moves the generation on when a 64-byte chunk with code was hit. Decoded code
/// is valid while its page's generation is the one it was decoded under.
/// </para>
/// </content>
public sealed unsafe partial class GuestMemory
{
    private readonly Lock trackingLock = new();
    private byte* watch;
    private uint* generations;
    private ulong* codeChunks;
    private ulong pageCount;

    /// <summary>
    /// Raised after watch bits were set on pages that may be written to right now. Processors drop their fast write paths, everywhere,
    /// before they return from it. Not raised on a vCPU's own thread.
    /// </summary>
    public event Action? WatchTightened;

    /// <summary>Raises <see cref="WatchTightened"/>.</summary>
    internal void TightenWatch() => WatchTightened?.Invoke();

    /// <summary>Watch byte of each page (<see cref="PageWatch"/>), indexed by page frame number below <see cref="End"/>.</summary>
    public byte* Watch => watch;

    /// <summary>Code generation of each page, indexed by page frame number.</summary>
    public uint* CodeGeneration => generations;

    /// <summary>Marks bytes within one page as decoded. True: the page was not watched for code before.</summary>
    public bool MarkCode(ulong address, uint length)
    {
        ulong page = address >> 12;
        int first = (int)(address & 4095) >> 6, last = (int)((address & 4095) + length - 1) >> 6;
        ulong chunks = (ulong.MaxValue >> (63 - Math.Min(last, 63))) & (ulong.MaxValue << first);
        if ((watch[page] & (byte)PageWatch.Code) != 0 && (Volatile.Read(ref codeChunks[page]) & chunks) == chunks)
            return false;
        lock (trackingLock)
        {
            bool isNew = (watch[page] & (byte)PageWatch.Code) == 0;
            codeChunks[page] |= chunks;
            Volatile.Write(ref watch[page], (byte)(watch[page] | (byte)PageWatch.Code));
            return isNew;
        }
    }

    /// <summary>
    /// To be called after a write to RAM that did not go through a processor's fast path. True: decoded code was hit.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public bool NotifyWrite(ulong address, ulong length)
    {
        if (length == 0)
            return false;
        bool hit = false;
        ulong lastPage = (address + length - 1) >> 12;
        for (ulong page = address >> 12; page <= lastPage; page++)
            if (watch[page] != 0)
                hit |= NotifyWatched(page, Math.Max(address, page << 12), Math.Min(address + length, (page + 1) << 12));
        return hit;
    }

    private bool NotifyWatched(ulong page, ulong start, ulong stop)
    {
        lock (trackingLock)
        {
            byte flags = watch[page];
            if ((flags & (byte)PageWatch.Clean) != 0)
                flags = MarkDirty(page, flags);
            bool hit = false;
            if ((flags & (byte)PageWatch.Code) != 0)
            {
                int first = (int)(start & 4095) >> 6, last = (int)((stop - 1) & 4095) >> 6;
                ulong chunks = (ulong.MaxValue >> (63 - last)) & (ulong.MaxValue << first);
                if ((codeChunks[page] & chunks) != 0)
                {
                    hit = true;
                    codeChunks[page] = 0;
                    Volatile.Write(ref generations[page], generations[page] + 1);
                    flags &= unchecked((byte)~(byte)PageWatch.Code);
                }
            }
            Volatile.Write(ref watch[page], flags);
            return hit;
        }
    }

    // Placeholder for the dirty log: sets the page's dirty bit and clears Clean.
    private byte MarkDirty(ulong page, byte flags) => (byte)(flags & ~(byte)PageWatch.Clean);

    private void InitializeTracking()
    {
        pageCount = end >> 12;
        watch = HostMapping.AllocateLazy(pageCount);
        generations = (uint*)HostMapping.AllocateLazy(pageCount * sizeof(uint));
        codeChunks = (ulong*)HostMapping.AllocateLazy(pageCount * sizeof(ulong));
    }

    private void DisposeTracking()
    {
        HostMapping.Unmap(watch, pageCount);
        HostMapping.Unmap((byte*)generations, pageCount * sizeof(uint));
        HostMapping.Unmap((byte*)codeChunks, pageCount * sizeof(ulong));
    }
}
