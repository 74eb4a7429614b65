using System.Collections.Concurrent;
using Aerostat.Chipset;
using Aerostat.Devices;
using Aerostat.State;

namespace Aerostat.HyperV;

/// <summary>
/// What kvm-unit-tests expects for its SynIC tests ("hyperv-testdev"): a 32-bit write to port 0x3000 makes and breaks connections to a source of
/// a processor, and raises sources. Bits 7..0 source, 15..8 processor, 23..16 command, 31..24 connection.
/// <para>Not emulated: nothing. Routes (commands 1 and 2) need no preparation here.</para>
/// </summary>
public sealed class HyperVTestDevice(HyperVPartition partition) : IDevice, IPortDevice, ISavable<HyperVTestDeviceSavedState>
{
    private const uint Raise = 3, AddMessages = 4, RemoveMessages = 5, AddEvents = 6, RemoveEvents = 7;

    private readonly ConcurrentDictionary<uint, uint> made = new();

    /// <summary>Where it is.</summary>
    public static PortRange Ports => new(0x3000, 4);

    /// <inheritdoc/>
    public string Name => "hyperv-testdev";

    /// <inheritdoc/>
    public void Reset()
    {
        foreach (uint id in made.Keys)
            Remove(id);
    }

    /// <inheritdoc/>
    public uint ReadPort(ushort port, int size) => uint.MaxValue;

    /// <inheritdoc/>
    public void WritePort(ushort port, int size, uint value)
    {
        if (port != Ports.First || size != 4)
            return;
        int sint = (int)(value & 0xFF), processor = (int)(value >> 8 & 0xFF);
        uint command = value >> 16 & 0xFF, id = value >> 24;
        if (command is RemoveMessages or RemoveEvents)
        {
            Remove(id);
            return;
        }
        if (sint >= SyntheticInterruptController.Sources || processor >= partition.Processors.Count)
            return;
        switch (command)
        {
            case Raise:
                partition.Processors[processor].Raise(sint);
                break;
            case AddMessages or AddEvents:
                Add(id, value);
                break;
        }
    }

    /// <inheritdoc/>
    public HyperVTestDeviceSavedState Save() => new() { Connections = [.. made.Values] };

    /// <inheritdoc/>
    public void Restore(HyperVTestDeviceSavedState state)
    {
        ArgumentNullException.ThrowIfNull(state);
        Reset();
        foreach (uint value in state.Connections)
            WritePort(Ports.First, 4, value);
    }

    private void Add(uint id, uint value)
    {
        Port port = new(partition.Processors[(int)(value >> 8 & 0xFF)], (int)(value & 0xFF), (int)id);
        if ((value >> 16 & 0xFF) == AddMessages ? partition.Connections.Add(id, (IMessagePort)port) : partition.Connections.Add(id, (IEventPort)port))
            made[id] = value;
    }

    private void Remove(uint id)
    {
        if (made.TryRemove(id, out _))
            partition.Connections.Remove(id);
    }

    // Messages come back as they were posted; an event sets the flag that has the connection's number.
    private sealed class Port(HyperVProcessor processor, int sint, int id) : IMessagePort, IEventPort
    {
        public HypercallStatus Post(uint type, ReadOnlySpan<byte> payload) =>
            processor.Post(sint, new SynicMessage(type, (uint)id, payload.ToArray())) ? HypercallStatus.Success : HypercallStatus.InsufficientBuffers;

        public HypercallStatus Signal(int flag)
        {
            processor.Signal(sint, id);
            return HypercallStatus.Success;
        }
    }
}

/// <summary>The test device at rest.</summary>
[SavedState("hyperv-testdev", 1)]
public sealed record HyperVTestDeviceSavedState
{
    /// <summary>The words that made the connections.</summary>
    public uint[] Connections { get; init; } = [];
}
