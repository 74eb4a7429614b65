using System.Runtime.InteropServices;

namespace Aerostat.Platform;

/// <summary>The calling thread as the host sees it. (Its name is <see cref="Thread.Name"/>: .NET passes that to the host.)</summary>
public static unsafe partial class HostThread
{
    private const int ThreadCpuTime = 3;

    /// <summary>The host's number of the calling thread, as in /proc/self/task.</summary>
    public static int CurrentId => gettid();

    /// <summary>CPU time the calling thread has used.</summary>
    public static TimeSpan CpuTime
    {
        get
        {
            nint* time = stackalloc nint[2];
            return clock_gettime(ThreadCpuTime, time) == 0
                ? TimeSpan.FromTicks(time[0] * TimeSpan.TicksPerSecond + time[1] / 100)
                : TimeSpan.Zero;
        }
    }

    /// <summary>CPU time that a thread of this process has used, to 10 ms; zero when it has ended.</summary>
    /// <param name="id">Its <see cref="CurrentId"/>.</param>
    public static TimeSpan CpuTimeOf(int id)
    {
        try
        {
            return ProcessUsage.ParseCpuTimes(File.ReadAllText($"/proc/self/task/{id}/stat")) is var (user, system) ? user + system : default;
        }
        catch (IOException)
        {
            return TimeSpan.Zero;
        }
    }

    /// <summary>How long a thread of this process has been ready to run and had to wait for a processor; null: it has ended, or the host does not say.</summary>
    /// <param name="id">Its <see cref="CurrentId"/>.</param>
    public static TimeSpan? WaitOf(int id)
    {
        try
        {
            // Nanoseconds on a processor, nanoseconds of waiting for one, times run.
            string[] figures = File.ReadAllText($"/proc/self/task/{id}/schedstat").Split(' ');
            return figures.Length >= 2 && long.TryParse(figures[1], out long nanoseconds) ? TimeSpan.FromTicks(nanoseconds / TimeSpan.NanosecondsPerTick) : null;
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            return null;
        }
    }

    /// <summary>Confines the calling thread to some of the host's processors. False: none of them may be used.</summary>
    /// <exception cref="ArgumentOutOfRangeException">A number is not 0 to 1023.</exception>
    public static bool SetAffinity(params ReadOnlySpan<int> processors)
    {
        byte* mask = stackalloc byte[128];
        new Span<byte>(mask, 128).Clear();
        foreach (int cpu in processors)
        {
            ArgumentOutOfRangeException.ThrowIfGreaterThan((uint)cpu, 1023u, nameof(processors));
            mask[cpu >> 3] |= (byte)(1 << (cpu & 7));
        }
        return sched_setaffinity(0, 128, mask) == 0;
    }

    /// <summary>
    /// Sets the calling thread's GS base (x86-64 only), which neither the C library nor .NET uses on Linux. False: the host refuses.
    /// </summary>
    public static bool SetGsBase(nint address) => syscall(ArchPrctl, ArchSetGs, address) == 0;

    private const nint ArchPrctl = 158, ArchSetGs = 0x1001;

    [LibraryImport("libc")]
    private static partial nint syscall(nint number, nint code, nint address);

    [LibraryImport("libc")]
    private static partial int gettid();

    [LibraryImport("libc")]
    private static partial int clock_gettime(int clock, nint* time);

    [LibraryImport("libc")]
    private static partial int sched_setaffinity(int thread, nuint size, byte* mask);
}
