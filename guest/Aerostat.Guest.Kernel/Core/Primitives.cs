// The types that the C# compiler and the native compiler take for granted. No method of them is here that nobody calls.
// CS0649: the compiler and the allocator fill these fields. CS0660, CS0661: nothing here is put into a hash table.
#pragma warning disable CS0649, CS0660, CS0661
namespace System;

/// <summary>Every object begins with a pointer to its type.</summary>
public unsafe class Object
{
    internal Internal.Runtime.MethodTable* m_pEEType;
}

public struct Void;

public struct Boolean;

public struct Char;

public struct SByte;

public struct Byte
{
    public const byte MaxValue = 255;
}

public struct Int16;

public struct UInt16
{
    public const ushort MaxValue = 0xFFFF;
}

public struct Int32
{
    public const int MaxValue = 0x7FFF_FFFF;
}

public struct UInt32
{
    public const uint MaxValue = 0xFFFF_FFFF;
}

public struct Int64
{
    public const long MaxValue = 0x7FFF_FFFF_FFFF_FFFF;
}

public struct UInt64
{
    public const ulong MaxValue = 0xFFFF_FFFF_FFFF_FFFF;
}

public struct IntPtr;

public struct UIntPtr;

public struct Single;

public struct Double;

public abstract class ValueType;

public abstract class Enum : ValueType;

public struct Nullable<T>
    where T : struct
{
    private readonly bool hasValue;
    private T value;

    public Nullable(T value)
    {
        hasValue = true;
        this.value = value;
    }

    public readonly bool HasValue => hasValue;

    public readonly T Value => value;

    public readonly T GetValueOrDefault() => value;

    public static implicit operator Nullable<T>(T value) => new Nullable<T>(value);
}

/// <summary>Text in UTF-16, as the compiler lays it out: type, length, characters, a zero.</summary>
public sealed unsafe class String
{
    // The compiler fills both in for literals, and StringBuilder for what is made at run time.
    internal readonly int _stringLength;
    internal char _firstChar;

    public int Length => _stringLength;

    public ref readonly char GetPinnableReference() => ref _firstChar;

    [System.Runtime.CompilerServices.Intrinsic]
    public char this[int index]
    {
        get
        {
            if ((uint)index >= (uint)_stringLength)
                Internal.Runtime.CompilerHelpers.ThrowHelpers.ThrowIndexOutOfRangeException();
            fixed (char* first = &_firstChar)
                return first[index];
        }
    }

    public static bool operator ==(string? a, string? b)
    {
        if ((object?)a == b)
            return true;
        if (a is null || b is null || a.Length != b.Length)
            return false;
        for (int i = 0; i < a.Length; i++)
            if (a[i] != b[i])
                return false;
        return true;
    }

    public static bool operator !=(string? a, string? b) => !(a == b);
}

/// <summary>Arrays of any element type: type, length, elements.</summary>
public abstract class Array
{
    internal readonly int _numComponents;

    public int Length => _numComponents;
}

// What the compiler takes as the type of T[].
internal sealed class Array<T> : Array;

public abstract class Delegate;

public abstract class MulticastDelegate : Delegate;

public abstract class Type;

// The native compiler looks for this one by name.
internal sealed class RuntimeType : Type;

public class Exception;

public struct RuntimeTypeHandle;

public struct RuntimeMethodHandle;

public struct RuntimeFieldHandle;

public abstract class Attribute;

public enum AttributeTargets
{
    All = 0x7FFF,
}

public sealed class AttributeUsageAttribute(AttributeTargets validOn) : Attribute
{
    public AttributeTargets ValidOn => validOn;

    public bool AllowMultiple { get; set; }

    public bool Inherited { get; set; }
}

public sealed class ParamArrayAttribute : Attribute;

public sealed class FlagsAttribute : Attribute;
