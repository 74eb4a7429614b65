using System.Runtime.CompilerServices;

namespace System;

/// <summary>A stretch of memory that is not written to.</summary>
public readonly ref struct ReadOnlySpan<T>
{
    private readonly ref T first;
    private readonly int length;

    // What the compiler makes of constant data.
    public unsafe ReadOnlySpan(void* first, int length)
    {
        this.first = ref Unsafe.AsRef<T>(first);
        this.length = length;
    }

    internal ReadOnlySpan(ref T first, int length)
    {
        this.first = ref first;
        this.length = length;
    }

    public int Length => length;

    public ref readonly T this[int index]
    {
        get
        {
            if ((uint)index >= (uint)length)
                Internal.Runtime.CompilerHelpers.ThrowHelpers.ThrowIndexOutOfRangeException();
            return ref Unsafe.Add(ref first, index);
        }
    }
}

/// <summary>A stretch of memory.</summary>
public readonly ref struct Span<T>
{
    private readonly ref T first;
    private readonly int length;

    // What the compiler makes of stackalloc.
    public unsafe Span(void* first, int length)
    {
        this.first = ref Unsafe.AsRef<T>(first);
        this.length = length;
    }

    public int Length => length;

    public ref T this[int index]
    {
        get
        {
            if ((uint)index >= (uint)length)
                Internal.Runtime.CompilerHelpers.ThrowHelpers.ThrowIndexOutOfRangeException();
            return ref Unsafe.Add(ref first, index);
        }
    }

    public static implicit operator ReadOnlySpan<T>(Span<T> span) => new(ref span.first, span.length);
}
