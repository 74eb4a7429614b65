namespace Aerostat.Storage;

/// <summary>What a second-level entry says of a cluster.</summary>
internal enum Qcow2Kind
{
    /// <summary>The backing file's contents, or zeros.</summary>
    Absent,
    Zero,
    Data,
    Compressed,
    /// <summary>The entry is not a possible one.</summary>
    Damaged,
}

/// <summary>A second-level entry (docs/interop/qcow2, "Cluster mapping").</summary>
/// <param name="Value">The 64 bits.</param>
internal readonly record struct Qcow2Entry(ulong Value)
{
    public const ulong Copied = 1UL << 63, CompressedFlag = 1UL << 62, ZeroFlag = 1;
    public const ulong OffsetMask = 0x00FF_FFFF_FFFF_FE00;

    /// <summary>The cluster's place in the file, also of one that reads as zeros; 0: none.</summary>
    public ulong Host => (Value & CompressedFlag) != 0 ? 0 : Value & OffsetMask;

    /// <summary>The place is this cluster's alone.</summary>
    public bool IsOwn => (Value & Copied) != 0 && Host != 0;

    public Qcow2Kind KindIn(Qcow2Header header)
    {
        if ((Value & CompressedFlag) != 0)
            return Qcow2Kind.Compressed;
        if ((Host & ((ulong)header.ClusterSize - 1)) != 0)
            return Qcow2Kind.Damaged;
        if ((Value & ZeroFlag) != 0 && header.Version >= 3)
            return Qcow2Kind.Zero;
        return Host == 0 ? Qcow2Kind.Absent : Qcow2Kind.Data;
    }

    /// <summary>Where a compressed cluster's bytes are, in whole sectors.</summary>
    public (ulong Offset, ulong End) CompressedRange(Qcow2Header header)
    {
        int x = 62 - (header.ClusterBits - 8);
        ulong offset = Value & ((1UL << x) - 1) & ((1UL << 56) - 1);
        ulong more = (Value & ~(Copied | CompressedFlag)) >> x;
        return (offset, (offset & ~511UL) + (more + 1) * 512);
    }
}
