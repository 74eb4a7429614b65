using System.Buffers.Binary;
using System.Net;
using System.Text;

namespace Aerostat.HyperV.Tests;

/// <summary>Copying files into a guest, and setting its addresses, with a guest that does what a test wants.</summary>
public sealed class FileCopyTests : IDisposable
{
    private const byte Start = 0, Write = 1, Complete = 2, Cancel = 3;
    private const int Body = 28;
    private const uint Failed = 0x8000_4005, AlreadyExists = 0x8007_0050, DiskFull = 0x8007_0070;

    private readonly GuestBus bus = new();
    private GuestChannel channel = null!;

    private FileCopy Files => bus.Components.Files;

    public void Dispose() => bus.Dispose();

    private void Connect()
    {
        bus.Connect();
        channel = bus.Open(Files);
        channel.Negotiate(3, 1 | (1 << 16));
    }

    private byte[] Expect(byte operation)
    {
        byte[]? request = null;
        Assert.True(SpinWait.SpinUntil(() => (request = channel.Receive()) is not null, TimeSpan.FromSeconds(30)), "nothing comes");
        Assert.Equal((7, operation), (BinaryPrimitives.ReadUInt16LittleEndian(request.AsSpan(12)), request![Body]));
        return request;
    }

    private Task<long> Copy(byte[] data, string to = "/srv/data/file", bool overwrite = false, CancellationTokenSource? giveUp = null) =>
        Files.CopyAsync(new MemoryStream(data), to, overwrite, createFolders: true, null, (giveUp?.Token) ?? TestContext.Current.CancellationToken);

    private async Task<string> FailureAsync(Task copy)
    {
        // Whatever it still has to say to the bus.
        Assert.True(SpinWait.SpinUntil(() =>
        {
            bus.Server.Process();
            return copy.IsCompleted;
        }, TimeSpan.FromSeconds(30)));
        return (await Assert.ThrowsAsync<FileCopyException>(() => copy)).Message;
    }

    private static string Text(byte[] request, int at) => Encoding.Unicode.GetString(request, Body + at, 520).TrimEnd('\0');

    [Fact]
    public async Task AFileGoesInPieces()
    {
        Connect();
        byte[] data = new byte[(2 * FileCopy.Piece) + 5];
        new Random(1).NextBytes(data);
        Task<long> copy = Copy(data, "/srv/daten/größe", overwrite: true);
        byte[] start = Expect(Start);
        Assert.Equal(("größe", "/srv/daten/"), (Text(start, 36), Text(start, 556)));
        Assert.Equal((3u, (long)data.Length), (BinaryPrimitives.ReadUInt32LittleEndian(start.AsSpan(Body + 1076)), BinaryPrimitives.ReadInt64LittleEndian(start.AsSpan(Body + 1080))));
        channel.Answer(start);
        List<byte> got = [];
        for (int i = 0; i < 3; i++)
        {
            byte[] piece = Expect(Write);
            Assert.Equal(got.Count, BinaryPrimitives.ReadInt64LittleEndian(piece.AsSpan(Body + 40)));
            got.AddRange(piece.AsSpan(Body + 52, BinaryPrimitives.ReadInt32LittleEndian(piece.AsSpan(Body + 48))));
            // The driver passes on as much as a whole piece has.
            Assert.True(piece.Length >= Body + 52 + FileCopy.Piece);
            channel.Answer(piece);
        }
        channel.Answer(Expect(Complete));
        Assert.Equal(data.Length, await copy);
        Assert.Equal(data, got);
    }

    [Theory]
    [InlineData(Failed, "hv_fcopy_daemon")]
    [InlineData(AlreadyExists, "--overwrite")]
    [InlineData(0x8888_8888, "0x88888888")]
    public async Task AStartThatIsRefusedIsToldAndNothingIsLeft(uint status, string message)
    {
        Connect();
        Task copy = Copy([1]);
        channel.Answer(Expect(Start), status);
        Assert.Contains(message, await FailureAsync(copy), StringComparison.Ordinal);
        Assert.Null(channel.Receive());
    }

    [Fact]
    public async Task WhatIsBegunAndFailsIsRemoved()
    {
        Connect();
        Task copy = Copy([1]);
        channel.Answer(Expect(Start));
        channel.Answer(Expect(Write), DiskFull);
        channel.Answer(Expect(Cancel), Failed);
        Assert.Contains("full", await FailureAsync(copy), StringComparison.Ordinal);
        // And the next one goes.
        Task<long> next = Copy([]);
        channel.Answer(Expect(Start));
        channel.Answer(Expect(Complete));
        Assert.Equal(0, await next);
    }

    [Fact]
    public async Task GivingUpRemovesIt()
    {
        Connect();
        using CancellationTokenSource giveUp = new();
        Task copy = Copy(new byte[FileCopy.Piece * 3], giveUp: giveUp);
        channel.Answer(Expect(Start));
        byte[] piece = Expect(Write);
        await giveUp.CancelAsync();
        Assert.Null(channel.Receive());
        channel.Answer(piece);
        channel.Answer(Expect(Cancel));
        await Assert.ThrowsAnyAsync<OperationCanceledException>(() => copy);
    }

    [Fact]
    public async Task OneAtATime()
    {
        Connect();
        Task<long> first = Copy([]);
        byte[] start = Expect(Start);
        Assert.Contains("another file", (await Assert.ThrowsAsync<FileCopyException>(() => Copy([]))).Message, StringComparison.Ordinal);
        channel.Answer(start);
        channel.Answer(Expect(Complete));
        await first;
    }

