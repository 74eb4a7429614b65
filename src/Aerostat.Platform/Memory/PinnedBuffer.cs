using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace Aerostat.Platform;

/// <summary>Bytes that stay where they are, for transfers to and from <see cref="HostBuffer"/>s. They live as long as this is reachable.</summary>
/// <param name="length">Bytes.</param>
public sealed class PinnedBuffer(int length)
{
    private readonly byte[] bytes = GC.AllocateUninitializedArray<byte>(length, pinned: true);

    /// <summary>The bytes.</summary>
    public Span<byte> Span => bytes;

    /// <summary>The bytes.</summary>
    public Memory<byte> Memory => bytes;

    /// <summary>A part of them, for the kernel.</summary>
    public HostBuffer Part(int offset, int count)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(offset);
        ArgumentOutOfRangeException.ThrowIfNegative(count);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(count, bytes.Length - offset);
        return new HostBuffer(Marshal.UnsafeAddrOfPinnedArrayElement(bytes, 0) + offset, (nuint)count);
    }

    /// <summary>Keeps them there until this call.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    public void KeepAlive() => GC.KeepAlive(bytes);
}
