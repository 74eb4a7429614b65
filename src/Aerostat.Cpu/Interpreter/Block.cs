using System.Numerics;
using System.Runtime.InteropServices;
using Aerostat.Platform;

namespace Aerostat.Cpu;

/// <summary>A straight run of decoded instructions from one guest physical page (two for a single instruction that crosses pages).</summary>
[StructLayout(LayoutKind.Sequential)]
internal unsafe struct Block
{
    /// <summary>Guest physical address * 4 + code size (0: 16, 1: 32, 2: 64).</summary>
    public ulong Key;
    public Block* NextInBucket;
    public MicroOp* Ops;
    public int Count;
    /// <summary>Bytes of code.</summary>
    public int Length;
    /// <summary>Where the page's generation is, and what it was when this was decoded.</summary>
    public uint* Generation;
    public uint DecodedGeneration;
    /// <summary>The same for the second page; the first again when there is none.</summary>
    public uint* Generation2;
    public uint DecodedGeneration2;

    public readonly bool IsValid => *Generation == DecodedGeneration && *Generation2 == DecodedGeneration2;
}

/// <summary>Entry of the cache from linear address to block.</summary>
[StructLayout(LayoutKind.Sequential)]
internal unsafe struct JumpEntry
{
    /// <summary>Linear address, changed by privilege and code size so that it matches only in the same mode.</summary>
    public ulong Key;
    public ulong Epoch;
    public Block* Block;
    public ulong Unused;
}

/// <summary>
/// Memory that the vCPUs of a machine share for what they have decoded. Each has a little of its own and takes more as long as there is some:
/// the processor that boots a guest needs far more than those that wait for work.
/// </summary>
internal sealed class BlockCacheBudget(long bytes)
{
    private long left = bytes;

    /// <summary>Takes a share for good; any thread.</summary>
    public bool TryTake(long share)
    {
        if (Interlocked.Add(ref left, -share) >= 0)
            return true;
        Interlocked.Add(ref left, share);
        return false;
    }
}

/// <summary>Bounded native memory for blocks; when it is full everything is dropped at once.</summary>
internal sealed unsafe class BlockCache : IDisposable
{
    /// <summary>What each cache has of its own, and by how much it grows.</summary>
    public const ulong Share = 512 << 10;

    private const ulong BytesPerBucket = 512;
    private readonly BlockCacheBudget budget;
    private readonly byte* arena;
    private readonly ulong capacity;
    private readonly Block** buckets;
    private ulong used, granted = Share;
    private int bucketBits;

    /// <param name="bytes">Most that this cache may use; whole shares.</param>
    /// <param name="budget">Where all but the first share comes from.</param>
    public BlockCache(ulong bytes, BlockCacheBudget budget)
    {
        this.budget = budget;
        capacity = bytes;
        arena = HostMapping.AllocateLazy(bytes);
        buckets = (Block**)HostMapping.AllocateLazy(BucketsFor(capacity) * (ulong)sizeof(Block*));
        bucketBits = BitOperations.Log2(BucketsFor(granted));
    }

    /// <summary>How often the cache was full.</summary>
    public long Evictions { get; private set; }

    /// <summary>Bytes in use.</summary>
    public ulong Used => used;

    public Block* Find(ulong key)
    {
        for (Block* b = buckets[Bucket(key)]; b != null; b = b->NextInBucket)
            if (b->Key == key && b->IsValid)
                return b;
        return null;
    }

    /// <summary>Room for a block of up to <paramref name="maxOps"/>; false: the cache was emptied first and all block pointers are stale.</summary>
    public bool Reserve(int maxOps)
    {
        ulong wanted = used + (ulong)sizeof(Block) + ((ulong)maxOps * (ulong)sizeof(MicroOp));
        if (wanted <= granted)
            return true;
        if (granted + Share <= capacity && budget.TryTake((long)Share))
        {
            granted += Share;
            if (BucketsFor(granted) > 1UL << bucketBits)
                Rehash();
            return true;
        }
        Clear();
        Evictions++;
        return false;
    }

    /// <summary>Where the operations of the block being decoded go.</summary>
    public MicroOp* Scratch => (MicroOp*)(arena + used + sizeof(Block));

    /// <summary>Keeps what was decoded at <see cref="Scratch"/>.</summary>
    public Block* Commit(in Block block, bool findable)
    {
        var b = (Block*)(arena + used);
        *b = block;
        b->Ops = Scratch;
        used += (ulong)sizeof(Block) + ((ulong)block.Count * (ulong)sizeof(MicroOp));
        b->NextInBucket = null;
        if (findable)
            Insert(b);
        else
            b->Key = NotFindable;
        return b;
    }

    public void Clear()
    {
        used = 0;
        new Span<nint>(buckets, 1 << bucketBits).Clear();
    }

    // No physical address is that large.
    private const ulong NotFindable = ulong.MaxValue;

    private void Insert(Block* b)
    {
        Block** bucket = &buckets[Bucket(b->Key)];
        b->NextInBucket = *bucket;
        *bucket = b;
    }

    // The blocks lie one behind the other, in the order in which they were made.
    private void Rehash()
    {
        new Span<nint>(buckets, 1 << bucketBits).Clear();
        bucketBits = BitOperations.Log2(BucketsFor(granted));
        for (ulong at = 0; at < used;)
        {
            var b = (Block*)(arena + at);
            if (b->Key != NotFindable)
                Insert(b);
            at += (ulong)sizeof(Block) + ((ulong)b->Count * (ulong)sizeof(MicroOp));
        }
    }

    private static ulong BucketsFor(ulong bytes) => BitOperations.RoundUpToPowerOf2(bytes / BytesPerBucket);

    private int Bucket(ulong key) => (int)((key * 0x9E37_79B9_7F4A_7C15UL) >> (64 - bucketBits));

    public void Dispose()
    {
        HostMapping.Unmap(arena, capacity);
        HostMapping.Unmap((byte*)buckets, BucketsFor(capacity) * (ulong)sizeof(Block*));
    }
}
