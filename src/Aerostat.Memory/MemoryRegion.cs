namespace Aerostat.Memory;

/// <summary>One contiguous piece of guest RAM.</summary>
/// <param name="Base">First address; a multiple of 4096.</param>
/// <param name="Size">Bytes; a multiple of 4096, not 0.</param>
/// <param name="Name">For maps and errors.</param>
public sealed record MemoryRegion(GuestAddress Base, ulong Size, string Name)
{
    /// <summary>First address after the region.</summary>
    public ulong End => Base.Value + Size;
}
