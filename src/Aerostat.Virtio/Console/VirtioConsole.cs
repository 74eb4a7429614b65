using System.Buffers.Binary;
using Aerostat.State;

namespace Aerostat.Virtio;

/// <summary>Takes what a guest writes to a port of a console. On the device's thread; may block for a moment, which holds the guest's writer up.</summary>
/// <param name="bytes">Valid only during the call.</param>
public delegate void ConsoleOutput(ReadOnlySpan<byte> bytes);

/// <summary>
/// A console: virtio 1.2, 5.3, with one port or several. What the host sends waits in a bounded buffer for each port until the guest has buffers for it.
/// <para>Not emulated: the emergency write register, adding and removing ports while the machine runs.</para>
/// </summary>
/// <remarks>
/// With one port there are two queues and no protocol. With more (MULTIPORT) there are also two control queues: the driver asks with
/// DEVICE_READY, is told of each port and its name, answers PORT_READY and, as programs open and close it, PORT_OPEN.
/// </remarks>
public sealed class VirtioConsole : VirtioDevice, ISavable<VirtioConsoleSavedState>
{
    /// <summary>Most ports.</summary>
    public const int MaxPorts = 16;

    /// <summary>Bytes that wait for the guest on one port.</summary>
    public const int BufferSize = 64 << 10;

    private const ulong FeatureSize = 1 << 0, FeatureMultiPort = 1 << 1;
    private const ushort DeviceReady = 0, PortAdd = 1, PortReady = 3, ConsolePort = 4, Resize = 5, PortOpen = 6, PortName = 7;
    private const int ControlSize = 8, MostControls = 64, Chunk = 4096;
    // Of one chain; the rest is not looked at.
    private const ulong MostOutput = 1 << 20;

    private readonly DescriptorChain _chain = new();
    private readonly Port[] _ports;
    private readonly Queue<byte[]> _controls = new();
    private readonly byte[] _buffer = new byte[Chunk];
    private ushort _columns = 80, _rows = 25;
    private long _in, _out;

    private sealed class Port(string name, ConsoleOutput? output)
    {
        public string Name => name;

        public ConsoleOutput? Output => output;

        public Queue<byte> Waiting { get; } = new();

        /// <summary>A program of the guest has it open.</summary>
        public bool GuestOpen { get; set; }
    }

    /// <summary>Makes the device.</summary>
    /// <param name="name">Its name.</param>
    /// <param name="ports">Name and output of each port; the first is the console. With one port there is no multi-port protocol.</param>
    /// <param name="packed">Offers the packed ring.</param>
    /// <param name="context">The machine.</param>
    public VirtioConsole(string name, IReadOnlyList<(string Name, ConsoleOutput? Output)> ports, bool packed, VirtioContext context)
        : base(
            name, VirtioDeviceId.Console, FeatureSize | (ports.Count > 1 ? FeatureMultiPort : 0) | (packed ? VirtioFeatures.RingPacked : 0),
            [.. Enumerable.Repeat((ushort)64, ports.Count > 1 ? 2 * (ports.Count + 1) : 2)], context)
    {
        ArgumentOutOfRangeException.ThrowIfZero(ports.Count);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(ports.Count, MaxPorts);
        _ports = [.. ports.Select(p => new Port(p.Name, p.Output))];
    }

    /// <inheritdoc/>
    public override int ConfigLength => 8;

    /// <summary>Ports.</summary>
    public int PortCount => _ports.Length;

    /// <inheritdoc/>
    public override IEnumerable<(string Name, long Value)> Counters => [.. base.Counters, ("bytes-in", Volatile.Read(ref _in)), ("bytes-out", Volatile.Read(ref _out))];

    private bool MultiPort => HasFeature(FeatureMultiPort);

    /// <summary>Sends to a port; answers how many bytes there was room for. More room comes as the guest reads.</summary>
    public int Send(int port, ReadOnlySpan<byte> bytes)
    {
        int count;
        lock (Gate)
        {
            Port target = _ports[port];
            count = Math.Min(bytes.Length, BufferSize - target.Waiting.Count);
            foreach (byte b in bytes[..count])
                target.Waiting.Enqueue(b);
        }
        SignalWork();
        return count;
    }

    /// <summary>Whether a program of the guest has a port open; with one port always, once there is a driver.</summary>
    public bool IsOpen(int port)
    {
        lock (Gate)
            return IsRunning && (!MultiPort || _ports[port].GuestOpen);
    }

