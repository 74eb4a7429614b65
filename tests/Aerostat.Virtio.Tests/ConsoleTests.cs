using System.Buffers.Binary;
using System.Text;
using Aerostat.Memory;

namespace Aerostat.Virtio.Tests;

/// <summary>The console by a driver of our own.</summary>
public sealed class ConsoleTests : IDisposable
{
    private const ulong MultiPort = 2, Data = 0x80_0000;

    private readonly GuestMemory _memory = new(new MemoryRegion(new(0), 16 << 20, "low"));
    private readonly List<string> _said = [];
    private readonly VirtioConsole _device;
    private readonly Driver _driver;

    public ConsoleTests()
    {
        _device = new VirtioConsole("console0", [("tty", b => Say(0, b)), ("agent", b => Say(1, b))], packed: false, new VirtioContext(_memory));
        _driver = new Driver(_memory, _device);
    }

    public void Dispose()
    {
        _device.Stop();
        _memory.Dispose();
    }

    private void Say(int port, ReadOnlySpan<byte> bytes) => _said.Add($"{port}:{Encoding.ASCII.GetString(bytes)}");

    private void Write(int queue, string text)
    {
        _driver.Fill(Data, Encoding.ASCII.GetBytes(text));
        _driver.Queues[queue].Add(new Buffer(Data, (uint)text.Length, false));
        _driver.Queues[queue].Kick();
        _driver.Settle();
        _driver.Queues[queue].MustTakeUsed();
    }

    private void Offer(int queue, uint length)
    {
        _driver.Queues[queue].Add(new Buffer(Data + 0x1_0000 + ((ulong)queue << 12), length, true));
        _driver.Queues[queue].Kick();
        _driver.Settle();
    }

    private string Received(int queue)
    {
        (_, uint count) = _driver.Queues[queue].MustTakeUsed();
        return Encoding.ASCII.GetString(_driver.Bytes(Data + 0x1_0000 + ((ulong)queue << 12), (int)count));
    }

    [Fact]
    public void OnePortNeedsNoProtocol()
    {
        _driver.Start(VirtioFeatures.Version1, 64);
        Assert.True(_device.IsOpen(0));
        Write(1, "hello host");
        Assert.Equal(["0:hello host"], _said);
        Offer(0, 4);
        Offer(0, 100);
        Assert.Null(_driver.Queues[0].TakeUsed());
        Assert.Equal(11, _device.Send(0, "hello guest"u8));
        _driver.Settle();
        // Both buffers are the same memory: the first held four bytes.
        Assert.Equal(4u, _driver.Queues[0].MustTakeUsed().Written);
        Assert.Equal("o guest", Received(0));
    }

    [Fact]
    public void WhatTheGuestDoesNotTakeWaitsUpToABound()
    {
        Assert.Equal(VirtioConsole.BufferSize, _device.Send(0, new byte[VirtioConsole.BufferSize + 5]));
        Assert.Equal(0, _device.Send(0, [1]));
        _driver.Start(VirtioFeatures.Version1, 64);
        Offer(0, 512);
        Assert.Equal(512u, _driver.Queues[0].MustTakeUsed().Written);
        Assert.Equal(5, _device.Send(0, new byte[5]));
    }

    [Fact]
    public void PortsAreAnnouncedNamedAndOpened()
    {
        _driver.Start(VirtioFeatures.Version1 | MultiPort, 64);
        Assert.False(_device.IsOpen(1));
        Control(0, 0, 1);
        Assert.Equal([(0, 1, 1, ""), (1, 1, 1, "")], Controls(2));
        Control(0, 3, 1);
        Assert.Equal([(0, 4, 1, ""), (0, 5, 0, "\u0019\0P\0"), (0, 7, 1, "tty"), (0, 6, 1, "")], Controls(4));
        Control(1, 3, 1);
        Assert.Equal([(1, 7, 1, "agent"), (1, 6, 1, "")], Controls(2));
        _device.Send(1, "early, "u8);
        Offer(4, 64);
        Assert.Null(_driver.Queues[4].TakeUsed());
        Control(1, 6, 1);
        Assert.True(_device.IsOpen(1));
        Assert.Equal("early, ", Received(4));
        Write(5, "from a program");
        Assert.Equal(["1:from a program"], _said);
        _device.Send(1, "to it"u8);
        Offer(4, 64);
        Assert.Equal("to it", Received(4));
        Control(1, 6, 0);
        Assert.False(_device.IsOpen(1));
        // Nonsense.
        Control(77, 3, 1);
        Control(uint.MaxValue, 6, 1);
        Control(0, 99, 1);
        Assert.Empty(Controls(0));
        Assert.Equal((VirtioStatus)15, _driver.Status);
    }

    [Fact]
    public void ADriverThatOnlyAsksGetsABoundedAnswer()
    {
        _driver.Start(VirtioFeatures.Version1 | MultiPort, 64);
        for (int i = 0; i < 1000; i++)
            Control(0, 0, 1);
        Assert.Equal(64, Controls(64).Length);
        Offer(2, 64);
        Assert.Null(_driver.Queues[2].TakeUsed());
    }

    [Fact]
    public void AConsoleIsSavedAndRestored()
    {
        _driver.Start(VirtioFeatures.Version1 | MultiPort, 64);
        Control(0, 0, 1);
        Control(1, 6, 1);
        _device.Send(1, "waits"u8);
        _driver.Settle();
        _device.Quiesce();
        string state = System.Text.Json.JsonSerializer.Serialize(_device.Save(), VirtioStates.Default.VirtioConsoleSavedState);
        VirtioConsole other = new("console0", [("tty", null), ("agent", null)], packed: false, new VirtioContext(_memory));
        other.Restore(System.Text.Json.JsonSerializer.Deserialize(state, VirtioStates.Default.VirtioConsoleSavedState)!);
        Assert.Equal(state, System.Text.Json.JsonSerializer.Serialize(other.Save(), VirtioStates.Default.VirtioConsoleSavedState));
        Assert.True(other.IsOpen(1));
        other.Stop();
    }

    private void Control(uint port, ushort what, ushort value)
    {
        byte[] message = new byte[8];
        BinaryPrimitives.WriteUInt32LittleEndian(message, port);
        BinaryPrimitives.WriteUInt16LittleEndian(message.AsSpan(4), what);
        BinaryPrimitives.WriteUInt16LittleEndian(message.AsSpan(6), value);
        _driver.Fill(Data, message);
        _driver.Queues[3].Add(new Buffer(Data, 8, false));
        _driver.Queues[3].Kick();
        _driver.Settle();
        _driver.Queues[3].MustTakeUsed();
    }

    private (int Port, int What, int Value, string More)[] Controls(int expected)
    {
        List<(int, int, int, string)> controls = [];
        for (int i = 0; i < expected; i++)
        {
            Offer(2, 64);
            string message = Received(2);
            byte[] bytes = Encoding.Latin1.GetBytes(message);
            controls.Add((BinaryPrimitives.ReadInt32LittleEndian(bytes), BinaryPrimitives.ReadUInt16LittleEndian(bytes.AsSpan(4)), BinaryPrimitives.ReadUInt16LittleEndian(bytes.AsSpan(6)), message[8..]));
        }
        return [.. controls];
    }
}
