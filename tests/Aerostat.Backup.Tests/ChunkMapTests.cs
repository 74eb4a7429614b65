using System.Runtime.InteropServices;
using System.Security.Cryptography;
using Xunit;

namespace Aerostat.Backup.Tests;

/// <summary>A map with memory only where something is, against an array.</summary>
public sealed class ChunkMapTests
{
    [Theory]
    [InlineData(1), InlineData(1023), InlineData(1024), InlineData(1025), InlineData(5000)]
    public void ItIsAnArrayThatIsMostlyEmpty(int count)
    {
        Random random = new(count);
        ChunkMap<ChunkHash> map = new(count);
        ChunkHash[] array = new ChunkHash[count];
        for (int i = 0; i < 40; i++)
        {
            // In some pages nothing is ever set.
            int chunk = random.Next(count);
            if (chunk / ChunkMap<ChunkHash>.PageChunks % 2 == 0)
                map[chunk] = array[chunk] = random.Next(4) == 0 ? default : new ChunkHash((ulong)random.NextInt64(), 1, 2, 3);
        }
        for (int i = 0; i < count; i++)
            Assert.Equal(array[i], map[i]);
        // The format: one hash of all of them.
        Assert.Equal(Convert.ToHexStringLower(SHA256.HashData(MemoryMarshal.AsBytes<ChunkHash>(array))), ChunkHash.OfDisk(map));
        int length = Math.Min(count, 100);
        Assert.Equal(array[..length], map.Part(0, length).ToArray());
    }

    [Fact]
    public async Task ALargeDiskWithLittleOnItIsRestored()
    {
        const int Megabytes = 400;
        await using BackedUpMachine guest = new(Megabytes);
        Random random = new(1);
        foreach (long megabyte in (long[])[0, 63, 64, 199, Megabytes - 1])
            guest.WriteNoise(0, random, (megabyte << 20) + (1 << 19), 1 << 19);
        await guest.SaveAsync();
        guest.WriteNoise(0, random, 130L << 20, 65536);
        BackupResult next = await guest.SaveAsync(incremental: true);
        Assert.Equal(1, next.Backup.Manifest.Disks[0].Entries);
        Assert.True(guest.Read(0).AsSpan().SequenceEqual(guest.Restore()));
        Assert.Empty(BackupReader.Verify(BackupStore.Open(guest.Store), next.Backup.Name, null, TestContext.Current.CancellationToken));
    }
}
