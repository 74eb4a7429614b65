using Aerostat.Devices;
using Aerostat.Interrupts;
using Aerostat.State;

namespace Aerostat.Chipset;

/// <summary>
/// What kvm-unit-tests expects of a machine ("pc-testdev"): wires to the interrupt inputs, ports and memory-mapped bytes that read
/// back what was written.
/// <para>
/// Port 0x2000 + n: a non-zero byte asserts GSI n, zero releases it. 0xE0..0xE3: four bytes of latch. 0xE4..0xE7: "flush", a
/// write is taken and does nothing, because nothing is cached. 0xFF000000: 64 KiB of bytes behind the MMIO path.
/// </para>
/// <para>Not emulated: the byte-wide latch at 0xE8, which no test uses.</para>
/// </summary>
public sealed class TestDevice : IDevice, IPortDevice, IMmioDevice, ISavable<TestDeviceSavedState>
{
    /// <summary>First of the interrupt ports, one byte wide each.</summary>
    public const ushort InterruptPorts = 0x2000;

    /// <summary>Number of interrupt ports.</summary>
    public const int InterruptPortCount = PcLayout.IoApicPins;

    /// <summary>The latch and the flush port behind it.</summary>
    public static PortRange LatchPorts => new(0xE0, 8);

    /// <summary>Where the memory-mapped bytes are.</summary>
    public const ulong MmioBase = 0xFF00_0000;

    /// <summary>How many there are.</summary>
    public const ulong MmioSize = 0x1_0000;

    private readonly IInterruptLine[] _lines;
    private readonly byte[] _bytes = new byte[MmioSize];
    private readonly Lock _lineLock = new();
    private int _latch;
    private uint _levels;

    /// <summary>Makes the device.</summary>
    /// <param name="lines">The wire of each GSI, 0 to <see cref="InterruptPortCount"/> - 1.</param>
    public TestDevice(IEnumerable<IInterruptLine> lines)
    {
        _lines = [.. lines];
        ArgumentOutOfRangeException.ThrowIfNotEqual(_lines.Length, InterruptPortCount, nameof(lines));
        Interrupts = new InterruptPort(this);
    }

    /// <inheritdoc/>
    public string Name => "testdev";

    /// <summary>The device at <see cref="InterruptPorts"/>; it takes bytes, so that the bus cuts wider outputs.</summary>
    public IPortDevice Interrupts { get; }

    /// <inheritdoc/>
    public void Reset()
    {
        lock (_lineLock)
        {
            _levels = 0;
            foreach (IInterruptLine line in _lines)
                line.Set(false);
        }
        Array.Clear(_bytes);
        _latch = 0;
    }

    /// <inheritdoc/>
    public uint ReadPort(ushort port, int size)
    {
        int first = port - LatchPorts.First;
        if (first >= 4)
            return 0;
        return (uint)Volatile.Read(ref _latch) >> (first * 8);
    }

    /// <inheritdoc/>
    public void WritePort(ushort port, int size, uint value)
    {
        int first = port - LatchPorts.First;
        if (first >= 4)
            return;
        uint mask = (size >= 4 ? uint.MaxValue : (1u << (size * 8)) - 1) << (first * 8);
        int before;
        do
            before = Volatile.Read(ref _latch);
        while (Interlocked.CompareExchange(ref _latch, (int)(((uint)before & ~mask) | ((value << (first * 8)) & mask)), before) != before);
    }

    /// <inheritdoc/>
    public ulong ReadMmio(ulong offset, int size)
    {
        ulong value = 0;
        for (int i = 0; i < size; i++)
            value |= (ulong)_bytes[(offset + (ulong)i) & (MmioSize - 1)] << (i * 8);
        return value;
    }

    /// <inheritdoc/>
    public void WriteMmio(ulong offset, int size, ulong value)
    {
        for (int i = 0; i < size; i++)
            _bytes[(offset + (ulong)i) & (MmioSize - 1)] = (byte)(value >> (i * 8));
    }

    /// <inheritdoc/>
    public TestDeviceSavedState Save()
    {
        lock (_lineLock)
            return new TestDeviceSavedState { Bytes = [.. _bytes], Latch = (uint)Volatile.Read(ref _latch), Levels = _levels };
    }

    /// <inheritdoc/>
    public void Restore(TestDeviceSavedState state)
    {
        Array.Clear(_bytes);
        state.Bytes.AsSpan(0, Math.Min(state.Bytes.Length, _bytes.Length)).CopyTo(_bytes);
        _latch = (int)state.Latch;
        for (int i = 0; i < _lines.Length; i++)
            SetLine(i, (state.Levels >> i & 1) != 0);
    }

    private void SetLine(int line, bool asserted)
    {
        lock (_lineLock)
        {
            _levels = asserted ? _levels | 1u << line : _levels & ~(1u << line);
            _lines[line].Set(asserted);
        }
    }

    private sealed class InterruptPort(TestDevice device) : IPortDevice
    {
        public uint ReadPort(ushort port, int size) => 0;

        public void WritePort(ushort port, int size, uint value)
        {
            int line = port - InterruptPorts;
            if ((uint)line < (uint)InterruptPortCount)
                device.SetLine(line, (byte)value != 0);
        }
    }
}

/// <summary>A test device at rest.</summary>
[SavedState("testdev", 1)]
public sealed record TestDeviceSavedState
{
    /// <summary>The memory-mapped bytes.</summary>
    public byte[] Bytes { get; init; } = [];
    /// <summary>The latch.</summary>
    public uint Latch { get; init; }
    /// <summary>The wires, bit for each.</summary>
    public uint Levels { get; init; }
}
