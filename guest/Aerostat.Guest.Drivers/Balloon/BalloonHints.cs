namespace Aerostat.Guest.Drivers;

/// <summary>
/// Free page hints in both forms. As merged (virtio 1.2, 5.5.6.6): commands of 4 bytes, the free blocks themselves are buffers, and stay with the driver until
/// the host says DONE. As proposed in June 2018: commands of 8 bytes {id, size of a block}, arrays of 64-bit addresses that name free blocks which nobody
/// holds; a new id from the host ends a run, and used arrays are freed.
/// </summary>
public sealed class BalloonHints
{
    private const uint Stop = 0, Done = 1, FirstId = 2;
    private const int Order = 10, MostHeld = 4096;
    private const ulong BlockSize = (ulong)DriverPlatform.PageSize << Order;
    private const uint CommandToken = 0xFFFF_0000;

    private readonly DriverPlatform platform;
    private readonly bool arrays;
    private readonly uint[] held = new uint[MostHeld];
    private DriverQueue queue;
    private ulong commands;
    private uint heldCount;
    private uint active;
    private uint received;
    private bool sending;
    private bool refilling;

    public BalloonHints(DriverPlatform platform, DriverQueue queue, bool arrays)
    {
        this.platform = platform;
        this.queue = queue;
        this.arrays = arrays;
    }

    /// <summary>Runs that were begun.</summary>
    public ulong Runs { get; private set; }

    /// <summary>Runs that ended because the host changed its mind.</summary>
    public ulong Aborted { get; private set; }

    public ulong HintedBytes { get; private set; }

    /// <summary>Blocks that the driver holds: hinted blocks, or arrays that name them.</summary>
    public uint Held => heldCount;

    /// <summary>The device was reset: blocks that were held are free.</summary>
    public void Restart(DriverQueue anew)
    {
        queue = anew;
        Abandon();
    }

    public void Abandon()
    {
        Release();
        sending = false;
        active = received = Stop;
    }

    /// <summary>Looks at the command id that configuration space says now, and at what came back.</summary>
    public void Service(uint commandId)
    {
        while (queue.TryTake(out uint token))
            if (arrays && token < MostHeld)
                FreeArray(token);
        if (queue.IsBroken)
            return;
        received = commandId;
        // Done belongs to the merged form only.
        if (received == Done && !arrays)
        {
            sending = false;
            Release();
        }
        if (sending && received != active)
        {
            sending = false;
            Aborted++;
            if (!arrays)
                SendCommand(Stop, 0);
        }
        if (!sending && received >= FirstId && received != active)
            Begin();
        if (sending && !arrays)
            SendBlocks();
    }

    /// <summary>Memory is short: blocks held for hints are given back, whether the host has looked at them or not.</summary>
    public bool ReleaseForOom()
    {
        if (arrays || heldCount == 0)
            return false;
        refilling = false;
        Release();
        return true;
    }

    private void Begin()
    {
        active = received;
        if (commands == 0 && (commands = platform.AllocatePages(0)) == 0)
            return;
        if (arrays)
        {
            SendArrays();
            return;
        }
        Runs++;
        sending = refilling = SendCommand(active, 0);
    }

    private bool SendCommand(uint id, uint size)
    {
        // Two commands may be with the host at a time.
        ulong at = commands + (id == Stop ? 64u : 0u);
        platform.Write(at, 4, id);
        platform.Write(at + 4, 4, size);
        if (!queue.Add(CommandToken, at, arrays ? 8u : 4u, 0, 0))
            return false;
        queue.Kick();
        return true;
    }

    // One descriptor stays free for the command that ends the run.
    private void SendBlocks()
    {
        while (refilling && queue.Room > 1)
        {
            ulong block = heldCount < MostHeld ? platform.AllocatePages(Order) : 0;
            if (block == 0)
            {
                refilling = false;
                break;
            }
            held[heldCount++] = (uint)(block / DriverPlatform.PageSize);
            if (!queue.Add(CommandToken, 0, 0, block, (uint)BlockSize))
                break;
            HintedBytes += BlockSize;
            queue.Kick();
        }
        if (!refilling && SendCommand(Stop, 0))
            sending = false;
    }

    // The lists are read after the arrays are taken, so that no array names itself.
    private void SendArrays()
    {
        const uint PerArray = (uint)(BlockSize / 8);
        ulong array = platform.AllocatePages(Order);
        if (array == 0 || heldCount != 0)
        {
            if (array != 0)
                platform.FreePages(array, Order);
            return;
        }
        held[0] = (uint)(array / DriverPlatform.PageSize);
        heldCount = 1;
        uint count = platform.ListFreeBlocks(Order, array, PerArray);
        Runs++;
        if (count == 0 || !SendCommand(active, (uint)BlockSize) || !queue.Add(0, 0, 0, array, count * 8))
        {
            Release();
            return;
        }
        HintedBytes += count * BlockSize;
        SendCommand(Stop, 0);
    }

    private void FreeArray(uint token)
    {
        if (token < heldCount)
        {
            heldCount = 0;
            platform.FreePages((ulong)held[token] * DriverPlatform.PageSize, Order);
        }
    }

    private void Release()
    {
        while (heldCount > 0)
            platform.FreePages((ulong)held[--heldCount] * DriverPlatform.PageSize, Order);
    }
}
