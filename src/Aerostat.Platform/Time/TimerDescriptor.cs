using System.ComponentModel;
using System.Runtime.InteropServices;

namespace Aerostat.Platform;

/// <summary>
/// A timerfd on CLOCK_MONOTONIC (timerfd_create(2)): one thread waits, any thread moves the deadline without waking it.
/// </summary>
internal sealed unsafe partial class TimerDescriptor : IDisposable
{
    private const int Monotonic = 1, CloseOnExec = 0x80000, AbsoluteTime = 1, Interrupted = 4;

    private readonly int descriptor;

    public TimerDescriptor()
    {
        descriptor = timerfd_create(Monotonic, CloseOnExec);
        if (descriptor < 0)
            throw new Win32Exception(Marshal.GetLastPInvokeError(), "timerfd_create failed");
    }

    /// <summary>Expires at <paramref name="nanoseconds"/> of CLOCK_MONOTONIC; a time in the past expires at once.</summary>
    public void Set(long nanoseconds)
    {
        nanoseconds = Math.Max(nanoseconds, 1);
        // struct itimerspec: interval seconds, nanoseconds, value seconds, nanoseconds.
        nint* value = stackalloc nint[4];
        value[0] = value[1] = 0;
        (long seconds, long rest) = Math.DivRem(nanoseconds, 1_000_000_000);
        value[2] = (nint)seconds;
        value[3] = (nint)rest;
        _ = timerfd_settime(descriptor, AbsoluteTime, value, null);
    }

    /// <summary>Blocks until the deadline has passed.</summary>
    public void Wait()
    {
        ulong expirations;
        while (read(descriptor, &expirations, sizeof(ulong)) < 0)
        {
            int error = Marshal.GetLastPInvokeError();
            if (error != Interrupted)
                throw new Win32Exception(error, "waiting for a timer failed");
        }
    }

    public void Dispose() => _ = close(descriptor);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int timerfd_create(int clock, int flags);

    // Short and never blocking, and called with a lock held from vCPU threads: the GC transition would cost as much again.
    [LibraryImport("libc")]
    [SuppressGCTransition]
    private static partial int timerfd_settime(int fd, int flags, nint* value, nint* old);

    [LibraryImport("libc", SetLastError = true)]
    private static partial nint read(int fd, void* buffer, nuint count);

    [LibraryImport("libc")]
    private static partial int close(int fd);
}
