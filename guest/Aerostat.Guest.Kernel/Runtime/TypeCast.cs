using System.Runtime.CompilerServices;
using Internal.Runtime;

namespace System.Runtime;

/// <summary>Casts between classes and stores into arrays of objects, which compiled code leaves to these methods by name.</summary>
internal static unsafe class TypeCast
{
    public static object? IsInstanceOfClass(MethodTable* type, object? value) => value is null || IsDerived(value.m_pEEType, type) ? value : null;

    public static object? CheckCastClass(MethodTable* type, object? value)
    {
        if (value is not null && !IsDerived(value.m_pEEType, type))
            Aerostat.Guest.Kernel.Panic.Stop("invalid cast");
        return value;
    }

    public static object? IsInstanceOfAny(MethodTable* type, object? value) => IsInstanceOfClass(type, value);

    public static object? CheckCastAny(MethodTable* type, object? value) => CheckCastClass(type, value);

    // The compiler has compared with the exact type already.
    public static object? CheckCastClassSpecial(MethodTable* type, object? value) => CheckCastClass(type, value);

    // There are no interfaces in this kernel: abstract classes do.
    public static object? IsInstanceOfInterface(MethodTable* type, object? value) => IsInstanceOfClass(type, value);

    public static object? CheckCastInterface(MethodTable* type, object? value) => CheckCastClass(type, value);

    public static bool IsInstanceOfException(MethodTable* type, object? value) => IsInstanceOfClass(type, value) is not null;

    public static ref object? LdelemaRef(object?[] array, nint index, MethodTable* type)
    {
        if ((nuint)index >= (nuint)array.Length)
            Internal.Runtime.CompilerHelpers.ThrowHelpers.ThrowIndexOutOfRangeException();
        if (array.m_pEEType->Related != type)
            Internal.Runtime.CompilerHelpers.ThrowHelpers.ThrowArrayTypeMismatchException();
        return ref Unsafe.Add(ref Unsafe.As<Elements>(array).First, (int)index);
    }

    public static void StelemRef(object?[] array, nint index, object? value)
    {
        if ((nuint)index >= (nuint)array.Length)
            Internal.Runtime.CompilerHelpers.ThrowHelpers.ThrowIndexOutOfRangeException();
        if (value is not null && !IsDerived(value.m_pEEType, array.m_pEEType->Related))
            Internal.Runtime.CompilerHelpers.ThrowHelpers.ThrowArrayTypeMismatchException();
        Unsafe.Add(ref Unsafe.As<Elements>(array).First, (int)index) = value;
    }

    private static bool IsDerived(MethodTable* type, MethodTable* from)
    {
        for (; type is not null; type = type->Related)
            if (type == from)
                return true;
        return false;
    }

    // How an array lies in memory, so that its elements can be written without the check that is being made.
    private sealed class Elements : Array
    {
        public object? First;
    }
}
