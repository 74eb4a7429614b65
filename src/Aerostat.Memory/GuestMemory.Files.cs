using System.ComponentModel;
using Aerostat.Platform;
using Microsoft.Win32.SafeHandles;

namespace Aerostat.Memory;

/// <content>
/// Memory that starts as the contents of a file, for guests that go on from a snapshot. The file's pages are mapped privately in the place of others:
/// nothing is read before somebody looks, what the guest writes stays here, and machines that go on from the same file share
/// what they only read. A page that is given back leaves the file, and is from then on a page like all others.
/// </content>
public sealed unsafe partial class GuestMemory
{
    // The host limits mappings (vm.max_map_count, 65530 by default). Each run of file pages is a mapping and ends one before it.
    private const int MaxFileRuns = 16384;

    private ulong* filePages;
    private int fileRuns;

    /// <summary>How many more pieces of files can be mapped.</summary>
    public int FileRunsLeft => MaxFileRuns - Volatile.Read(ref fileRuns);

    /// <summary>
    /// Makes a range show a part of a file. No processor or device uses the range yet. The file must keep its contents and length as long as
    /// this memory lives: a file that gets shorter ends the process on the next access (mmap(2)).
    /// </summary>
    /// <exception cref="ArgumentException">Unaligned, not all RAM, or part of it shows a file already.</exception>
    /// <exception cref="Win32Exception">The host refuses.</exception>
    public void MapFile(SafeFileHandle file, long fileOffset, GuestAddress address, ulong length)
    {
        ArgumentNullException.ThrowIfNull(file);
        if (length == 0 || ((address.Value | length | (ulong)fileOffset) & 4095) != 0 || fileOffset < 0)
            throw new ArgumentException($"0x{length:x} bytes at {address} from 0x{fileOffset:x} of a file are not whole pages", nameof(length));
        if (!Contains(address.Value, length))
            throw OutOfRange(address, length);
        lock (discardLock)
        {
            if (IsSet(filePages, address.Page) || EndOfRun(filePages, address.Page, address.Page + (length >> 12), false) != address.Page + (length >> 12))
                throw new ArgumentException($"part of 0x{length:x} bytes at {address} shows a file already", nameof(address));
            if (fileRuns >= MaxFileRuns)
                throw new Win32Exception(12, $"guest memory is made of {MaxFileRuns} pieces of files already");
            bool added = false;
            Claim(address.Value, length);
            try
            {
                file.DangerousAddRef(ref added);
                HostMapping.MapPrivateAt(HostBase + address.Value, length, (int)file.DangerousGetHandle(), fileOffset);
            }
            finally
            {
                if (added)
                    file.DangerousRelease();
            }
            Shield(address.Value, length);
            fileRuns++;
            lock (trackingLock)
            {
                SetBits(filePages, address.Page, length >> 12, true);
                SetBits(discardedPages, address.Page, length >> 12, false);
            }
        }
        NotifyHostWrite(address.Value, length);
    }

    // Discard lock held; the range is page-aligned RAM of one extent. Puts fresh memory where a file's pages are.
    private bool DropFilePages(in Extent e, ulong address, ulong length)
    {
        for (ulong page = address >> 12, last = (address + length) >> 12; page < last;)
        {
            page = EndOfRun(filePages, page, last, false);
            if (page == last)
                break;
            ulong stop = EndOfRun(filePages, page, last, true);
            // Taking pages out of the middle of a run makes two of it.
            int change = (page > e.Start >> 12 && IsSet(filePages, page - 1) ? 1 : 0) + (stop < e.End >> 12 && IsSet(filePages, stop) ? 1 : 0) - 1;
            if (change > 0 && fileRuns >= MaxFileRuns)
                return false;
            try
            {
                MapFresh(page << 12, (stop - page) << 12);
            }
            catch (Win32Exception)
            {
                return false;
            }
            fileRuns = Math.Max(fileRuns + change, 0);
            lock (trackingLock)
                SetBits(filePages, page, stop - page, false);
            page = stop;
        }
        return true;
    }
}
