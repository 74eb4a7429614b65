// Attributes and intrinsics by which the C# compiler and the native compiler talk to each other.
#pragma warning disable CA1019, CA1813
namespace System.Runtime.CompilerServices
{
    public enum MethodImplOptions
    {
        NoInlining = 8,
        AggressiveInlining = 256,
        InternalCall = 4096,
    }

    public sealed class MethodImplAttribute(MethodImplOptions options) : Attribute
    {
        public MethodImplOptions Value => options;
    }

    public sealed class IntrinsicAttribute : Attribute;

    public sealed class IsVolatile;

    public sealed class ExtensionAttribute : Attribute;

    public sealed class IsReadOnlyAttribute : Attribute;

    public sealed class IsByRefLikeAttribute : Attribute;

    public sealed class IsUnmanagedAttribute : Attribute;

    public sealed class ScopedRefAttribute : Attribute;

    public sealed class RefSafetyRulesAttribute(int version) : Attribute
    {
        public int Version => version;
    }

    public sealed class NullableAttribute : Attribute
    {
        public NullableAttribute(byte flag)
        {
        }

        public NullableAttribute(byte[] flags)
        {
        }
    }

    public sealed class NullableContextAttribute(byte flag) : Attribute
    {
        public byte Flag => flag;
    }

    public sealed class NullablePublicOnlyAttribute(bool internals) : Attribute
    {
        public bool IncludesInternals => internals;
    }

    public sealed class CompilerGeneratedAttribute : Attribute;

    public sealed class CompilerFeatureRequiredAttribute(string name) : Attribute
    {
        public string FeatureName => name;
    }

    public sealed class RequiredMemberAttribute : Attribute;

    public static class IsExternalInit;

    public sealed class UnsafeValueTypeAttribute : Attribute;

    public sealed class FixedBufferAttribute(Type type, int length) : Attribute
    {
        public Type ElementType => type;

        public int Length => length;
    }

    public static class RuntimeFeature
    {
        public const string ByRefFields = "ByRefFields";
        public const string UnmanagedSignatureCallingConvention = "UnmanagedSignatureCallingConvention";
        public const string NumericIntPtr = "NumericIntPtr";
    }

    public static class RuntimeHelpers
    {
        // Type pointer and length come before the characters.
        public static int OffsetToStringData => 12;
    }

    /// <summary>The native compiler replaces the bodies.</summary>
    public static unsafe class Unsafe
    {
        [Intrinsic]
        public static ref T AsRef<T>(void* pointer) => ref AsRef<T>(pointer);

        [Intrinsic]
        public static ref T Add<T>(ref T reference, int elements) => ref Add(ref reference, elements);

        [Intrinsic]
        public static T As<T>(object? value) => As<T>(value);

        [Intrinsic]
        public static ref TTo As<TFrom, TTo>(ref TFrom value) => ref As<TFrom, TTo>(ref value);
    }
}

namespace System.Runtime.InteropServices
{
    public enum LayoutKind
    {
        Sequential = 0,
        Explicit = 2,
        Auto = 3,
    }

    public enum CharSet
    {
        None = 1,
    }

    public sealed class StructLayoutAttribute(LayoutKind kind) : Attribute
    {
        public LayoutKind Value => kind;

        public int Pack;
        public int Size;
        public CharSet CharSet;
    }

    public sealed class FieldOffsetAttribute(int offset) : Attribute
    {
        public int Value => offset;
    }

    /// <summary>The native compiler looks for this type; nothing implements it.</summary>
    public interface IDynamicInterfaceCastable
    {
        RuntimeTypeHandle GetDynamicInterfaceImplementation(RuntimeTypeHandle type);
    }

    public sealed class InAttribute : Attribute;

    public enum UnmanagedType
    {
        Bool = 2,
    }
}

namespace System.Runtime
{
    /// <summary>Gives a method a name that the linker sees.</summary>
    public sealed class RuntimeExportAttribute(string name) : Attribute
    {
        public string EntryPoint => name;
    }

    /// <summary>Calls what has that name for the linker, with no transition.</summary>
    public sealed class RuntimeImportAttribute(string library, string name) : Attribute
    {
        public string DllName => library;

        public string EntryPoint => name;
    }
}

namespace System.Diagnostics.CodeAnalysis
{
    public sealed class UnscopedRefAttribute : Attribute;

    public sealed class SetsRequiredMembersAttribute : Attribute;

    public sealed class DoesNotReturnAttribute : Attribute;
}

namespace System.Reflection
{
    public sealed class DefaultMemberAttribute(string name) : Attribute
    {
        public string MemberName => name;
    }
}
