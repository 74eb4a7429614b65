using System.Text;

namespace Aerostat.Loader;

/// <summary>A file of the host to put into an initramfs.</summary>
/// <param name="Path">Where it goes.</param>
/// <param name="Source">The file on the host.</param>
/// <param name="Executable">Mode 755 (octal) rather than 644.</param>
public readonly record struct InitramfsFile(string Path, string Source, bool Executable);

/// <summary>
/// Builds a small initramfs: a static busybox with links for its applets, kernel modules with what they depend on, and an /init script.
/// </summary>
/// <remarks>
/// In the archive: /init, /bin (busybox and links), /dev with console, null, kmsg, ttyS0, /proc, /sys, /run, /tmp, /root, /etc,
/// lib/modules/RELEASE with the modules and a modules.dep, so that modprobe works, and /etc/modules with their full paths in load
/// order, so that <c>while read m; do insmod $m; done &lt; /etc/modules</c> works without it.
/// </remarks>
public sealed class InitramfsBuilder
{
    private const int Executable = 0x1ED, Plain = 0x1A4; // octal 755 and 644

    /// <summary>A statically linked busybox on the host.</summary>
    public required string BusyboxPath { get; init; }

    /// <summary>Text of /init, a shell script.</summary>
    public required string InitScript { get; init; }

    /// <summary>Names that are linked to busybox in /bin.</summary>
    public IReadOnlyList<string> Applets { get; init; } =
    [
        "sh", "ash", "awk", "basename", "blkid", "cat", "chmod", "chown", "clear", "cp", "cut", "date", "dd", "df", "dirname", "dmesg",
        "du", "echo", "egrep", "env", "expr", "false", "find", "free", "grep", "halt", "head", "hexdump", "hostname", "id", "insmod",
        "kill", "less", "ln", "ls", "lsmod", "md5sum", "mkdir", "mknod", "modprobe", "more", "mount", "mv", "nproc", "od", "pidof",
        "poweroff", "printf", "ps", "pwd", "reboot", "rm", "rmdir", "rmmod", "sed", "seq", "setsid", "sha256sum", "sleep", "sort",
        "stat", "stty", "sync", "tail", "tar", "tee", "test", "time", "top", "touch", "tr", "true", "tty", "umount", "uname", "uniq",
        "uptime", "usleep", "vi", "wc", "which", "xargs", "yes", "zcat",
    ];

    /// <summary>Modules of the kernel; none without them.</summary>
    public KernelModules? Modules { get; init; }

    /// <summary>Names of modules to put in, with what they need.</summary>
    public IReadOnlyList<string> ModuleNames { get; init; } = [];

    /// <summary>Further files.</summary>
    public IReadOnlyList<InitramfsFile> ExtraFiles { get; init; } = [];

    /// <summary>Writes the archive to a file, which appears only when it is complete.</summary>
    /// <exception cref="BootException">Something cannot be read or written.</exception>
    public void Build(string path)
    {
        ArgumentNullException.ThrowIfNull(path);
        string unfinished = $"{path}.{Environment.ProcessId}.new";
        try
        {
            try
            {
                using (FileStream file = new(unfinished, FileMode.Create, FileAccess.Write, FileShare.None, 64 * 1024))
                    Build(file);
                File.Move(unfinished, path, overwrite: true);
            }
            finally
            {
                File.Delete(unfinished);
            }
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            throw new BootException($"could not write initramfs {path}: {BootFile.OneLine(e)}; give a place that can be written to", e);
        }
    }

    /// <summary>Writes the archive to a stream.</summary>
    /// <exception cref="BootException">Something cannot be read.</exception>
    public void Build(Stream output)
    {
        IReadOnlyList<string> modules = LoadOrder();
        CpioArchive archive = new(output);
        foreach (string directory in (string[])["bin", "dev", "etc", "lib", "mnt", "proc", "root", "run", "sys", "tmp"])
            archive.AddDirectory(directory);
        archive.AddSymlink("sbin", "bin");
        archive.AddDirectory("usr");
        archive.AddSymlink("usr/bin", "../bin");
        archive.AddSymlink("usr/sbin", "../bin");
        archive.AddCharacterDevice("dev/console", 5, 1);
        archive.AddCharacterDevice("dev/null", 1, 3, 0x1B6);
        archive.AddCharacterDevice("dev/kmsg", 1, 11);
        archive.AddCharacterDevice("dev/ttyS0", 4, 64);
        archive.AddFile("init", Encoding.UTF8.GetBytes(InitScript), Executable);
        AddHostFile(archive, new InitramfsFile("bin/busybox", BusyboxPath, true));
        foreach (string applet in Applets)
            archive.AddSymlink("bin/" + applet, "busybox");
        AddModules(archive, modules);
        foreach (InitramfsFile extra in ExtraFiles)
            AddHostFile(archive, extra);
        archive.Finish();
    }

    private IReadOnlyList<string> LoadOrder()
    {
        if (ModuleNames.Count == 0)
            return [];
        return Modules?.LoadOrder(ModuleNames) ?? throw new BootException("the initramfs is to have kernel modules, but no module directory is given; give the lib/modules/RELEASE of the kernel");
    }

    private void AddModules(CpioArchive archive, IReadOnlyList<string> paths)
    {
        if (Modules is not { } modules || paths.Count == 0)
            return;
        string root = $"lib/modules/{modules.Release}/";
        Dictionary<string, string> byName = paths.ToDictionary(KernelModules.NameOf, StringComparer.Ordinal);
        StringBuilder dependencies = new(), order = new();
        foreach (string path in paths)
        {
            AddHostFile(archive, new InitramfsFile(root + path, Path.Combine(modules.Root, path), false));
            order.Append('/').Append(root).Append(path).Append('\n');
            // modprobe loads a line's modules from its end; ours are in load order, so the line is the order reversed.
            IEnumerable<string> needed = modules.LoadOrder([path]).Where(p => p != path && byName.ContainsKey(KernelModules.NameOf(p))).Reverse();
            dependencies.Append(path).Append(':').Append(string.Concat(needed.Select(p => " " + p))).Append('\n');
        }
        archive.AddFile(root + "modules.dep", Encoding.UTF8.GetBytes(dependencies.ToString()), Plain);
        archive.AddFile("etc/modules", Encoding.UTF8.GetBytes(order.ToString()), Plain);
    }

    private static void AddHostFile(CpioArchive archive, InitramfsFile file)
    {
        FileStream source;
        try
        {
            source = new FileStream(file.Source, FileMode.Open, FileAccess.Read, FileShare.ReadWrite | FileShare.Delete);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException or ArgumentException)
        {
            throw new BootException($"could not open {file.Source} for the initramfs: {BootFile.OneLine(e)}; check the path", e);
        }
        using (source)
            archive.AddFile(file.Path, source, file.Executable ? Executable : Plain);
    }
}
