using System.Globalization;

namespace Aerostat.Platform;

/// <summary>What this process uses of the host, from /proc/self (proc_pid_status(5), proc_pid_stat(5)).</summary>
/// <param name="ResidentBytes">Memory resident now, guest memory included (VmRSS).</param>
/// <param name="PeakResidentBytes">Highest ever, guest memory included (VmHWM).</param>
/// <param name="AnonymousBytes">Resident memory of the process' own (RssAnon): guest memory, heaps and stacks.</param>
/// <param name="FileBytes">Resident pages of mapped files (RssFile): program code.</param>
/// <param name="SharedBytes">Resident pages of memory files (RssShmem): generated code.</param>
/// <param name="UserTime">CPU time in user mode.</param>
/// <param name="SystemTime">CPU time in the kernel.</param>
/// <param name="Threads">Threads.</param>
/// <remarks>
/// The VMM's own resident memory is <see cref="ResidentBytes"/> less what of guest memory is mapped in; the host knows no peak of
/// that difference, so whoever reports one takes samples (<see cref="OwnAbove"/>).
/// </remarks>
public sealed record ProcessUsage(
    ulong ResidentBytes, ulong PeakResidentBytes, ulong AnonymousBytes, ulong FileBytes, ulong SharedBytes,
    TimeSpan UserTime, TimeSpan SystemTime, int Threads)
{
    // USER_HZ, which Linux fixes at 100 for user space on every architecture that .NET runs on.
    private const long TicksPerJiffy = TimeSpan.TicksPerSecond / 100;

    /// <summary>Resident memory that is neither memory files nor guest memory: the VMM above it.</summary>
    /// <param name="guestBytes">What the host holds for guests.</param>
    public ulong OwnAbove(ulong guestBytes) => AnonymousBytes - Math.Min(guestBytes, AnonymousBytes) + FileBytes;

    /// <summary>Reads the present figures; those the host does not tell are 0.</summary>
    public static ProcessUsage Read() => Parse(ReadFile("/proc/self/status"), ReadFile("/proc/self/stat"));

    internal static ProcessUsage Parse(string status, string stat)
    {
        Dictionary<string, ulong> values = ProcFile.ParseKilobytes(status);
        (TimeSpan user, TimeSpan system) = ParseCpuTimes(stat);
        return new ProcessUsage(
            values.GetValueOrDefault("VmRSS"), values.GetValueOrDefault("VmHWM"), values.GetValueOrDefault("RssAnon"),
            values.GetValueOrDefault("RssFile"), values.GetValueOrDefault("RssShmem"), user, system,
            (int)values.GetValueOrDefault("Threads"));
    }

    internal static (TimeSpan User, TimeSpan System) ParseCpuTimes(string stat)
    {
        // The second field is a name in parentheses that may hold spaces; utime and stime are the 14th and 15th.
        string[] fields = stat[(stat.LastIndexOf(')') + 1)..].Split(' ', StringSplitOptions.RemoveEmptyEntries);
        return fields.Length < 13 ? default : (Time(fields[11]), Time(fields[12]));

        static TimeSpan Time(string text) =>
            long.TryParse(text, CultureInfo.InvariantCulture, out long jiffies) ? new TimeSpan(jiffies * TicksPerJiffy) : default;
    }

    private static string ReadFile(string path) => ProcFile.Read("/", path.TrimStart('/')) ?? "";
}
