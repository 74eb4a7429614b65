using System.ComponentModel;
using System.Globalization;
using System.Runtime.InteropServices;

namespace Aerostat.Platform;

/// <summary>Whether /dev/kvm can be opened.</summary>
public enum KvmDevice
{
    /// <summary>There is none.</summary>
    Missing,
    /// <summary>It is there but may not be opened by this user.</summary>
    NoPermission,
    /// <summary>It can be opened for reading and writing.</summary>
    Present,
}

/// <summary>Facts of the host, for <c>aerostat doctor</c>.</summary>
public sealed partial record HostFacts
{
    private const int ReadWrite = 6;

    /// <summary>Kernel release, as of <c>uname -r</c>.</summary>
    public required string KernelRelease { get; init; }

    /// <summary>Distribution, for people.</summary>
    public required string Distribution { get; init; }

    /// <summary>x64, arm64, ...</summary>
    public required string Architecture { get; init; }

    /// <summary>Processor model, for people.</summary>
    public required string ProcessorModel { get; init; }

    /// <summary>Processor features, in Linux's names.</summary>
    public required IReadOnlySet<string> ProcessorFlags { get; init; }

    /// <summary>Processors that this process may use.</summary>
    public required int Processors { get; init; }

    /// <summary>CPU time that the control group allows, in processors; null without a limit.</summary>
    public required double? ProcessorQuota { get; init; }

    /// <summary>Whether the host is itself a guest.</summary>
    public bool IsVirtual => ProcessorFlags.Contains("hypervisor");

    /// <summary>State of /dev/kvm.</summary>
    public required KvmDevice Kvm { get; init; }

    /// <summary>Memory figures.</summary>
    public required HostMemory Memory { get; init; }

    /// <summary>Transparent huge pages for anonymous memory, which guest memory is: always, madvise, never; null when the host has none.</summary>
    public required string? TransparentHugePages { get; init; }

    /// <summary>The same for memory files.</summary>
    public required string? SharedHugePages { get; init; }

    /// <summary>Reserved huge pages: how many are free.</summary>
    public required ulong FreeHugePages { get; init; }

    /// <summary>Size of a reserved huge page, or 0.</summary>
    public required ulong HugePageSize { get; init; }

    /// <summary>vm.overcommit_memory: 0 heuristic, 1 always, 2 strict (then large guests may be refused).</summary>
    public required int Overcommit { get; init; }

    /// <summary>Clock source of the host kernel: anything but tsc or kvm-clock makes reading the time slow.</summary>
    public required string ClockSource { get; init; }

    /// <summary>Millions of processor cycles a second, as the kernel tells; 0 when it does not.</summary>
    public double ProcessorMegahertz { get; init; }

    /// <summary>Reads the facts; what the host does not tell is "unknown" or 0.</summary>
    /// <param name="root">Where /proc, /sys, /etc and /dev are; for tests.</param>
    public static HostFacts Read(string root = "/")
    {
        string cpuinfo = ProcFile.Read(root, "proc/cpuinfo") ?? "";
        Dictionary<string, ulong> memory = ProcFile.ParseKilobytes(ProcFile.Read(root, "proc/meminfo") ?? "");
        return new HostFacts
        {
            KernelRelease = ProcFile.Read(root, "proc/sys/kernel/osrelease")?.Trim() ?? "unknown",
            Distribution = Value(ProcFile.Read(root, "etc/os-release") ?? "", "PRETTY_NAME", '=') ?? "unknown",
            Architecture = RuntimeInformation.OSArchitecture.ToString().ToLowerInvariant(),
            ProcessorModel = Value(cpuinfo, "model name", ':') ?? "unknown",
            ProcessorFlags = (Value(cpuinfo, "flags", ':') ?? Value(cpuinfo, "Features", ':') ?? "")
                .Split(' ', StringSplitOptions.RemoveEmptyEntries).ToHashSet(),
            ProcessorMegahertz = double.TryParse(Value(cpuinfo, "cpu MHz", ':'), CultureInfo.InvariantCulture, out double megahertz) ? megahertz : 0,
            Processors = Environment.ProcessorCount,
            ProcessorQuota = Quota(ProcFile.Read(root, "sys/fs/cgroup/cpu.max")),
            Kvm = ProbeKvm(Path.Combine(root, "dev/kvm")),
            Memory = HostMemory.Read(root),
            TransparentHugePages = ProcFile.Selected(ProcFile.Read(root, "sys/kernel/mm/transparent_hugepage/enabled")),
            SharedHugePages = ProcFile.Selected(ProcFile.Read(root, "sys/kernel/mm/transparent_hugepage/shmem_enabled")),
            FreeHugePages = memory.GetValueOrDefault("HugePages_Free"),
            HugePageSize = memory.GetValueOrDefault("Hugepagesize"),
            Overcommit = (int)(ProcFile.ReadNumber(root, "proc/sys/vm/overcommit_memory") ?? 0),
            ClockSource = ProcFile.Read(root, "sys/devices/system/clocksource/clocksource0/current_clocksource")?.Trim() ?? "unknown",
        };
    }

    private static KvmDevice ProbeKvm(string path) =>
        !File.Exists(path) ? KvmDevice.Missing
        : access(path, ReadWrite) == 0 ? KvmDevice.Present
        : KvmDevice.NoPermission;

    private static string? Value(string text, string key, char separator)
    {
        foreach (string line in text.Split('\n'))
        {
            int at = line.IndexOf(separator);
            if (at > 0 && line.AsSpan(0, at).Trim().SequenceEqual(key))
                return line[(at + 1)..].Trim().Trim('"');
        }
        return null;
    }

    // "max 100000" or "150000 100000": microseconds of CPU time in each period.
    private static double? Quota(string? text)
    {
        string[] parts = text?.Split((char[]?)null, StringSplitOptions.RemoveEmptyEntries) ?? [];
        return parts.Length == 2 && double.TryParse(parts[0], CultureInfo.InvariantCulture, out double quota)
            && double.TryParse(parts[1], CultureInfo.InvariantCulture, out double period) && period > 0
            ? quota / period : null;
    }

    [LibraryImport("libc", StringMarshalling = StringMarshalling.Utf8)]
    private static partial int access(string path, int mode);
}
