using Aerostat.Loader;
using Aerostat.Machine;

namespace Aerostat.Cli;

/// <summary>
/// Where <c>./dev</c> puts the stock kernel and busybox: $XDG_CACHE_HOME/aerostat (cloud/, generic/, busybox/, programs/). The verbs that boot
/// a whole system use what is there unless told otherwise.
/// </summary>
internal static class StockKernel
{
    private static string Cache => Path.Combine(
        Environment.GetEnvironmentVariable("XDG_CACHE_HOME") is { Length: > 0 } cache ? cache : Path.Combine(Environment.GetEnvironmentVariable("HOME") ?? "/", ".cache"),
        "aerostat");

    /// <summary>The kernel given, or the cached one.</summary>
    /// <exception cref="ConfigurationException">Neither.</exception>
    public static string Kernel(string? given) => given
        ?? Newest(Path.Combine(Cache, "cloud", "boot"), "vmlinuz-*", directories: false)
        ?? throw new ConfigurationException("no kernel; give --kernel FILE, or run './dev kernels' in a clone, which fetches Debian's");

    /// <summary>The busybox given, or the cached one.</summary>
    /// <exception cref="ConfigurationException">Neither.</exception>
    public static string Busybox(string? given)
    {
        string cached = Path.Combine(Cache, "busybox", "bin", "busybox");
        return given ?? (File.Exists(cached) ? cached
            : throw new ConfigurationException("no busybox; give --busybox FILE (a static one), or run './dev kernels' in a clone, which fetches Debian's"));
    }

    /// <summary>The root file system with programs given, or the cached one.</summary>
    /// <exception cref="ConfigurationException">Neither.</exception>
    public static string Programs(string? given)
    {
        string folder = given ?? Path.Combine(Cache, "programs");
        return Directory.Exists(Path.Combine(folder, "usr", "bin")) ? folder
            : throw new ConfigurationException($"{folder} is not a root file system with programs; give --root DIR, or run './dev bench programs' in a clone, which fetches Debian's");
    }

    private static string Libraries => Path.Combine(Cache, "programs", "usr", "lib", "x86_64-linux-gnu");

    // What the agent's runtime wants besides the C library.
    private static readonly string[] s_agentLibraries = ["libm.so.6", "libstdc++.so.6", "libgcc_s.so.1", "libdl.so.2", "librt.so.1", "libpthread.so.0"];

    /// <summary>Our own agent with its libraries, those of the cache, for an initramfs.</summary>
    /// <param name="program">The agent.</param>
    /// <exception cref="ConfigurationException">Something is not there.</exception>
    public static IReadOnlyList<InitramfsFile> Agent(string program)
    {
        if (!File.Exists(program))
            throw new ConfigurationException($"there is no agent {program}; './dev build' makes one");
        return
        [
            .. HyperVDaemons(),
            new("bin/aerostat-agent", program, true),
            .. s_agentLibraries.Select(l => new InitramfsFile($"lib/x86_64-linux-gnu/{l}", File.ResolveLinkTarget(Path.Combine(Libraries, l), returnFinalTarget: true)?.FullName ?? Path.Combine(Libraries, l), true)),
        ];
    }

    /// <summary>Debian's hv_vss_daemon, hv_kvp_daemon and hv_fcopy_daemon with their C library, from the cache, for an initramfs.</summary>
    /// <exception cref="ConfigurationException">They are not there.</exception>
    public static IReadOnlyList<InitramfsFile> HyperVDaemons()
    {
        string daemons = Path.Combine(Cache, "hyperv", "usr", "sbin"), library = Libraries;
        return File.Exists(Path.Combine(daemons, "hv_vss_daemon")) && File.Exists(Path.Combine(library, "libc.so.6"))
            ?
            [
                new("bin/hv_vss_daemon", Path.Combine(daemons, "hv_vss_daemon"), true),
                new("bin/hv_kvp_daemon", Path.Combine(daemons, "hv_kvp_daemon"), true),
                new("bin/hv_fcopy_daemon", Path.Combine(daemons, "hv_fcopy_daemon"), true),
                new("lib64/ld-linux-x86-64.so.2", Path.Combine(library, "ld-linux-x86-64.so.2"), true),
                new("lib/x86_64-linux-gnu/libc.so.6", Path.Combine(library, "libc.so.6"), true),
            ]
            : throw new ConfigurationException($"no hv_vss_daemon in {daemons}, or no C library in {library}; './dev demo backup' in a clone fetches them");
    }

    /// <summary>The modules given, else those next to the kernel or the host's of that release, else none.</summary>
    public static KernelModules? Modules(string? given, string kernel)
    {
        string? folder = given;
        string name = Path.GetFileName(kernel);
        if (folder is null && name.StartsWith("vmlinuz-", StringComparison.Ordinal) && Path.GetDirectoryName(Path.GetDirectoryName(Path.GetFullPath(kernel))) is { } root)
            folder = ((string[])[Path.Combine(root, "lib"), Path.Combine(root, "usr", "lib"), "/lib", "/usr/lib"])
                .Select(lib => Path.Combine(lib, "modules", name["vmlinuz-".Length..])).FirstOrDefault(f => File.Exists(Path.Combine(f, "modules.dep")));
        if (folder is null && kernel.StartsWith(Path.Combine(Cache, "cloud") + "/", StringComparison.Ordinal))
            folder = Newest(Path.Combine(Cache, "cloud", "lib", "modules"), "*", directories: true) ?? Newest(Path.Combine(Cache, "cloud", "usr", "lib", "modules"), "*", directories: true);
        return folder is null ? null : KernelModules.Open(folder);
    }

    private static string? Newest(string folder, string pattern, bool directories) => !Directory.Exists(folder) ? null
        : (directories ? Directory.EnumerateDirectories(folder, pattern) : Directory.EnumerateFiles(folder, pattern)).Order(StringComparer.Ordinal).LastOrDefault();
}
