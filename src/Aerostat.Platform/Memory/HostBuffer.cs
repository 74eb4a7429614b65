using System.Runtime.InteropServices;

namespace Aerostat.Platform;

/// <summary>A piece of host memory that stays where it is, as readv(2) takes it (struct iovec).</summary>
/// <param name="Address">First byte.</param>
/// <param name="Length">Bytes.</param>
[StructLayout(LayoutKind.Sequential)]
public readonly record struct HostBuffer(nint Address, nuint Length)
{
    /// <summary>The bytes; at most 2 GiB of them.</summary>
    public unsafe Span<byte> AsSpan() =>
        // SAFETY: whoever made the buffer answers for the memory being there (GuestMemory.TryGetBuffer: until the memory is disposed of).
        new((void*)Address, (int)Math.Min(Length, int.MaxValue));
}
