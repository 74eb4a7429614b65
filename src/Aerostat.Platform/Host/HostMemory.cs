using System.Globalization;

namespace Aerostat.Platform;

/// <summary>How much memory the host has and what of it this process may use.</summary>
/// <param name="TotalBytes">The host's memory.</param>
/// <param name="AvailableBytes">What the kernel believes can be given out without swapping (MemAvailable).</param>
/// <param name="SwapFreeBytes">Free swap space.</param>
/// <param name="LimitBytes">The tightest control-group limit above this process, or null.</param>
/// <param name="LimitLeftBytes">What is left under the tightest group, reclaimable file cache counted as free; null without a limit.</param>
public sealed record HostMemory(ulong TotalBytes, ulong AvailableBytes, ulong SwapFreeBytes, ulong? LimitBytes, ulong? LimitLeftBytes)
{
    /// <summary>What a guest can be given: the less of the host's available memory and what the control group leaves.</summary>
    public ulong UsableBytes => Math.Min(AvailableBytes, LimitLeftBytes ?? ulong.MaxValue);

    /// <summary>Reads the present figures.</summary>
    /// <param name="root">Where /proc and /sys are; for tests.</param>
    public static HostMemory Read(string root = "/")
    {
        Dictionary<string, ulong> values = ProcFile.ParseKilobytes(ProcFile.Read(root, "proc/meminfo") ?? "");
        (ulong? limit, ulong? left) = ReadControlGroup(root);
        return new HostMemory(
            values.GetValueOrDefault("MemTotal"), values.GetValueOrDefault("MemAvailable"), values.GetValueOrDefault("SwapFree"), limit, left);
    }

    /// <summary>
    /// Share of the last ten seconds, in percent, in which some task waited for memory (PSI, /proc/pressure/memory); null: the host does not tell.
    /// </summary>
    /// <param name="root">Where /proc is; for tests.</param>
    public static double? ReadPressure(string root = "/")
    {
        // "some avg10=0.00 avg60=0.00 avg300=0.00 total=0".
        const string Key = "avg10=";
        string? line = ProcFile.Read(root, "proc/pressure/memory")?.Split('\n').FirstOrDefault(l => l.StartsWith("some ", StringComparison.Ordinal));
        string? word = line?.Split(' ').FirstOrDefault(w => w.StartsWith(Key, StringComparison.Ordinal));
        return word is not null && double.TryParse(word[Key.Length..], NumberStyles.Float, CultureInfo.InvariantCulture, out double percent) ? percent : null;
    }

    private static (ulong? Limit, ulong? Left) ReadControlGroup(string root)
    {
        foreach (string line in (ProcFile.Read(root, "proc/self/cgroup") ?? "").Split('\n'))
        {
            // "0::/path" is version 2; "N:memory:/path" is the memory controller of version 1 (cgroups(7)).
            string[] parts = line.Split(':', 3);
            if (parts.Length != 3)
                continue;
            if (parts[0] == "0" && parts[1].Length == 0 && Directory.Exists(Path.Combine(root, "sys/fs/cgroup")))
            {
                (ulong? Limit, ulong? Left) found = WalkUp(root, "sys/fs/cgroup", parts[2], "memory.max", "memory.current", "inactive_file");
                if (found.Limit is not null)
                    return found;
            }
            else if (parts[1].Split(',').Contains("memory"))
                return WalkUp(root, "sys/fs/cgroup/memory", parts[2], "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file");
        }
        return (null, null);
    }

    // Every group up to the root may limit; inside a container the path may name groups that are not visible here.
    private static (ulong? Limit, ulong? Left) WalkUp(string root, string mount, string path, string limitFile, string usageFile, string cacheKey)
    {
        ulong? limit = null, left = null;
        for (string group = path.Trim('/'); ; group = Path.GetDirectoryName(group) ?? "")
        {
            string folder = Path.Combine(mount, group);
            // Version 1 writes "no limit" as the largest page-aligned number.
            if (ProcFile.ReadNumber(root, Path.Combine(folder, limitFile)) is { } max and < 1UL << 62)
            {
                ulong usage = ProcFile.ReadNumber(root, Path.Combine(folder, usageFile)) ?? 0;
                usage -= Math.Min(usage, ReadCache(root, folder, cacheKey));
                ulong free = max - Math.Min(max, usage);
                if (left is null || free < left)
                    (limit, left) = (max, free);
            }
            if (group.Length == 0)
                return (limit, left);
        }
    }

    private static ulong ReadCache(string root, string folder, string key)
    {
        foreach (string line in (ProcFile.Read(root, Path.Combine(folder, "memory.stat")) ?? "").Split('\n'))
            if (line.StartsWith(key + " ", StringComparison.Ordinal) && ulong.TryParse(line.AsSpan(key.Length + 1), CultureInfo.InvariantCulture, out ulong bytes))
                return bytes;
        return 0;
    }
}
