using System.Net.Sockets;
using System.Runtime.Versioning;
using Aerostat.Platform;

namespace Aerostat.Control;

/// <summary>A control socket that listens. Clients that connect wait until a <see cref="ControlServer"/> takes it over.</summary>
public sealed class ControlListener : IDisposable
{
    private const UnixFileMode OwnerOnly = UnixFileMode.UserRead | UnixFileMode.UserWrite;
    private const int Backlog = 16;

    // Longest time that another process' start or end can hold the lock.
    private static readonly TimeSpan s_lockPatience = TimeSpan.FromSeconds(5), s_probePatience = TimeSpan.FromSeconds(2);

    private readonly ControlEndpoint endpoint;
    private int disposed;

    private ControlListener(ControlEndpoint endpoint, Socket socket)
    {
        this.endpoint = endpoint;
        Socket = socket;
    }

    /// <summary>Where it listens.</summary>
    public ControlEndpoint Endpoint => endpoint;

    internal Socket Socket { get; }

    /// <summary>
    /// Makes the socket, and for a name the folder (mode 0700). A socket that nobody listens on is left over from a machine that was killed, and
    /// is replaced.
    /// </summary>
    /// <exception cref="ControlException">Another machine has it, or the host refuses.</exception>
    public static ControlListener Open(ControlEndpoint endpoint)
    {
        ArgumentNullException.ThrowIfNull(endpoint);
        if (OperatingSystem.IsWindows())
            throw new ControlException(ControlErrorKind.Failed, "control sockets need a Unix host; leave --name and --control out");
        UnixDomainSocketEndPoint address = endpoint.Address;
        try
        {
            if (endpoint.Name is not null)
                MakeFolder(Path.GetDirectoryName(endpoint.Path)!);
            // Two machines that start at once must not remove each other's socket.
            using IDisposable? turn = Lock(endpoint);
            RemoveStale(endpoint, address);
            Socket socket = new(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
            try
            {
                socket.Bind(address);
                // Before anybody can connect.
                File.SetUnixFileMode(endpoint.Path, OwnerOnly);
                socket.Listen(Backlog);
                return new ControlListener(endpoint, socket);
            }
            catch
            {
                socket.Dispose();
                throw;
            }
        }
        catch (SocketException e) when (e.SocketErrorCode == SocketError.AddressAlreadyInUse)
        {
            throw Taken(endpoint);
        }
        catch (Exception e) when (e is SocketException or IOException or UnauthorizedAccessException)
        {
            throw new ControlException(ControlErrorKind.Failed, $"the control socket {endpoint.Path} cannot be made ({Reason(e)}); give another with --control PATH", e);
        }
    }

    // A folder that somebody else owns cannot be given this mode.
    [UnsupportedOSPlatform("windows")]
    private static void MakeFolder(string folder)
    {
        const UnixFileMode Mode = OwnerOnly | UnixFileMode.UserExecute;
        Directory.CreateDirectory(folder, Mode);
        if (File.GetUnixFileMode(folder) != Mode)
            File.SetUnixFileMode(folder, Mode);
    }

    // The runtime locks a file that is not shared with flock(2): the lock goes with its process, whatever becomes of that.
    [UnsupportedOSPlatform("windows")]
    private static FileStream? Lock(ControlEndpoint endpoint)
    {
        // A socket at a path of its own may be in anybody's folder.
        if ((endpoint.Name is null ? ControlEndpoint.Folders.FirstOrDefault(Directory.Exists) : Path.GetDirectoryName(endpoint.Path)) is not { } folder)
            return null;
        long until = Environment.TickCount64 + (long)s_lockPatience.TotalMilliseconds;
        while (true)
        {
            try
            {
                return new FileStream(Path.Combine(folder, ".lock"), new FileStreamOptions
                {
                    Mode = FileMode.OpenOrCreate,
                    Access = FileAccess.ReadWrite,
                    Share = FileShare.None,
                    UnixCreateMode = OwnerOnly,
                });
            }
            catch (IOException) when (Environment.TickCount64 < until)
            {
                Thread.Sleep(5);
            }
        }
    }

    private static void RemoveStale(ControlEndpoint endpoint, UnixDomainSocketEndPoint address)
    {
        switch (HostFile.KindOf(endpoint.Path))
        {
            case HostFileKind.None when new FileInfo(endpoint.Path).LinkTarget is null:
                return;
            case HostFileKind.Special:
                break;
            default:
                throw new ControlException(ControlErrorKind.Usage, $"the control socket {endpoint.Path} cannot be made: something else is there; give another path with --control, or remove it");
        }
        using Socket probe = new(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
        using CancellationTokenSource limit = new(s_probePatience);
        try
        {
            probe.ConnectAsync(address, limit.Token).AsTask().GetAwaiter().GetResult();
        }
        catch (SocketException e) when (e.SocketErrorCode == SocketError.ConnectionRefused)
        {
            File.Delete(endpoint.Path);
            return;
        }
        catch (OperationCanceledException)
        {
            // Somebody is there, only very busy.
        }
        throw Taken(endpoint);
    }

    private static ControlException Taken(ControlEndpoint endpoint) => new(ControlErrorKind.Usage, endpoint.Name is { } name
        ? $"--name: a machine named '{name}' is running already; choose another name, or end that one with 'aerostat stop {name}'"
        : $"--control: somebody listens at {endpoint.Path} already; choose another path");

    private static string Reason(Exception e) => e switch
    {
        SocketException { SocketErrorCode: SocketError.AddressNotAvailable } or DirectoryNotFoundException => "there is no such folder",
        UnauthorizedAccessException or SocketException { SocketErrorCode: SocketError.AccessDenied } => "permission denied",
        _ => e.Message.Split(" : '")[0].Split('\n')[0].TrimEnd('.'),
    };

    /// <summary>Stops listening and removes the socket.</summary>
    public void Dispose()
    {
        if (OperatingSystem.IsWindows() || Interlocked.Exchange(ref disposed, 1) != 0)
            return;
        IDisposable? turn = null;
        try
        {
            // The runtime removes the socket's file when it closes it: by then another machine's may be there, unless it has to wait.
            turn = Lock(endpoint);
            File.Delete(endpoint.Path);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            // Somebody has removed the folder; a later machine will not mind.
        }
        Socket.Dispose();
        turn?.Dispose();
    }
}
