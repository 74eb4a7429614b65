using System.Buffers.Binary;
using System.Text;

namespace Aerostat.Guest.Agent.Tests;

/// <summary>Key/value exchange as the kernel asks for it.</summary>
public sealed class KeyValuesTests : IDisposable, ILog
{
    private const int Get = 0, Set = 1, Delete = 2, Enumerate = 3;
    private readonly string folder = Directory.CreateTempSubdirectory("aerostat-kvp-").FullName;
    private readonly KeyValues values;
    private readonly byte[] message = new byte[KeyValues.MessageLength];

    public KeyValuesTests() => values = new KeyValues(folder, static () => [("OSName", "Debian"), ("é", new string('é', 2000))], this);

    public void Dispose() => Directory.Delete(folder, recursive: true);

    void ILog.Write(LogLevel level, string text)
    {
    }

    [Fact]
    public void FactsAreEnumerated()
    {
        Assert.Equal(("OSName", "Debian"), Entry(2, 0));
        // Cut between characters, with its end.
        Assert.Equal(("é", new string('é', 1023)), Entry(2, 1));
        Assert.Null(Entry(2, 2));
        Assert.Equal(KeyValues.Failure, Ask(Set, 2, 16, "OSName", 528, "x"));
        Assert.Equal(("Linux", "x86_64"), (KeyValues.GuestFacts().Single(f => f.Key == "OSName").Value is { Length: > 0 } ? "Linux" : "", KeyValues.GuestFacts()[^1].Value));
    }

    [Fact]
    public void WhatTheHostGivesIsKept()
    {
        Assert.Equal(KeyValues.Success, Ask(Set, 0, 16, "one", 528, "1"));
        Assert.Equal(KeyValues.Success, Ask(Set, 0, 16, "two", 528, "2"));
        Assert.Equal(KeyValues.Success, Ask(Set, 0, 16, "one", 528, "first"));
        Assert.Equal((("one", "first"), ("two", "2")), (Entry(0, 0), Entry(0, 1)));
        Assert.Equal(2 * 2560, new FileInfo(Path.Combine(folder, ".kvp_pool_0")).Length);
        Assert.Equal(KeyValues.Success, Ask(Get, 0, 16, "two", 528, ""));
        Assert.Equal((byte)'2', message[528]);
        Assert.Equal(KeyValues.Success, Ask(Delete, 0, 8, "one", 528, ""));
        Assert.Equal(KeyValues.Failure, Ask(Delete, 0, 8, "one", 528, ""));
        Assert.Equal(("two", "2"), Entry(0, 0));
        Assert.Null(Entry(0, 1));
    }

    [Theory]
    [InlineData(Enumerate, 4), InlineData(Set, 255), InlineData(9, 0), InlineData(200, 2)]
    public void OtherRequestsAreRefused(int operation, int pool) => Assert.Equal(KeyValues.Failure, Ask(operation, pool, 16, "k", 528, "v"));

    private (string, string)? Entry(int pool, uint index)
    {
        Array.Clear(message);
        (message[0], message[1]) = (Enumerate, (byte)pool);
        BinaryPrimitives.WriteUInt32LittleEndian(message.AsSpan(4), index);
        values.Handle(message);
        uint status = BinaryPrimitives.ReadUInt32LittleEndian(message);
        Assert.True(status is KeyValues.Success or KeyValues.NoMore, $"{status:x}");
        return status == KeyValues.Success ? (Text(20), Text(532)) : null;
    }

    private uint Ask(int operation, int pool, int keyAt, string key, int valueAt, string value)
    {
        Array.Clear(message);
        (message[0], message[1]) = ((byte)operation, (byte)pool);
        Encoding.UTF8.GetBytes(key).CopyTo(message, keyAt);
        Encoding.UTF8.GetBytes(value).CopyTo(message, valueAt);
        values.Handle(message);
        return BinaryPrimitives.ReadUInt32LittleEndian(message);
    }

    private string Text(int at) => Encoding.UTF8.GetString(message.AsSpan(at, message.AsSpan(at).IndexOf((byte)0)));
}
