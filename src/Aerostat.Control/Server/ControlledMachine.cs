using System.Net.Sockets;
using Aerostat.Backup;
using Aerostat.Debugger;
using Aerostat.Machine;
using Aerostat.Snapshots;

namespace Aerostat.Control;

/// <summary>A machine as the control interface sees it: with what its process knows beside it.</summary>
/// <param name="machine">The machine; whoever made it disposes of it, after this.</param>
/// <param name="product">The program's version.</param>
public sealed class ControlledMachine(VirtualMachine machine, string product) : IAsyncDisposable
{
    private readonly SemaphoreSlim gate = new(1);
    private DebugServer? given, opened;

    /// <summary>The machine.</summary>
    public VirtualMachine Machine => machine;

    /// <summary>The program's version.</summary>
    public string Product => product;

    /// <summary>When it was made.</summary>
    public DateTimeOffset Started { get; } = TimeProvider.System.GetUtcNow();

    /// <summary>Why the machine runs on the accelerator it runs on, one line.</summary>
    public string AcceleratorReason { get; init; } = "it was asked for";

    /// <summary>What takes the machine's snapshots, or null; whoever made it disposes of it.</summary>
    public MachineSnapshots? Snapshots { get; init; }

    /// <summary>What backs up the machine's disks.</summary>
    public MachineBackups Backups { get; } = new(machine, $"aerostat {product}");

    /// <summary>A debug server that is there already; whoever made it disposes of it.</summary>
    public DebugServer? Debug
    {
        get => given ?? opened;
        init => given = value;
    }

    /// <summary>Lets a debugger attach; when that is possible already, answers where.</summary>
    /// <param name="endpoint">Where, or null: where it is possible, else a port of loopback that the host chooses.</param>
    /// <exception cref="ControlException">It cannot listen there, or listens elsewhere.</exception>
    public async Task<DebugEndpoint> OpenDebugAsync(DebugEndpoint? endpoint)
    {
        await gate.WaitAsync().ConfigureAwait(false);
        try
        {
            if (Debug is { } there)
            {
                return endpoint is null || endpoint.Address.Equals(there.Endpoint.Address)
                    ? there.Endpoint
                    : throw new ControlException(ControlErrorKind.Refused, $"debug: the machine listens for a debugger at {there.Endpoint.ForGdb} already; attach there");
            }
            opened = new DebugServer(machine, endpoint ?? DebugEndpoint.Parse("0"));
            machine.Journal.Write("debug-opened", $"listens for a debugger at {opened.Endpoint.ForGdb}");
            return opened.Endpoint;
        }
        catch (Exception e) when (e is SocketException or IOException or UnauthorizedAccessException)
        {
            throw new ControlException(ControlErrorKind.Failed, $"debug: cannot listen on {endpoint?.ForGdb} ({e.Message}); choose another port or path", e);
        }
        finally
        {
            gate.Release();
        }
    }

    /// <summary>Closes what was opened for clients.</summary>
    public async ValueTask DisposeAsync()
    {
        if (Interlocked.Exchange(ref opened, null) is { } server)
            await server.DisposeAsync().ConfigureAwait(false);
        gate.Dispose();
    }
}
