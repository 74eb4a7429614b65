using System.Collections.Concurrent;
using Aerostat.Platform;
using Microsoft.Win32.SafeHandles;

namespace Aerostat.Storage;

/// <summary>
/// Where old blocks wait for the copy: in memory up to a bound, then in a file without a name, which goes with the process whatever becomes of it. Any thread.
/// </summary>
/// <param name="folder">Where the file is made when it is needed.</param>
/// <param name="memoryBytes">Most bytes in memory.</param>
internal sealed class Sidecar(string folder, long memoryBytes) : IDisposable
{
    private readonly Lock gate = new();
    private readonly Stack<byte[]> spare = new();
    private readonly Stack<long> freePlaces = new();
    private readonly ConcurrentStack<PinnedBuffer> buffers = new();
    private SafeFileHandle? file;
    private long inMemory, fileBlocks;
    private bool disposed;

    /// <summary>Bytes that the file has grown to.</summary>
    public long FileBytes => Volatile.Read(ref fileBlocks) * TrackedDisk.BlockSize;

    /// <summary>One block: in memory, or at a place of the file, or nothing but zeros.</summary>
    public readonly record struct Slot(byte[]? Memory, long Place)
    {
        public static Slot Zeros { get; } = new(null, -1);
    }

    /// <summary>Room to read a block into; as many are made as there are writers at once.</summary>
    public PinnedBuffer Rent() => buffers.TryPop(out PinnedBuffer? buffer) ? buffer : new PinnedBuffer(TrackedDisk.BlockSize);

    /// <summary>Takes it back.</summary>
    public void Return(PinnedBuffer buffer) => buffers.Push(buffer);

    /// <summary>Keeps a block.</summary>
    /// <exception cref="IOException">There is no room.</exception>
    public Slot Keep(ReadOnlySpan<byte> block)
    {
        if (!block.ContainsAnyExcept((byte)0))
            return Slot.Zeros;
        byte[]? memory = null;
        long place = 0;
        SafeFileHandle? target;
        lock (gate)
        {
            ObjectDisposedException.ThrowIf(disposed, this);
            if (!spare.TryPop(out memory) && inMemory + TrackedDisk.BlockSize <= memoryBytes)
            {
                memory = GC.AllocateUninitializedArray<byte>(TrackedDisk.BlockSize);
                inMemory += TrackedDisk.BlockSize;
            }
            if (memory is null && !freePlaces.TryPop(out place))
                place = fileBlocks++;
            target = memory is null ? file ??= Open() : null;
        }
        if (memory is null)
        {
            RandomAccess.Write(target!, block, place * TrackedDisk.BlockSize);
            return new Slot(null, place);
        }
        block.CopyTo(memory);
        return new Slot(memory, 0);
    }

    /// <summary>Reads a block.</summary>
    public void Read(Slot slot, Span<byte> block)
    {
        if (slot == Slot.Zeros)
        {
            block.Clear();
        }
        else if (slot.Memory is { } memory)
        {
            memory.AsSpan(0, block.Length).CopyTo(block);
        }
        else
        {
            for (int done = 0; done < block.Length;)
            {
                int count = RandomAccess.Read(file!, block[done..], (slot.Place * TrackedDisk.BlockSize) + done);
                if (count == 0)
                    throw new IOException("the file with old blocks ends too early");
                done += count;
            }
        }
    }

    /// <summary>Gives a block's place back.</summary>
    public void Free(Slot slot)
    {
        if (slot == Slot.Zeros)
            return;
        lock (gate)
        {
            if (slot.Memory is { } memory)
                spare.Push(memory);
            else
                freePlaces.Push(slot.Place);
        }
    }

    private SafeFileHandle Open()
    {
        string path = Path.Combine(folder, $".aerostat-old-blocks-{Guid.NewGuid():n}");
        SafeFileHandle handle = File.OpenHandle(path, FileMode.CreateNew, FileAccess.ReadWrite, FileShare.None);
        File.Delete(path);
        return handle;
    }

    public void Dispose()
    {
        lock (gate)
        {
            disposed = true;
            file?.Dispose();
        }
    }
}
