using System.IO.Compression;

namespace Aerostat.Storage;

/// <summary>Reads compressed clusters, and remembers the last one. Any thread may.</summary>
internal sealed class Qcow2Decompressor(Qcow2File file, Qcow2Header header)
{
    private readonly Lock _lock = new();
    private ulong _held;
    private byte[]? _packed, _plain;

    /// <summary>Copies a part of a cluster; false: it cannot be read, or is damaged.</summary>
    public bool Read(Qcow2Entry entry, int offset, BufferRange buffers)
    {
        lock (_lock)
        {
            _plain ??= new byte[header.ClusterSize];
            if (_held != entry.Value)
            {
                _held = 0;
                if (!Fetch(entry))
                    return false;
                _held = entry.Value;
            }
            buffers.CopyFrom(_plain.AsSpan(offset, (int)buffers.Length));
            return true;
        }
    }

    private bool Fetch(Qcow2Entry entry)
    {
        (ulong offset, ulong end) = entry.CompressedRange(header);
        if (offset >= file.Length)
            return false;
        // The number of sectors is at most that of two clusters.
        int length = (int)(Math.Min(end, file.Length) - offset);
        if (_packed is null || _packed.Length < length)
            _packed = new byte[Math.Max(length, header.ClusterSize)];
        if (!file.Read(offset, _packed.AsSpan(0, length)))
            return false;
        return header.Compression == Qcow2Compression.Zstd ? ZstdDecoder.TryDecode(_packed.AsSpan(0, length), _plain) : Inflate(length);
    }

    // What is behind the end of the compressed data is somebody else's.
    private bool Inflate(int length)
    {
        try
        {
            using MemoryStream source = new(_packed!, 0, length, writable: false);
            using DeflateStream inflated = new(source, CompressionMode.Decompress);
            return inflated.ReadAtLeast(_plain!, _plain!.Length, throwOnEndOfStream: false) == _plain.Length;
        }
        catch (InvalidDataException)
        {
            return false;
        }
    }
}
