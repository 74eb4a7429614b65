using System.Net.Sockets;

namespace Aerostat.Control;

/// <summary>
/// Answers the clients of one machine. Whoever can connect controls the machine completely, so the socket is its owner's alone.
/// </summary>
/// <remarks>
/// What a client may cost is bounded: lines, answers, clients and the time they take; see <see cref="ControlProtocol"/>. Everything runs on
/// threads of the pool, and what waits, waits without one.
/// </remarks>
public sealed class ControlServer : IAsyncDisposable
{
    // Time that answers under way have when the machine is over.
    private static readonly TimeSpan s_grace = TimeSpan.FromSeconds(2);

    private readonly ControlListener listener;
    private readonly CancellationTokenSource stopping = new(), aborting = new();
    private readonly Dictionary<ControlConnection, Task> connections = [];
    private readonly Lock gate = new();
    private readonly Task accepting;

    /// <summary>Starts to answer.</summary>
    /// <param name="listener">The socket; the server disposes of it.</param>
    /// <param name="machine">The machine.</param>
    /// <param name="verbs">What can be asked: <see cref="ControlVerbs.All"/>, or more.</param>
    public ControlServer(ControlListener listener, ControlledMachine machine, IReadOnlyList<ControlVerb> verbs)
    {
        ArgumentNullException.ThrowIfNull(listener);
        ArgumentNullException.ThrowIfNull(machine);
        this.listener = listener;
        Machine = machine;
        Verbs = verbs.ToDictionary(v => v.Name, StringComparer.Ordinal);
        Hello = new ControlHello(
            ControlProtocol.Name, ControlProtocol.Version, machine.Machine.Options.Name, Environment.ProcessId, machine.Product,
            [.. Verbs.Keys.Order(StringComparer.Ordinal)]);
        accepting = Task.Run(AcceptAsync);
    }

    /// <summary>What clients hear first.</summary>
    public ControlHello Hello { get; }

    internal ControlledMachine Machine { get; }

    internal Dictionary<string, ControlVerb> Verbs { get; }

    /// <summary>No further requests.</summary>
    internal CancellationToken Stopping => stopping.Token;

    /// <summary>No further waiting either.</summary>
    internal CancellationToken Aborting => aborting.Token;

    private async Task AcceptAsync()
    {
        while (!stopping.IsCancellationRequested)
        {
            try
            {
                Socket socket = await listener.Socket.AcceptAsync(stopping.Token).ConfigureAwait(false);
                Admit(new ControlConnection(socket, this));
            }
            catch (SocketException) when (!stopping.IsCancellationRequested)
            {
                // No descriptors left, or the client has gone before its turn: the next may do better.
                await Task.Delay(100, CancellationToken.None).ConfigureAwait(false);
            }
            catch (Exception e) when (e is OperationCanceledException or ObjectDisposedException or SocketException)
            {
                return;
            }
        }
    }

    private void Admit(ControlConnection client)
    {
        lock (gate)
        {
            if (connections.Count >= ControlProtocol.MostClients)
            {
                // The one that has been silent longest makes room: clients that are stuck must not lock others out.
                if (connections.Keys.Where(c => !c.IsBusy).MinBy(c => c.LastUse) is { } idle)
                {
                    connections.Remove(idle);
                    idle.Close();
                }
                else
                {
                    _ = client.RefuseAsync($"{ControlProtocol.MostClients} clients are being served, which is as many as can be; try again later");
                    return;
                }
            }
            connections.Add(client, ServeAsync(client));
        }
    }

    private async Task ServeAsync(ControlConnection client)
    {
        await Task.Yield();
        await client.RunAsync().ConfigureAwait(false);
        lock (gate)
            connections.Remove(client);
    }

    /// <summary>Answers what has been asked, says the last events, and removes the socket.</summary>
    public async ValueTask DisposeAsync()
    {
        if (stopping.IsCancellationRequested)
            return;
        await stopping.CancelAsync().ConfigureAwait(false);
        listener.Dispose();
        await accepting.ConfigureAwait(false);
        Task[] serving;
        lock (gate)
            serving = [.. connections.Values];
        Task all = Task.WhenAll(serving);
        if (await Task.WhenAny(all, Task.Delay(s_grace)).ConfigureAwait(false) != all)
        {
            await aborting.CancelAsync().ConfigureAwait(false);
            lock (gate)
                foreach (ControlConnection client in connections.Keys)
                    client.Close();
        }
    }
}
