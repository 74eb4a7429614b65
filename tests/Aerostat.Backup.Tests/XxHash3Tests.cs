using Xunit;

namespace Aerostat.Backup.Tests;

/// <summary>Our XXH3 is xxHash's.</summary>
public sealed class XxHash3Tests
{
    private static byte[] Bytes(int count, int factor)
    {
        byte[] bytes = new byte[count];
        uint state = (uint)factor;
        for (int i = 0; i < count; i++)
            bytes[i] = (byte)((state = (state * 1664525) + 1013904223) >> 24);
        return bytes;
    }

    // What libxxhash 0.8.1 answers.
    [Theory]
    [InlineData(241, 0x6CD91F107C99052DUL, 0xE26F8B842739F9CBUL)]
    [InlineData(512, 0xF8A380B70E45BEB2UL, 0x24C9325C9053EB08UL)]
    [InlineData(1024, 0x8F61EA2A582806A8UL, 0x83D0E84597378376UL)]
    [InlineData(1025, 0xAEB358885E9473A3UL, 0x225CFBAB9DE09E7BUL)]
    [InlineData(1536, 0xB934AD30E7EAA11EUL, 0x0DCC40A0F5A619F3UL)]
    [InlineData(4096, 0x0DF494B23025EFA6UL, 0x6936D9C1B38E070CUL)]
    [InlineData(65024, 0x0FCA384395CEA090UL, 0x36AF5B51B3480006UL)]
    [InlineData(65536, 0xA10B552E50E89BE7UL, 0xF1B02AEFD59DC5D5UL)]
    public void AsTheReference(int length, ulong low, ulong high) =>
        Assert.Equal((low, high), new XxHash3(Bytes(192, 7)).Of(Bytes(length, 3)));

    [Fact]
    public void EverySingleBitCounts()
    {
        XxHash3 hash = XxHash3.FromSeed(5);
        byte[] bytes = Bytes(65536, 1);
        HashSet<(ulong, ulong)> seen = [hash.Of(bytes), XxHash3.FromSeed(6).Of(bytes)];
        for (int bit = 0; bit < bytes.Length * 8; bit += 1021)
        {
            bytes[bit / 8] ^= (byte)(1 << (bit % 8));
            Assert.True(seen.Add(hash.Of(bytes)));
            bytes[bit / 8] ^= (byte)(1 << (bit % 8));
        }
        Assert.False(seen.Add(hash.Of(bytes)));
    }
}
