using Aerostat.Platform;

namespace Aerostat.Storage;

/// <summary>Sees what is done to a file, in order: so a test can tell what is in it wherever that ends.</summary>
internal interface IFileObserver
{
    void Written(ulong offset, ReadOnlySpan<byte> bytes);

    void Punched(ulong offset, ulong length);

    void Synced();
}

/// <summary>The file of a qcow2 image. It grows by being written to, and reads as zeros behind its end.</summary>
internal sealed class Qcow2File(DiskFile file, IFileObserver? observer = null) : IDisposable
{
    private const int BufferBatch = 64;

    private ulong _length = file.Length;

    /// <summary>Bytes.</summary>
    public ulong Length => Volatile.Read(ref _length);

    public bool Read(ulong offset, Span<byte> bytes)
    {
        ulong length = Length;
        int inFile = offset >= length ? 0 : (int)Math.Min((ulong)bytes.Length, length - offset);
        bytes[inFile..].Clear();
        return file.Read(offset, bytes[..inFile]) == 0;
    }

    public bool Write(ulong offset, ReadOnlySpan<byte> bytes)
    {
        observer?.Written(offset, bytes);
        return file.Write(offset, bytes) == 0 && Extend(offset + (ulong)bytes.Length);
    }

    /// <summary>Reads into a part of the buffers.</summary>
    public bool Read(ulong offset, BufferRange buffers)
    {
        ulong length = Length, inFile = offset >= length ? 0 : Math.Min(buffers.Length, length - offset);
        if (inFile < buffers.Length)
            buffers.Part(inFile, buffers.Length - inFile).Clear();
        return Transfer(offset, buffers.Part(0, inFile), write: false);
    }

    /// <summary>Writes a part of the buffers.</summary>
    public bool Write(ulong offset, BufferRange buffers)
    {
        if (observer is not null)
        {
            byte[] copy = new byte[buffers.Length];
            buffers.CopyTo(copy);
            observer.Written(offset, copy);
        }
        return Transfer(offset, buffers, write: true) && Extend(offset + buffers.Length);
    }

    public bool Sync()
    {
        if (file.Flush() != 0)
            return false;
        observer?.Synced();
        return true;
    }

    /// <summary>Gives space back if the host can.</summary>
    public void Punch(ulong offset, ulong length)
    {
        observer?.Punched(offset, length);
        _ = file.PunchHole(offset, length);
    }

    public void Dispose() => file.Dispose();

    private bool Transfer(ulong offset, BufferRange buffers, bool write)
    {
        Span<HostBuffer> batch = stackalloc HostBuffer[BufferBatch];
        while (buffers.Length > 0)
        {
            int count = buffers.Fill(batch, out ulong covered);
            if ((write ? file.Write(offset, batch[..count]) : file.Read(offset, batch[..count])) != 0)
                return false;
            offset += covered;
            buffers = buffers.Part(covered, buffers.Length - covered);
        }
        return true;
    }

    // Several writers at once can lengthen the file, each in its own clusters.
    private bool Extend(ulong end)
    {
        ulong length = Length;
        while (end > length)
        {
            ulong seen = Interlocked.CompareExchange(ref _length, end, length);
            if (seen == length)
                break;
            length = seen;
        }
        return true;
    }
}
