using Aerostat.Platform;

namespace Aerostat.Storage;

/// <summary>A range of the bytes that a list of buffers is, one after the other.</summary>
internal readonly ref struct BufferRange
{
    private readonly ReadOnlySpan<HostBuffer> _buffers;
    private readonly ulong _skip;

    /// <summary>All of the buffers.</summary>
    public BufferRange(ReadOnlySpan<HostBuffer> buffers)
        : this(buffers, 0, Total(buffers))
    {
    }

    private BufferRange(ReadOnlySpan<HostBuffer> buffers, ulong skip, ulong length)
    {
        while (!buffers.IsEmpty && skip >= buffers[0].Length)
        {
            skip -= buffers[0].Length;
            buffers = buffers[1..];
        }
        _buffers = buffers;
        _skip = skip;
        Length = length;
    }

    /// <summary>Bytes.</summary>
    public ulong Length { get; }

    /// <summary>A range within this one.</summary>
    public BufferRange Part(ulong offset, ulong length) => new(_buffers, _skip + offset, length);

    /// <summary>Lists the buffers of the range, as many as there is room for; answers how many.</summary>
    public int Fill(Span<HostBuffer> into, out ulong covered)
    {
        int count = 0;
        ulong skip = _skip;
        covered = 0;
        foreach (HostBuffer buffer in _buffers)
        {
            if (covered == Length || count == into.Length)
                break;
            ulong part = Math.Min(buffer.Length - skip, Length - covered);
            if (part > 0)
                into[count++] = new HostBuffer(buffer.Address + (nint)skip, (nuint)part);
            covered += part;
            skip = 0;
        }
        return count;
    }

    /// <summary>Zeros.</summary>
    public void Clear() => Visit([], static (memory, _) => memory.Clear());

    /// <summary>Copies bytes, as many as the range has, into it.</summary>
    public void CopyFrom(ReadOnlySpan<byte> bytes) => Visit(bytes, static (memory, bytes) => bytes[..memory.Length].CopyTo(memory));

    /// <summary>Copies the range's bytes out.</summary>
    public void CopyTo(Span<byte> bytes)
    {
        BufferRange rest = this;
        while (rest.Length > 0)
        {
            Span<byte> memory = rest.First();
            memory.CopyTo(bytes);
            bytes = bytes[memory.Length..];
            rest = rest.Part((ulong)memory.Length, rest.Length - (ulong)memory.Length);
        }
    }

    private static ulong Total(ReadOnlySpan<HostBuffer> buffers)
    {
        ulong length = 0;
        foreach (HostBuffer buffer in buffers)
            length += buffer.Length;
        return length;
    }

    private delegate void Visitor(Span<byte> memory, ReadOnlySpan<byte> bytes);

    private void Visit(ReadOnlySpan<byte> bytes, Visitor visitor)
    {
        BufferRange rest = this;
        while (rest.Length > 0)
        {
            Span<byte> memory = rest.First();
            visitor(memory, bytes);
            if (!bytes.IsEmpty)
                bytes = bytes[memory.Length..];
            rest = rest.Part((ulong)memory.Length, rest.Length - (ulong)memory.Length);
        }
    }

    // The first piece, at most a gigabyte of it.
    private Span<byte> First()
    {
        HostBuffer buffer = _buffers[0];
        ulong part = Math.Min(Math.Min(buffer.Length - _skip, Length), 1 << 30);
        return new HostBuffer(buffer.Address + (nint)_skip, (nuint)part).AsSpan();
    }
}