    /// <summary>The size of the terminal behind the first port.</summary>
    public void SetSize(ushort columns, ushort rows)
    {
        lock (Gate)
        {
            (_columns, _rows) = (columns, rows);
            if (MultiPort)
                AnnounceSize();
            ConfigChanged();
        }
        SignalWork();
    }

    /// <inheritdoc/>
    protected override void FillConfig(Span<byte> space)
    {
        BinaryPrimitives.WriteUInt16LittleEndian(space, _columns);
        BinaryPrimitives.WriteUInt16LittleEndian(space[2..], _rows);
        BinaryPrimitives.WriteUInt32LittleEndian(space[4..], (uint)_ports.Length);
    }

    /// <inheritdoc/>
    protected override void OnReset()
    {
        _controls.Clear();
        foreach (Port port in _ports)
            port.GuestOpen = false;
    }

    // Port 0 has queues 0 and 1, the control queues are 2 and 3, port n from 1 on has 2n + 2 and 2n + 3 (5.3.2).
    private static int InputOf(int port) => port == 0 ? 0 : (2 * port) + 2;

    private int PortOf(int queue) => queue < 2 ? 0 : MultiPort && queue >= 4 ? (queue / 2) - 1 : -1;

    /// <inheritdoc/>
    protected override void Serve()
    {
        foreach (Virtqueue queue in Queues)
        {
            // Even numbers are what the guest receives.
            if ((queue.Index & 1) == 0)
                continue;
            while (!IsPausing)
            {
                lock (Gate)
                {
                    if (!queue.TryTake(_chain))
                    {
                        if (queue.EnableNotification())
                            continue;
                        break;
                    }
                    BeginWork(queue);
                }
                try
                {
                    if (queue.Index == 3)
                        TakeControl();
                    else
                        TakeOutput(PortOf(queue.Index));
                }
                finally
                {
                    lock (Gate)
                    {
                        queue.Complete(_chain, 0);
                        queue.Signal();
                        EndWork(queue);
                    }
                }
            }
        }
        for (int port = 0; port < _ports.Length && !IsPausing; port++)
            GiveInput(port);
        GiveControls();
    }

    private void TakeOutput(int port)
    {
        ulong length = Math.Min(_chain.ReadableLength, MostOutput);
        for (ulong at = 0; at < length;)
        {
            int count = _chain.Read(Memory, at, _buffer.AsSpan(0, (int)Math.Min(Chunk, length - at)));
            if (count == 0)
                return;
            at += (ulong)count;
            Interlocked.Add(ref _out, count);
            if (port >= 0)
                _ports[port].Output?.Invoke(_buffer.AsSpan(0, count));
        }
    }

    // The guest's buffers stay in the ring until there is something for them.
    private void GiveInput(int index)
    {
        Port port = _ports[index];
        lock (Gate)
        {
            // Linux throws away what comes to a port that no program has open.
            if (MultiPort ? !port.GuestOpen : index > 0)
                return;
            Virtqueue queue = Queues[InputOf(index)];
            bool given = false;
            // Not for ever under the lock, should the guest offer buffers without room.
            for (int turns = queue.Size; port.Waiting.Count > 0 && !IsPausing; turns--)
            {
                if (turns == 0)
                {
                    SignalWork();
                    break;
                }
                if (!queue.TryTake(_chain))
                {
                    if (queue.EnableNotification())
                        continue;
                    break;
                }
                int count = (int)Math.Min((ulong)Math.Min(port.Waiting.Count, Chunk), _chain.WritableLength);
                for (int i = 0; i < count; i++)
                    _buffer[i] = port.Waiting.Dequeue();
                _chain.Write(Memory, 0, _buffer.AsSpan(0, count));
                queue.Complete(_chain, (uint)count);
                Interlocked.Add(ref _in, count);
                given = true;
            }
            if (given)
                queue.Signal();
        }
    }

