using System.Text;

namespace Aerostat.Memory;

/// <content>Bulk transfers. All are bounds-checked, keep the write tracking true and may be called from any thread.</content>
public sealed unsafe partial class GuestMemory
{
    // From this size on, whole pages are zeroed by giving them back to the host.
    private const ulong PunchThreshold = 64 << 10;
    private const int TransferChunk = 1 << 20;

    /// <summary>Sets every byte of a range; false, with nothing changed, when any byte is not RAM.</summary>
    public bool TryFill(GuestAddress address, ulong length, byte value)
    {
        if (!Contains(address.Value, length))
            return false;
        FillHost(address.Value, length, value);
        NotifyHostWrite(address.Value, length);
        return true;
    }

    /// <summary>
    /// Zeroes a range; false, with nothing changed, when any byte is not RAM. Whole pages of a long range are given back to
    /// the host, except those that are pinned.
    /// </summary>
    public bool TryZero(GuestAddress address, ulong length)
    {
        if (!Contains(address.Value, length))
            return false;
        ulong start = address.Value, stop = start + length;
        ulong first = (start + 4095) & ~4095UL, last = stop & ~4095UL;
        if (length >= PunchThreshold && TryPunch(first, last - first))
        {
            FillHost(start, first - start, 0);
            FillHost(last, stop - last, 0);
        }
        else
            FillHost(start, length, 0);
        NotifyHostWrite(start, length);
        return true;
    }

    /// <summary>Copies within guest memory, ranges may overlap; false, with nothing changed, when any byte is not RAM.</summary>
    public bool TryCopy(GuestAddress source, GuestAddress destination, ulong length)
    {
        if (!Contains(source.Value, length) || !Contains(destination.Value, length))
            return false;
        Claim(destination.Value, length);
        // SAFETY: both ranges were just checked to be mapped RAM.
        Buffer.MemoryCopy(HostBase + source.Value, HostBase + destination.Value, length, length);
        NotifyHostWrite(destination.Value, length);
        return true;
    }

    /// <summary>
    /// Reads a stream straight into guest memory until its end or <paramref name="length"/> bytes, and answers how many came.
    /// (A file stream reads into the mapping itself, without a copy.)
    /// </summary>
    /// <exception cref="ArgumentOutOfRangeException">Not all of the range is RAM; nothing was read.</exception>
    /// <exception cref="IOException">The stream failed; what came before it is in memory.</exception>
    public ulong ReadFrom(Stream stream, GuestAddress address, ulong length)
    {
        ArgumentNullException.ThrowIfNull(stream);
        if (!Contains(address.Value, length))
            throw OutOfRange(address, length);
        ulong done = 0;
        Claim(address.Value, length);
        try
        {
            while (done < length)
            {
                // SAFETY: inside the range that was just checked.
                int count = stream.Read(new Span<byte>(HostBase + address.Value + done, (int)Math.Min(length - done, TransferChunk)));
                if (count <= 0)
                    break;
                done += (uint)count;
            }
        }
        finally
        {
            // The failed read may have written part of a chunk.
            NotifyHostWrite(address.Value, Math.Min(length, done + TransferChunk));
        }
        return done;
    }

    /// <summary>Writes a range to a stream.</summary>
    /// <exception cref="ArgumentOutOfRangeException">Not all of the range is RAM; nothing was written.</exception>
    public void WriteTo(Stream stream, GuestAddress address, ulong length)
    {
        ArgumentNullException.ThrowIfNull(stream);
        if (!Contains(address.Value, length))
            throw OutOfRange(address, length);
        for (ulong done = 0; done < length;)
        {
            int count = (int)Math.Min(length - done, TransferChunk);
            // SAFETY: inside the range that was just checked.
            stream.Write(new ReadOnlySpan<byte>(HostBase + address.Value + done, count));
            done += (uint)count;
        }
    }

    /// <summary>
    /// Reads a string that ends with a zero byte, as UTF-8 with replacement characters for what is not. Null: there is no zero
    /// byte within <paramref name="maximum"/> bytes of RAM.
    /// </summary>
    public string? TryReadString(GuestAddress address, int maximum)
    {
        // A private copy first: the guest could take the terminator away between looking for it and reading.
        using MemoryStream copy = new();
        Span<byte> chunk = stackalloc byte[256];
        ulong next = address.Value;
        for (int left = maximum; left > 0;)
        {
            // To the end of the page at most, so that a string just before a hole can be read.
            int size = (int)Math.Min((ulong)Math.Min(left, chunk.Length), 4096 - (next & 4095));
            if (!TryRead(new GuestAddress(next), chunk[..size]))
                return null;
            int zero = chunk[..size].IndexOf((byte)0);
            copy.Write(chunk[..(zero < 0 ? size : zero)]);
            if (zero >= 0)
                return Encoding.UTF8.GetString(copy.GetBuffer(), 0, (int)copy.Length);
            next += (uint)size;
            left -= size;
        }
        return null;
    }

    private void FillHost(ulong address, ulong length, byte value)
    {
        Claim(address, length);
        for (ulong done = 0; done < length;)
        {
            int count = (int)Math.Min(length - done, 1 << 30);
            // SAFETY: the caller has checked that the range is mapped RAM.
            new Span<byte>(HostBase + address + done, count).Fill(value);
            done += (uint)count;
        }
    }
}
