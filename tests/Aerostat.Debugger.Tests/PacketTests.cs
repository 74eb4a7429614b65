using System.Text;
using Xunit;

namespace Aerostat.Debugger.Tests;

/// <summary>Packets: framing, escapes, checksums, and what a hostile stream can do (nothing).</summary>
public sealed class PacketTests
{
    private static List<GdbInput> Feed(PacketReader reader, ReadOnlySpan<byte> bytes)
    {
        List<GdbInput> all = [];
        foreach (byte b in bytes)
            if (reader.Take(b, out GdbInput input))
                all.Add(input);
        return all;
    }

    [Fact]
    public void WhatIsFramedIsRead()
    {
        Random random = new(7);
        for (int i = 0; i < 500; i++)
        {
            byte[] body = new byte[random.Next(300)];
            random.NextBytes(body);
            GdbInput input = Assert.Single(Feed(new PacketReader(), PacketWriter.Frame(body)));
            Assert.Equal(GdbInputKind.Packet, input.Kind);
            Assert.Equal(body, input.Body);
        }
    }

    [Theory]
    [InlineData("$OK#9a", "Packet OK")]
    [InlineData("+$OK#9A", "Packet OK")]
    [InlineData("$OK#9b", "Corrupt ")]
    [InlineData("$OK#zz", "Corrupt ")]
    [InlineData("-", "Nack ")]
    [InlineData("\u0003", "Interrupt ")]
    [InlineData("$lost$OK#9a", "Packet OK")]
    [InlineData("noise$#00\u0003", "Packet ;Interrupt ")]
    [InlineData("$}\u0003#80", "Packet #")]
    public void Streams(string bytes, string expected) =>
        Assert.Equal(expected, string.Join(';', Feed(new PacketReader(), Encoding.Latin1.GetBytes(bytes)).Select(i => $"{i.Kind} {Encoding.Latin1.GetString(i.Body)}")));

    /// <summary>A packet that never ends takes no more memory than the longest that is allowed, and the next one is read.</summary>
    [Fact]
    public void AnEndlessPacketIsDropped()
    {
        PacketReader reader = new();
        Assert.Empty(Feed(reader, "$"u8));
        byte[] filling = Encoding.ASCII.GetBytes(new string('a', 100_000));
        for (int i = 0; i < 20; i++)
            Assert.Empty(Feed(reader, filling));
        Assert.InRange(reader.Kept, 0, PacketReader.MostBytes);
        Assert.Equal([GdbInputKind.TooLong, GdbInputKind.Packet], Feed(reader, "#00$OK#9a"u8).Select(i => i.Kind));
    }

    /// <summary>Noise with many of the bytes that mean something, from fixed seeds: bounded memory, and always ready for a whole packet.</summary>
    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    public void Noise(int seed)
    {
        Random random = new(seed);
        PacketReader reader = new(checksums: seed != 3);
        byte[] special = "$#}-+*\u0003mMXzZvq0123456789abcdef,:;"u8.ToArray();
        for (int round = 0; round < 200; round++)
        {
            byte[] bytes = new byte[random.Next(5000)];
            for (int i = 0; i < bytes.Length; i++)
                bytes[i] = random.Next(3) == 0 ? (byte)random.Next(256) : special[random.Next(special.Length)];
            foreach (GdbInput input in Feed(reader, bytes))
                Assert.InRange(input.Body.Length, 0, PacketReader.MostBytes);
            Assert.InRange(reader.Kept, 0, PacketReader.MostBytes);
            // Whatever state it is in, an end and a new packet bring it back.
            GdbInput last = Feed(reader, "#00$OK#9a"u8)[^1];
            Assert.Equal((GdbInputKind.Packet, "OK"), (last.Kind, Encoding.Latin1.GetString(last.Body)));
        }
    }

    [Theory]
    [InlineData("1234", "127.0.0.1:1234", ":1234")]
    [InlineData("0.0.0.0:99", "0.0.0.0:99", "0.0.0.0:99")]
    [InlineData("[::1]:99", "[::1]:99", "[::1]:99")]
    [InlineData("./sock", "./sock", "./sock")]
    public void Endpoints(string text, string address, string forGdb)
    {
        DebugEndpoint endpoint = DebugEndpoint.Parse(text);
        Assert.Equal((address, forGdb), (endpoint.Address.ToString(), endpoint.ForGdb));
    }

    [Theory]
    [InlineData("")]
    [InlineData("gdb")]
    [InlineData("65536")]
    [InlineData("localhost:1")]
    [InlineData("-1")]
    public void WrongEndpoints(string text) => Assert.Throws<FormatException>(() => DebugEndpoint.Parse(text));

    [Fact]
    public void WatchesAreSharedOut()
    {
        Assert.Equal(["1000/8", "1008/8"], Plan(new GdbWatch(2, 0x1000, 16)));
        Assert.Equal(["1003/1", "1004/4", "1008/1"], Plan(new GdbWatch(4, 0x1003, 6)));
        Assert.Equal(["5/1", "10/4"], Plan(new GdbWatch(1, 5, 1), new GdbWatch(3, 0x10, 4)));
        Assert.Null(WatchPlan.Make([new GdbWatch(2, 0x1000, 33)]));
        Assert.Null(WatchPlan.Make([new GdbWatch(2, 0x1001, 31)]));
        Assert.Null(WatchPlan.Make([new GdbWatch(2, ulong.MaxValue, 2)]));
        Assert.Null(WatchPlan.Make([new GdbWatch(2, 0, 0)]));
        Assert.Null(WatchPlan.Make([.. Enumerable.Range(0, 5).Select(i => new GdbWatch(1, (ulong)i, 1))]));

        static IEnumerable<string> Plan(params GdbWatch[] watches) => WatchPlan.Make(watches)!.Select(p => $"{p.Breakpoint.Address:x}/{p.Breakpoint.Length}");
    }
}