    private void TakeControl()
    {
        Span<byte> message = stackalloc byte[ControlSize];
        if (_chain.Read(Memory, 0, message) < ControlSize)
        {
            Warn("a control message is too short");
            return;
        }
        uint port = BinaryPrimitives.ReadUInt32LittleEndian(message);
        ushort what = BinaryPrimitives.ReadUInt16LittleEndian(message[4..]), value = BinaryPrimitives.ReadUInt16LittleEndian(message[6..]);
        lock (Gate)
        {
            switch (what)
            {
                case DeviceReady when value == 1:
                    for (int i = 0; i < _ports.Length; i++)
                        Announce(i, PortAdd, 1);
                    break;
                case PortReady when value == 1 && port < (uint)_ports.Length:
                    if (port == 0)
                    {
                        Announce(0, ConsolePort, 1);
                        AnnounceSize();
                    }
                    Announce((int)port, PortName, 1, System.Text.Encoding.ASCII.GetBytes(_ports[port].Name));
                    // Our end is always there.
                    Announce((int)port, PortOpen, 1);
                    break;
                case PortOpen when port < (uint)_ports.Length:
                    _ports[port].GuestOpen = value == 1;
                    break;
            }
        }
    }

    // Rows first: that is how Linux reads it (the specification has columns first).
    private void AnnounceSize() => Announce(0, Resize, 0, [(byte)_rows, (byte)(_rows >> 8), (byte)_columns, (byte)(_columns >> 8)]);

    // Lock held. A driver that asks without reading the answers does not get more of them.
    private void Announce(int port, ushort what, ushort value, ReadOnlySpan<byte> more = default)
    {
        if (_controls.Count >= MostControls)
            return;
        byte[] message = new byte[ControlSize + more.Length];
        BinaryPrimitives.WriteInt32LittleEndian(message, port);
        BinaryPrimitives.WriteUInt16LittleEndian(message.AsSpan(4), what);
        BinaryPrimitives.WriteUInt16LittleEndian(message.AsSpan(6), value);
        more.CopyTo(message.AsSpan(ControlSize));
        _controls.Enqueue(message);
    }

    private void GiveControls()
    {
        lock (Gate)
        {
            if (!MultiPort)
                return;
            Virtqueue queue = Queues[2];
            bool given = false;
            while (_controls.Count > 0 && !IsPausing)
            {
                if (!queue.TryTake(_chain))
                {
                    if (queue.EnableNotification())
                        continue;
                    break;
                }
                queue.Complete(_chain, (uint)_chain.Write(Memory, 0, _controls.Dequeue()));
                given = true;
            }
            if (given)
                queue.Signal();
        }
    }

    /// <inheritdoc/>
    public VirtioConsoleSavedState Save()
    {
        lock (Gate)
        {
            return new VirtioConsoleSavedState
            {
                Device = SaveDevice(),
                Columns = _columns,
                Rows = _rows,
                Waiting = [.. _ports.Select(p => p.Waiting.ToArray())],
                GuestOpen = [.. _ports.Select(p => p.GuestOpen)],
                Controls = [.. _controls],
            };
        }
    }

    /// <inheritdoc/>
    public void Restore(VirtioConsoleSavedState state)
    {
        ArgumentNullException.ThrowIfNull(state);
        lock (Gate)
        {
            RestoreDevice(state.Device);
            (_columns, _rows) = (state.Columns, state.Rows);
            for (int i = 0; i < _ports.Length; i++)
            {
                _ports[i].Waiting.Clear();
                if (i < state.Waiting.Length)
                {
                    foreach (byte b in state.Waiting[i].AsSpan(0, Math.Min(state.Waiting[i].Length, BufferSize)))
                        _ports[i].Waiting.Enqueue(b);
                }
                _ports[i].GuestOpen = i < state.GuestOpen.Length && state.GuestOpen[i];
            }
            foreach (byte[] control in state.Controls.Take(MostControls))
                _controls.Enqueue(control);
        }
    }
}

/// <summary>A console at rest.</summary>
[SavedState("virtio-console", 1)]
public sealed record VirtioConsoleSavedState
{
    /// <summary>The common part.</summary>
    public VirtioDeviceSavedState Device { get; init; } = new();
    /// <summary>Width of the terminal.</summary>
    public ushort Columns { get; init; }
    /// <summary>Height of the terminal.</summary>
    public ushort Rows { get; init; }
    /// <summary>What waits for the guest, by port.</summary>
    public byte[][] Waiting { get; init; } = [];
    /// <summary>Whether the guest has it open, by port.</summary>
    public bool[] GuestOpen { get; init; } = [];
    /// <summary>Control messages that wait.</summary>
    public byte[][] Controls { get; init; } = [];
}
