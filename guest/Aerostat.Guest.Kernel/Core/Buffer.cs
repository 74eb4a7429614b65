// Copies and fills that compiled code calls by name when they are too large to be written out.
namespace System
{
    internal static unsafe class Buffer
    {
        internal static void BulkMoveWithWriteBarrier(ref byte to, ref byte from, nuint bytes) => SpanHelpers.Memmove(ref to, ref from, bytes);
    }

    internal static unsafe class SpanHelpers
    {
        internal static void Memmove(ref byte to, ref byte from, nuint bytes)
        {
            fixed (byte* target = &to, source = &from)
                Internal.Runtime.CompilerHelpers.Bulk.Move(target, source, bytes);
        }

        internal static void ClearWithoutReferences(ref byte start, nuint bytes)
        {
            fixed (byte* target = &start)
                Internal.Runtime.CompilerHelpers.Bulk.Fill(target, 0, bytes);
        }

        internal static void Fill(ref byte start, byte value, nuint bytes)
        {
            fixed (byte* target = &start)
                Internal.Runtime.CompilerHelpers.Bulk.Fill(target, value, bytes);
        }
    }
}

namespace Internal.Runtime.CompilerHelpers
{
    using System.Runtime;
    using System.Runtime.CompilerServices;

    internal static unsafe class Bulk
    {
        [RuntimeImport("*", "memmove"), MethodImpl(MethodImplOptions.InternalCall)]
        public static extern void Move(void* to, void* from, nuint bytes);

        [RuntimeImport("*", "memset"), MethodImpl(MethodImplOptions.InternalCall)]
        public static extern void Fill(void* to, int value, nuint bytes);
    }

    /// <summary>The native compiler looks for this class; a kernel initializes itself.</summary>
    internal static class StartupCodeHelpers;
}
