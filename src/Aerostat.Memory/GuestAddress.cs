namespace Aerostat.Memory;

/// <summary>A guest physical address (GPA).</summary>
/// <param name="Value">Byte address, 0..2^52-1.</param>
public readonly record struct GuestAddress(ulong Value) : IComparable<GuestAddress>
{
    /// <summary>Bytes in a page.</summary>
    public const int PageSize = 4096;

    /// <summary>Page frame number.</summary>
    public ulong Page => Value >> 12;

    /// <summary>Address <paramref name="bytes"/> further on; wraps at 2^64, where no memory is.</summary>
    public static GuestAddress operator +(GuestAddress address, ulong bytes) => new(address.Value + bytes);

    /// <inheritdoc/>
    public int CompareTo(GuestAddress other) => Value.CompareTo(other.Value);

    /// <summary>Hexadecimal.</summary>
    public override string ToString() => $"0x{Value:x}";
}
