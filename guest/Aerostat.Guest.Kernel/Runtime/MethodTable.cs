using System.Runtime.InteropServices;

namespace Internal.Runtime;

/// <summary>What the native compiler writes for a type: the start of it, which is what allocation and casts need.</summary>
[StructLayout(LayoutKind.Sequential)]
internal unsafe struct MethodTable
{
    /// <summary>Bytes of an element in arrays and strings.</summary>
    public ushort ComponentSize;
    public ushort Flags;

    /// <summary>Bytes of an object, with the header word before its type pointer.</summary>
    public uint BaseSize;

    /// <summary>The base class; of an array, its element type.</summary>
    public MethodTable* Related;
}
