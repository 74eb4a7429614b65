using System.Text;

namespace Aerostat.Storage.Tests;

/// <summary>Zstandard against the program that defines it.</summary>
public sealed class ZstdTests
{
    [Theory]
    [InlineData("-1"), InlineData("-3"), InlineData("-12"), InlineData("-19"), InlineData("--fast=5")]
    public void WhatZstdPacksComesBack(string level)
    {
        Tools.Require("zstd", "zstd");
        using Tools.Scratch scratch = new();
        foreach ((string name, byte[] bytes) in Contents())
        {
            byte[] packed = Pack(scratch, bytes, level);
            byte[] plain = new byte[bytes.Length];
            Assert.True(ZstdDecoder.TryDecode(packed, plain), name);
            Assert.True(bytes.AsSpan().SequenceEqual(plain), name);
            if (bytes.Length == 0)
                continue;
            Assert.False(ZstdDecoder.TryDecode(packed, new byte[bytes.Length + 1]), name);
            Assert.False(ZstdDecoder.TryDecode(packed.AsSpan(0, packed.Length / 2), plain), name);
        }
    }

    /// <summary>Damaged frames are refused or give other bytes; nothing is thrown.</summary>
    [Fact]
    public void DamageIsNoException()
    {
        Tools.Require("zstd", "zstd");
        using Tools.Scratch scratch = new();
        Random random = new(7);
        int refused = 0, decoded = 0;
        foreach ((_, byte[] bytes) in Contents().Where(c => c.Bytes.Length is > 0 and < 40000))
        {
            byte[] packed = Pack(scratch, bytes, "-9"), plain = new byte[bytes.Length];
            for (int i = 0; i < 3000; i++)
            {
                byte[] bad = [.. packed];
                for (int n = random.Next(1, 4); n > 0; n--)
                    bad[random.Next(random.Next(2) == 0 ? Math.Min(40, bad.Length) : bad.Length)] = (byte)random.Next(256);
                _ = ZstdDecoder.TryDecode(bad.AsSpan(0, random.Next(4) == 0 ? random.Next(bad.Length) : bad.Length), plain) ? decoded++ : refused++;
            }
        }
        Assert.True(refused > 1000 && decoded > 100, $"{refused} refused, {decoded} decoded");
    }

    private static IEnumerable<(string Name, byte[] Bytes)> Contents()
    {
        Random random = new(5);
        byte[] noise = new byte[30000];
        random.NextBytes(noise);
        yield return ("empty", []);
        yield return ("one byte", [65]);
        yield return ("zeros", new byte[200000]);
        yield return ("noise", noise);
        StringBuilder text = new();
        string[] words = ["the ", "guest ", "disk ", "writes ", "0x"];
        while (text.Length < 300000)
            text.Append(words[random.Next(words.Length)]).Append(random.Next(random.Next(1, 100000)));
        yield return ("text", Encoding.ASCII.GetBytes(text.ToString()));
        yield return ("short text", Encoding.ASCII.GetBytes(text.ToString()[..3000]));
        foreach (int symbols in (int[])[2, 3, 5, 17, 60, 200])
            yield return ($"{symbols} symbols", [.. Enumerable.Range(0, 20000).Select(_ => (byte)(random.Next(symbols) * random.Next(symbols) / symbols))]);
        byte[] mixed = new byte[400000];
        for (int i = 0; i < 300; i++)
            noise.AsSpan(random.Next(20000), random.Next(1, 2000)).CopyTo(mixed.AsSpan(random.Next(mixed.Length - 2000)));
        yield return ("mixed", mixed);
    }

    private static byte[] Pack(Tools.Scratch scratch, byte[] bytes, string level)
    {
        string plain = scratch.File("plain", bytes), packed = Path.Combine(scratch.Path, "packed");
        QemuImage.Run(scratch, "zstd", "-q", "-f", level, plain, "-o", packed);
        return File.ReadAllBytes(packed);
    }
}