    [Fact]
    public async Task NothingIsSentWhileFileSystemsAreFrozen()
    {
        Connect();
        Files.Hold(true);
        Task<long> copy = Copy([]);
        for (int i = 0; i < 3; i++)
            Assert.Null(channel.Receive());
        Files.Hold(false);
        channel.Answer(Expect(Start));
        channel.Answer(Expect(Complete));
        await copy;
    }

    [Fact]
    public async Task AGuestThatDoesNotAnswerIsGivenUpAndItsBufferLeftAlone()
    {
        Connect();
        Task copy = Copy([1]);
        byte[] start = Expect(Start);
        bus.Fixture.Time.Advance(TimeSpan.FromSeconds(61));
        Assert.Contains("not answered", await FailureAsync(copy), StringComparison.Ordinal);
        Assert.Contains("not answered", await FailureAsync(Copy([1])), StringComparison.Ordinal);
        Assert.Null(channel.Receive());
        channel.Answer(start);
        Assert.Equal(0, Files.Spurious);
        Task<long> next = Copy([]);
        channel.Answer(Expect(Start));
        channel.Answer(Expect(Complete));
        await next;
    }

    [Fact]
    public async Task AChannelThatClosesEndsIt()
    {
        bus.Connect();
        Assert.Contains("hyperv-daemons", await FailureAsync(Copy([1])), StringComparison.Ordinal);
        channel = bus.Open(Files);
        channel.Negotiate(3, 1 | (1 << 16));
        Task copy = Copy([1]);
        channel.Answer(Expect(Start));
        Expect(Write);
        bus.Server.Reset();
        await FailureAsync(copy);
    }

    [Fact]
    public void ACopyOfTheGuestRemovesWhatWasBegun()
    {
        Connect();
        _ = Copy([1]);
        channel.Answer(Expect(Start));
        Expect(Write);
        string saved = Files.Save();
        Assert.EndsWith(" 1", saved, StringComparison.Ordinal);
        Files.Closed();
        Files.Restore(saved);
        Files.Resumed();
        bus.Fixture.Time.Advance(TimeSpan.FromSeconds(2));
        Expect(Cancel);
    }

    [Theory]
    [InlineData("file")]
    [InlineData("/folder/")]
    [InlineData("/a\nb")]
    [InlineData("")]
    public async Task OnlyFullPathsOfFiles(string to) => await Assert.ThrowsAsync<ArgumentException>(() => Copy([], to));

    [Fact]
    public async Task NamesAreAsLongAsTheGuestTakes()
    {
        Connect();
        await Assert.ThrowsAsync<ArgumentException>(() => Copy([], "/" + new string('é', 130)));
        Task<long> copy = Copy([], "/" + new string('é', 129));
        channel.Answer(Expect(Start));
        channel.Answer(Expect(Complete));
        await copy;
    }

    [Fact]
    public async Task AddressesAreAsTheDaemonWantsThem()
    {
        bus.Connect();
        KeyValueExchange values = bus.Components.KeyValues;
        channel = bus.Open(values);
        channel.Negotiate(3, 4);
        // What it asks first: no more facts.
        channel.Answer(Assert.IsType<byte[]>(channel.Receive()), 0x8007_0103);
        GuestAddresses wanted = new("{a}")
        {
            Addresses = [Address("10.1.2.3/20"), Address("fd00::5/64"), Address("192.0.2.1/0")],
            Gateways = [IPAddress.Parse("10.1.0.1")],
            NameServers = [IPAddress.Parse("10.1.0.2"), IPAddress.Parse("fd00::1")],
        };
        foreach ((uint status, AddressOutcome outcome) in ((uint, AddressOutcome)[])[(0, AddressOutcome.Set), (0x8004_1002, AddressOutcome.NoAdapter), (Failed, AddressOutcome.Refused), (0xA000_0001, AddressOutcome.Refused)])
        {
            Task<AddressOutcome> set = values.SetAddressesAsync(wanted);
            byte[] request = Assert.IsType<byte[]>(channel.Receive());
            Assert.True(request.Length >= Body + 7428);
            Assert.Equal((5, 0, 3, 0), (request[Body], request[Body + 1], request[Body + 258], request[Body + 259]));
            Assert.Equal("{a}", Text(request, 2)[..3]);
            Assert.Equal("10.1.2.3;fd00::5;192.0.2.1", Part(request, 260, 2048));
            Assert.Equal("255.255.240.0;/64;0.0.0.0", Part(request, 2308, 2048));
            Assert.Equal("10.1.0.1", Part(request, 4356, 1024));
            Assert.Equal("10.1.0.2;fd00::1", Part(request, 5380, 2048));
            channel.Answer(request, status);
            Assert.Equal(outcome, await set);
        }
        await Assert.ThrowsAsync<ArgumentException>(() => values.SetAddressesAsync(new GuestAddresses("{a}")));
        await Assert.ThrowsAsync<ArgumentException>(() => values.SetAddressesAsync(wanted with { Adapter = new string('a', 128) }));

        static string Part(byte[] request, int at, int size) => Encoding.Unicode.GetString(request, Body + at, size).TrimEnd('\0');
    }

    [Theory]
    [InlineData("10.1.2.3")]
    [InlineData("10.1.2.3/33")]
    [InlineData("fd00::1/129")]
    [InlineData("1/8")]
    [InlineData("fe80::1%2/64")]
    [InlineData("x/8")]
    public void WhatIsNoAddressIsRefused(string text) => Assert.False(IPNetworkAddress.TryParse(text, out _));

    private static IPNetworkAddress Address(string text) => IPNetworkAddress.TryParse(text, out IPNetworkAddress address) ? address : throw new FormatException(text);
}
