using System.Net.Sockets;
using System.Text;

namespace Aerostat.Control;

/// <summary>Where a machine's control socket is.</summary>
/// <param name="Path">The socket's path.</param>
/// <param name="Name">The machine's name, or null where only the path is known.</param>
public sealed record ControlEndpoint(string Path, string? Name = null)
{
    private const string Folder = "aerostat", Suffix = ".sock", RootFolder = "/run/aerostat";

    // struct sockaddr_un: sun_path has 108 bytes with its final zero (unix(7)).
    private const int LongestPath = 107;

    /// <summary>
    /// Folders with control sockets, the one for new machines first: <c>$XDG_RUNTIME_DIR/aerostat</c>, and for root <c>/run/aerostat</c>.
    /// </summary>
    public static IReadOnlyList<string> Folders
    {
        get
        {
            List<string> found = [];
            if (Environment.GetEnvironmentVariable("XDG_RUNTIME_DIR") is { Length: > 0 } runtime && System.IO.Path.IsPathRooted(runtime))
                found.Add(System.IO.Path.Combine(runtime, Folder));
            if (Environment.IsPrivilegedProcess)
                found.Add(RootFolder);
            return found;
        }
    }

    /// <summary>The socket of a machine that is to be started under a name.</summary>
    /// <exception cref="ControlException">There is no place for sockets.</exception>
    public static ControlEndpoint ForNew(string name) => InFolder(Folders.FirstOrDefault() ?? throw NoFolder(), name);

    /// <summary>The socket of a machine that runs under a name, or would.</summary>
    /// <exception cref="ControlException">There is no place for sockets.</exception>
    public static ControlEndpoint Find(string name)
    {
        ControlEndpoint[] places = [.. Folders.Select(f => InFolder(f, name))];
        return places.FirstOrDefault(p => File.Exists(p.Path)) ?? places.FirstOrDefault() ?? throw NoFolder();
    }

    /// <summary>The sockets of all machines that were started under a name, by name.</summary>
    public static IReadOnlyList<ControlEndpoint> List() =>
    [
        .. Folders.Where(Directory.Exists).SelectMany(f => Directory.EnumerateFiles(f, "*" + Suffix))
            .Select(f => new ControlEndpoint(f, System.IO.Path.GetFileName(f)[..^Suffix.Length]))
            .OrderBy(e => e.Name, StringComparer.Ordinal),
    ];

    /// <summary>What sockets call it.</summary>
    /// <exception cref="ControlException">The path is too long for one.</exception>
    internal UnixDomainSocketEndPoint Address => Encoding.UTF8.GetByteCount(Path) is > 0 and <= LongestPath
        ? new UnixDomainSocketEndPoint(Path)
        : throw new ControlException(ControlErrorKind.Usage, $"the path of a socket has 1 to {LongestPath} bytes, and '{Path}' has {Encoding.UTF8.GetByteCount(Path)}; give a shorter one with --control PATH");

    private static ControlEndpoint InFolder(string folder, string name) => new(System.IO.Path.Combine(folder, name + Suffix), name);

    private static ControlException NoFolder() =>
        new(ControlErrorKind.Usage, "there is no place for control sockets: XDG_RUNTIME_DIR is not set; set it to a folder of your own, or give --control PATH");
}
