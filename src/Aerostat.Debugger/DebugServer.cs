using System.Net;
using System.Net.Sockets;
using Aerostat.Machine;

namespace Aerostat.Debugger;

/// <summary>
/// Listens for GDB and serves one debugger at a time; the next may come when it has gone. Anyone who can connect controls the guest
/// completely, so it listens on loopback, or on a socket that only its owner may open, unless told otherwise.
/// </summary>
public sealed class DebugServer : IAsyncDisposable
{
    private readonly VirtualMachine machine;
    private readonly DebugEndpoint endpoint;
    private readonly Socket listener;
    private readonly CancellationTokenSource over = new();
    private readonly Task serving;

    /// <summary>Starts to listen.</summary>
    /// <exception cref="SocketException">The port or path is taken, or may not be used.</exception>
    public DebugServer(VirtualMachine machine, DebugEndpoint endpoint)
    {
        ArgumentNullException.ThrowIfNull(machine);
        ArgumentNullException.ThrowIfNull(endpoint);
        this.machine = machine;
        RemoveStale(endpoint);
        listener = new Socket(endpoint.Address.AddressFamily, SocketType.Stream, endpoint.Path is null ? ProtocolType.Tcp : ProtocolType.Unspecified);
        try
        {
            if (endpoint.Path is null)
                listener.SetSocketOption(SocketOptionLevel.Socket, SocketOptionName.ReuseAddress, true);
            listener.Bind(endpoint.Address);
            if (endpoint.Path is { } path && !OperatingSystem.IsWindows())
                File.SetUnixFileMode(path, UnixFileMode.UserRead | UnixFileMode.UserWrite);
            listener.Listen(1);
        }
        catch
        {
            listener.Dispose();
            throw;
        }
        this.endpoint = listener.LocalEndPoint is IPEndPoint bound ? new DebugEndpoint(bound) : endpoint;
        serving = Task.Run(Serve);
    }

    /// <summary>Where it listens; with port 0, the port the host chose.</summary>
    public DebugEndpoint Endpoint => endpoint;

    // A socket file that nobody listens on is left over from a machine that was killed.
    private static void RemoveStale(DebugEndpoint endpoint)
    {
        if (endpoint.Path is not { } path || !File.Exists(path))
            return;
        using Socket probe = new(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
        try
        {
            probe.Connect(endpoint.Address);
        }
        catch (SocketException e) when (e.SocketErrorCode == SocketError.ConnectionRefused)
        {
            File.Delete(path);
        }
    }

    private async Task Serve()
    {
        try
        {
            while (!over.IsCancellationRequested)
            {
                using Socket connection = await listener.AcceptAsync(over.Token).ConfigureAwait(false);
                await ServeOne(connection).ConfigureAwait(false);
            }
        }
        catch (Exception e) when (e is OperationCanceledException or SocketException or ObjectDisposedException)
        {
            // The end: nobody can connect any more.
        }
    }

    private async Task ServeOne(Socket connection)
    {
        MachineDebugger debugger;
        try
        {
            if (endpoint.Path is null)
                connection.NoDelay = true;
            debugger = machine.AttachDebugger();
        }
        catch (Exception e) when (e is InvalidOperationException or SocketException)
        {
            return;
        }
        try
        {
            NetworkStream stream = new(connection, ownsSocket: false);
            await using (stream.ConfigureAwait(false))
                await new GdbSession(debugger, stream).RunAsync(over.Token).ConfigureAwait(false);
        }
        catch (Exception e) when (e is IOException or OperationCanceledException or InvalidOperationException)
        {
            // The debugger has gone away without a word, or the machine has.
        }
        finally
        {
            await debugger.DetachAsync().ConfigureAwait(false);
        }
    }

    /// <summary>Stops listening; a debugger that is attached is detached and the guest goes on.</summary>
    public async ValueTask DisposeAsync()
    {
        await over.CancelAsync().ConfigureAwait(false);
        listener.Dispose();
        await serving.ConfigureAwait(false);
        if (endpoint.Path is { } path)
            File.Delete(path);
        over.Dispose();
    }
}
