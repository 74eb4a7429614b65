using Aerostat.Platform;
using Aerostat.Storage;

namespace Aerostat.Virtio.Tests;

/// <summary>A disk in memory that can be told to fail.</summary>
internal sealed class MemoryDisk(int length, bool readOnly = false) : IDisk
{
    private readonly Lock _lock = new();

    public byte[] Bytes { get; } = new byte[length];

    public bool Fails { get; set; }

    public int Flushes { get; private set; }

    public List<(string What, ulong Offset, ulong Length)> Cleared { get; } = [];

    /// <summary>Runs at the start of each transfer.</summary>
    public Action? Midway { get; set; }

    public ulong Length => (ulong)Bytes.Length;

    public bool ReadOnly => readOnly;

    public DiskResult Read(ulong offset, ReadOnlySpan<HostBuffer> buffers)
    {
        Midway?.Invoke();
        if (Fails)
            return DiskResult.Failed;
        lock (_lock)
        {
            foreach (HostBuffer buffer in buffers)
            {
                Bytes.AsSpan((int)offset, (int)buffer.Length).CopyTo(buffer.AsSpan());
                offset += buffer.Length;
            }
        }
        return DiskResult.Done;
    }

    public DiskResult Write(ulong offset, ReadOnlySpan<HostBuffer> buffers)
    {
        Midway?.Invoke();
        if (Fails)
            return DiskResult.Failed;
        lock (_lock)
        {
            foreach (HostBuffer buffer in buffers)
            {
                buffer.AsSpan().CopyTo(Bytes.AsSpan((int)offset));
                offset += buffer.Length;
            }
        }
        return DiskResult.Done;
    }

    public DiskResult Flush()
    {
        lock (_lock)
            Flushes++;
        return Fails ? DiskResult.Failed : DiskResult.Done;
    }

    public DiskResult Discard(ulong offset, ulong length) => Clear("discard", offset, length);

    public DiskResult WriteZeroes(ulong offset, ulong length, bool mayUnmap) => Clear(mayUnmap ? "zero-unmap" : "zero", offset, length);

    public void Dispose()
    {
    }

    private DiskResult Clear(string what, ulong offset, ulong length)
    {
        if (Fails)
            return DiskResult.Failed;
        lock (_lock)
        {
            Cleared.Add((what, offset, length));
            Bytes.AsSpan((int)offset, (int)length).Clear();
        }
        return DiskResult.Done;
    }
}
