using System.Runtime;
using Aerostat.Guest.Kernel;

namespace Internal.Runtime.CompilerHelpers;

/// <summary>Compiled code calls these when a check fails. There are no exceptions in this kernel: a failed check ends the guest, saying where.</summary>
internal static class ThrowHelpers
{
    [RuntimeExport("RhpFallbackFailFast")]
    private static void FailFast() => Panic.Stop("a buffer on the stack was overrun");

    public static void ThrowIndexOutOfRangeException() => Panic.Stop("index out of range");

    public static void ThrowOverflowException() => Panic.Stop("arithmetic overflow");

    public static void ThrowDivideByZeroException() => Panic.Stop("division by zero");

    public static void ThrowNullReferenceException() => Panic.Stop("null reference");

    public static void ThrowArrayTypeMismatchException() => Panic.Stop("array type mismatch");

    public static void ThrowPlatformNotSupportedException() => Panic.Stop("not supported by the processor");

    public static void ThrowFeatureBodyRemoved() => Panic.Stop("a method that the compiler left out was called");

    public static void ThrowInstanceBodyRemoved() => Panic.Stop("a method of a type that is never made was called");

    public static void ThrowUnavailableType() => Panic.Stop("a type that is never made was asked for");

    public static void ThrowBodyRemoved() => Panic.Stop("a method that the compiler left out was called");

    public static void ThrowArgumentException() => Panic.Stop("wrong argument");

    public static void ThrowArgumentOutOfRangeException() => Panic.Stop("argument out of range");

    public static void ThrowNotSupportedException() => Panic.Stop("not supported");
}
