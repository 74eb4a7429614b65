using System.Collections.Concurrent;

namespace Aerostat.HyperV;

/// <summary>Takes messages that the guest posts. Called on a vCPU's thread: returns at once.</summary>
public interface IMessagePort
{
    /// <summary>Takes a message, or says why not.</summary>
    /// <param name="type">The guest's type; never 0, never with bit 31.</param>
    /// <param name="payload">Up to 240 bytes; valid during the call.</param>
    HypercallStatus Post(uint type, ReadOnlySpan<byte> payload);
}

/// <summary>Takes events that the guest signals. Called on a vCPU's thread: returns at once.</summary>
public interface IEventPort
{
    /// <summary>Takes a signal, or says why not.</summary>
    HypercallStatus Signal(int flag);
}

/// <summary>Where a partition's connections lead. Any thread.</summary>
public sealed class Connections
{
    private readonly ConcurrentDictionary<uint, (IMessagePort? Messages, IEventPort? Events)> ports = new();

    /// <summary>Adds a connection; false: the number is taken.</summary>
    public bool Add(uint id, IMessagePort port) => ports.TryAdd(id, (port, null));

    /// <summary>Adds a connection; false: the number is taken.</summary>
    public bool Add(uint id, IEventPort port) => ports.TryAdd(id, (null, port));

    /// <summary>Takes a connection away.</summary>
    public bool Remove(uint id) => ports.TryRemove(id, out _);

    internal HypercallStatus Post(uint id, uint type, ReadOnlySpan<byte> payload) =>
        !ports.TryGetValue(id, out (IMessagePort? Messages, IEventPort? Events) port) ? HypercallStatus.InvalidConnectionId
        : port.Messages is { } messages ? messages.Post(type, payload) : HypercallStatus.InvalidPortId;

    internal HypercallStatus Signal(uint id, int flag) =>
        !ports.TryGetValue(id, out (IMessagePort? Messages, IEventPort? Events) port) ? HypercallStatus.InvalidConnectionId
        : port.Events is { } events ? events.Signal(flag) : HypercallStatus.InvalidPortId;
}
