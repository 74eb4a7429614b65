using System.Text.RegularExpressions;
using Aerostat.Machine;

namespace Aerostat.Cli;

/// <summary>A type of file system that guests have on their disks: how the host makes and checks one, and how a guest mounts it.</summary>
internal sealed partial class GuestFileSystem
{
    private static readonly TimeSpan s_limit = TimeSpan.FromMinutes(10);

    private readonly string package, maker, checker;
    private readonly string[] makeOptions, checkOptions;
    private readonly string words;

    private GuestFileSystem(string name, string package, string[] make, string[] check, string words, string[] modules, string mountOptions, string asItIs, ulong least)
    {
        Name = name;
        this.package = package;
        maker = make[0];
        makeOptions = make[1..];
        checker = check[0];
        checkOptions = check[1..];
        this.words = words;
        Modules = modules;
        MountOptions = mountOptions;
        AsItIs = asItIs;
        LeastBytes = least;
    }

    /// <summary>Its name, for mount(8) too.</summary>
    public string Name { get; }

    /// <summary>Modules of the kernel that it needs.</summary>
    public IReadOnlyList<string> Modules { get; }

    /// <summary>How a guest that writes mounts it.</summary>
    public string MountOptions { get; }

    /// <summary>How it is mounted without looking at its journal: what shows then needs no replay.</summary>
    public string AsItIs { get; }

    /// <summary>Bytes that one needs at least.</summary>
    public ulong LeastBytes { get; }

    public static GuestFileSystem Ext4 { get; } = new("ext4", "e2fsprogs", ["mkfs.ext4", "-q", "-F"], ["e2fsck", "-f", "-n"], "recover", [], "noinit_itable", "ro,noload", 4 << 20);

    // A frozen XFS has written everything, and behind that a record of no contents, so that a mount looks for files that were deleted while open, and counts free blocks
    // anew: only the next unmount writes how many there are.
    public static GuestFileSystem Xfs { get; } = new("xfs", "xfsprogs", ["mkfs.xfs", "-q", "-f"], ["xfs_repair", "-n"], "would have", ["xfs"], "defaults", "ro,norecovery,nouuid", 300 << 20) { WhileFrozen = FrozenXfs() };

    public static GuestFileSystem Btrfs { get; } = new("btrfs", "btrfs-progs", ["mkfs.btrfs", "-q", "-f"], ["btrfs", "check", "--readonly", "--check-data-csum"], "ERROR:", ["btrfs"], "defaults", "ro,rescue=nologreplay", 128 << 20);

    /// <summary>The file systems of a list such as "ext4,xfs".</summary>
    /// <exception cref="ConfigurationException">There is something else in it.</exception>
    public static IReadOnlyList<GuestFileSystem> Parse(string list, string option) =>
    [
        .. list.Split(',').Select(name => ((GuestFileSystem[])[Ext4, Xfs, Btrfs]).FirstOrDefault(f => f.Name == name)
            ?? throw new ConfigurationException($"{option}: '{name}' is not one of ext4, xfs, btrfs")),
    ];

    /// <summary>A program of the host's system folders, which ordinary users do not have in their path; null: it is not installed.</summary>
    public static string? FindTool(string name) => ((string[])["/usr/sbin", "/sbin", "/usr/bin", "/bin"]).Select(f => Path.Combine(f, name)).FirstOrDefault(File.Exists);

    // What the checker may say of an image that was taken while it was frozen; null: nothing.
    private Regex? WhileFrozen { get; init; }

    /// <summary>Whether a mount and unmount puts something right that a freeze leaves open; the checker is told so the second time.</summary>
    public bool IsSettledByMount => WhileFrozen is not null;

    [GeneratedRegex(@"^(Phase \d.*|\s+- .*|No modify flag set.*|ALERT: The filesystem has valuable metadata changes in a log which is being|ignored because the -n option was used.*|which may be resolved by first mounting.*|Cannot get host filesystem geometry\.|Repair may fail if there is a sector size mismatch between|the image and the host filesystem\.|sb_(fdblocks|ifree|icount) \d+, counted \d+|)$")]
    private static partial Regex FrozenXfs();

    /// <summary>The host has what makes and checks it.</summary>
    public bool IsAvailable => FindTool(maker) is not null && FindTool(checker) is not null;

    /// <summary>Makes a sparse image with an empty one.</summary>
    /// <exception cref="ConfigurationException">The host has no program for it.</exception>
    public async Task MakeAsync(string path, ulong bytes, CancellationToken cancellation)
    {
        string program = FindTool(maker) ?? throw new ConfigurationException($"the host has no {maker} to make a disk with; install {package}");
        using (FileStream file = File.Create(path))
            file.SetLength((long)Math.Max(bytes, LeastBytes));
        ChildRun run = await ChildRun.StartAsync(program, [.. makeOptions, path], s_limit, cancellation).ConfigureAwait(false);
        if (run.ExitCode != 0)
            throw new HostException($"{maker} failed: {run.Output.Trim().ReplaceLineEndings(" ")}");
    }

    /// <summary>Checks an image, and changes nothing in it. Answers what is wrong.</summary>
    /// <param name="image">The image.</param>
    /// <param name="isFrozen">Whether it is as it was when it was frozen.</param>
    /// <param name="cancellation">Gives up.</param>
    /// <exception cref="ConfigurationException">The host has no program for it.</exception>
    public async Task<string?> CheckAsync(string image, bool isFrozen, CancellationToken cancellation)
    {
        string program = FindTool(checker) ?? throw new ConfigurationException($"the host has no {checker} to check an image with; install {package}");
        ChildRun run = await ChildRun.StartAsync(program, [.. checkOptions, image], s_limit, cancellation).ConfigureAwait(false);
        if (isFrozen && WhileFrozen is { } allowed && run.ExitCode is 0 or 1 && run.Output.Split('\n').All(l => allowed.IsMatch(l)))
            return null;
        return run.ExitCode != 0 || run.Output.Contains(words, StringComparison.OrdinalIgnoreCase)
            ? $"{checker} {string.Join(' ', checkOptions)} ends with status {run.ExitCode}: {run.Output.Trim().ReplaceLineEndings(" | ")}"
            : null;
    }
}
