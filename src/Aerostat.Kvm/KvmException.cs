using System.ComponentModel;
using System.Runtime.InteropServices;

namespace Aerostat.Kvm;

/// <summary>KVM refused a call that it should take. The message names the call; <see cref="Win32Exception.NativeErrorCode"/> is the host's error number.</summary>
public sealed class KvmException : Win32Exception
{
    /// <summary>Makes one.</summary>
    /// <param name="call">What was asked for.</param>
    /// <param name="error">The host's error number.</param>
    public KvmException(string call, int error)
        : base(error, $"KVM refuses {call}: {Marshal.GetPInvokeErrorMessage(error)}")
    {
    }

    /// <summary>Throws when a call's result is an error number, negated; answers it otherwise.</summary>
    internal static int Check(int result, string call) => result >= 0 ? result : throw new KvmException(call, -result);
}
