using System.Text.Json;
using Aerostat.Devices;
using Aerostat.Interrupts;
using Aerostat.Processors;

namespace Aerostat.Chipset.Tests;

/// <summary>A wire that remembers.</summary>
internal sealed class FakeLine : IInterruptLine
{
    public bool Level { get; private set; }

    public int Edges { get; private set; }

    public void Set(bool asserted)
    {
        if (asserted && !Level)
            Edges++;
        Level = asserted;
    }
}

/// <summary>Processor inputs that remember.</summary>
internal sealed class FakePins : IProcessorPins
{
    public volatile bool Requested;

    public int Nmis;

    public int Inits;

    public List<byte> Startups { get; } = [];

    public void SetInterruptRequest(bool asserted) => Requested = asserted;

    public void RaiseNmi() => Interlocked.Increment(ref Nmis);

    public void RaiseInit() => Inits++;

    public void RaiseStartup(byte vector) => Startups.Add(vector);
}

/// <summary>A time-stamp counter that runs with VM time.</summary>
internal sealed class FakeTimestamp(ManualTimeProvider time, long frequency = 2_000_000_000) : ITimestampCounter
{
    public ulong Offset { get; private set; }

    public long FrequencyHz => frequency;

    public event Action? Adjusted;

    public ulong Read() => (ulong)(time.Now / 1_000 * (frequency / 1_000_000) + time.Now % 1_000 * (frequency / 1_000_000) / 1_000) + Offset;

    public void Adjust(ulong offset)
    {
        Offset = offset;
        Adjusted?.Invoke();
    }
}

/// <summary>The far end of a serial line.</summary>
internal sealed class FakeBackend : ICharacterBackend
{
    public List<byte> Sent { get; } = [];

    public string Text => string.Concat(Sent.Select(b => (char)b));

    public void Write(ReadOnlySpan<byte> data) => Sent.AddRange(data);
}

/// <summary>A vCPU as the interrupt controllers see it.</summary>
internal sealed class FakeProcessor
{
    public FakeProcessor(Board board, int id, LocalApicOptions? options = null)
    {
        Timestamp = new FakeTimestamp(board.Time);
        Apic = new LocalApic(options ?? new LocalApicOptions { Id = id }, Pins, Timestamp, board.Fabric, board.Time);
    }

    public FakePins Pins { get; } = new();

    public FakeTimestamp Timestamp { get; }

    public LocalApic Apic { get; }

    public uint Read(uint offset) => (uint)Apic.ReadMmio(offset, 4);

    public void Write(uint offset, uint value) => Apic.WriteMmio(offset, 4, value);

    public void Enable() => Write(0xF0, 0x1FF);

    public void EnableX2()
    {
        Assert.True(Apic.WriteMsr(0x1B, Msr(0x1B) | 0xC00));
        Assert.True(Apic.WriteMsr(0x80F, 0x1FF));
    }

    public ulong Msr(uint index)
    {
        Assert.True(Apic.ReadMsr(index, out ulong value), $"RDMSR {index:x} faults");
        return value;
    }

    public void Wrmsr(uint index, ulong value) => Assert.True(Apic.WriteMsr(index, value), $"WRMSR {index:x} faults");

    /// <summary>Takes one interrupt if the wire asks for it: -1 none.</summary>
    public int Take() => Pins.Requested ? Apic.AcknowledgeInterrupt() : -1;

    public void Eoi() => Write(0xB0, 0);
}

/// <summary>Interrupt controllers wired together.</summary>
internal sealed class Board
{
    public Board(int processors = 1, bool enable = true)
    {
        Pic = new Pic(Fabric.ExternalInterrupt);
        Fabric.ExternalInterruptController = Pic;
        IoApic = new IoApic(Fabric);
        Router = new GsiRouter(Pic, IoApic);
        Processors = [.. Enumerable.Range(0, processors).Select(i => new FakeProcessor(this, i))];
        if (enable)
        {
            foreach (FakeProcessor processor in Processors)
                processor.Enable();
        }
    }

    public ManualTimeProvider Time { get; } = new();

    public InterruptFabric Fabric { get; } = new();

    public Pic Pic { get; }

    public IoApic IoApic { get; }

    public GsiRouter Router { get; }

    public FakeProcessor[] Processors { get; }

    public FakeProcessor this[int index] => Processors[index];

    public void Redirect(int pin, ulong entry)
    {
        IoApic.WriteMmio(0, 4, (ulong)(0x11 + 2 * pin));
        IoApic.WriteMmio(0x10, 4, entry >> 32);
        IoApic.WriteMmio(0, 4, (ulong)(0x10 + 2 * pin));
        IoApic.WriteMmio(0x10, 4, (uint)entry);
    }

    public ulong Redirection(int pin)
    {
        IoApic.WriteMmio(0, 4, (ulong)(0x11 + 2 * pin));
        ulong high = IoApic.ReadMmio(0x10, 4);
        IoApic.WriteMmio(0, 4, (ulong)(0x10 + 2 * pin));
        return high << 32 | IoApic.ReadMmio(0x10, 4);
    }
}

internal static class DeviceExtensions
{
    public static byte In(this IPortDevice device, ushort port) => (byte)device.ReadPort(port, 1);

    public static void Out(this IPortDevice device, ushort port, byte value) => device.WritePort(port, 1, value);

    /// <summary>What a saved state looks like on disk.</summary>
    public static string ToJson<T>(this T state) => JsonSerializer.Serialize(state);
}
