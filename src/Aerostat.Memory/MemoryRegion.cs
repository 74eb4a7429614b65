namespace Aerostat.Memory;

/// <summary>One contiguous piece of guest RAM.</summary>
/// <param name="Base">First address; a multiple of 4096.</param>
/// <param name="Size">Bytes; a multiple of 4096, not 0.</param>
/// <param name="Name">For maps and errors.</param>
public sealed record MemoryRegion(GuestAddress Base, ulong Size, string Name)
{
    /// <summary>The guest is not told of it at its start; it can be added while it runs.</summary>
    public bool IsSpare { get; init; }

    /// <summary>First address after the region.</summary>
    public ulong End => Base.Value + Size;
}
