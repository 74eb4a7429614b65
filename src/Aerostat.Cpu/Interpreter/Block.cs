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

/// <summary>Bounded native memory for blocks; when it is full everything is dropped at once.</summary>
internal sealed unsafe class BlockCache : IDisposable
{
    private const int Buckets = 1 << 15;
    private readonly byte* arena;
    private readonly ulong capacity;
    private readonly Block** buckets;
    private ulong used;

    public BlockCache(ulong bytes)
    {
        capacity = bytes;
        arena = HostMapping.AllocateLazy(bytes);
        buckets = (Block**)HostMapping.AllocateLazy(Buckets * (ulong)sizeof(Block*));
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
        if (used + (ulong)sizeof(Block) + ((ulong)maxOps * (ulong)sizeof(MicroOp)) <= capacity)
            return true;
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
        if (findable)
        {
            Block** bucket = &buckets[Bucket(block.Key)];
            b->NextInBucket = *bucket;
            *bucket = b;
        }
        return b;
    }

    public void Clear()
    {
        used = 0;
        new Span<nint>(buckets, Buckets).Clear();
    }

    private static int Bucket(ulong key) => (int)((key * 0x9E37_79B9_7F4A_7C15UL) >> (64 - 15));

    public void Dispose()
    {
        HostMapping.Unmap(arena, capacity);
        HostMapping.Unmap((byte*)buckets, Buckets * (ulong)sizeof(Block*));
    }
}
