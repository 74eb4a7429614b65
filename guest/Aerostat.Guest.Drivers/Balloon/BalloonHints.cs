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
    private const uint ArrayToken = 0, StartToken = 0xFFFF_0000, StopToken = 0xFFFF_0001, BlockToken = 0xFFFF_0002;

    // How long a run waits for a report that the host has not looked at.
    private const ulong ReportWithin = 1_000_000_000;

    private readonly DriverPlatform platform;
    private readonly bool arrays;
    private readonly uint[] held = new uint[MostHeld];
    private DriverQueue queue;
    private ulong commands;
    private uint heldCount;
    private uint active;
    private ulong wantedAt;
    private bool waiting;
    // The run: begun and not over, over but for the command that says so.
    private bool sending;
    private bool ending;
    private bool refilling;
    // The commands that the host has not given back. They are memory that it reads: written again too early, an old start command would carry a new id.
    private bool startIsOut;
    private bool stopIsOut;

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
        sending = ending = waiting = startIsOut = stopIsOut = false;
        active = Stop;
    }

    /// <summary>Whether a run goes on or is to begin, by the id that configuration space says now.</summary>
    public bool IsWanted(uint commandId) => sending || (commandId >= FirstId && commandId != active);

    /// <summary>Looks at the command id that configuration space says now, and at what came back.</summary>
    /// <param name="commandId">The id.</param>
    /// <param name="reporting">Free blocks are out of use because they are being reported: a run waits for them, for they belong to what it names.</param>
    /// <returns>Whether there is more to do at once.</returns>
    public bool Service(uint commandId, bool reporting)
    {
        while (queue.TryTake(out uint token))
            TakeBack(token);
        if (queue.IsBroken)
            return false;
        // Done belongs to the merged form only.
        if (commandId == Done && !arrays)
        {
            sending = ending = false;
            Release();
        }
        if (sending && commandId != active)
        {
            sending = false;
            ending = true;
            Aborted++;
        }
        if (sending)
        {
            if (arrays)
                SendArray();
            else
                SendBlocks();
        }
        else if (!ending && commandId >= FirstId && commandId != active && MayBegin(reporting))
        {
            return Begin(commandId);
        }
        if (ending && SendCommand(Stop, 0))
            ending = false;
        return false;
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

    private void TakeBack(uint token)
    {
        if (token == StartToken)
            startIsOut = false;
        else if (token == StopToken)
            stopIsOut = false;
        else if (token == ArrayToken && arrays)
            Release();
    }

    private bool MayBegin(bool reporting)
    {
        // An array that is out is the one there is, and what is in a command must not change before it is read.
        if (startIsOut || stopIsOut || (arrays && heldCount != 0))
            return false;
        if (!waiting)
        {
            waiting = true;
            wantedAt = platform.Nanoseconds;
        }
        return !reporting || platform.Nanoseconds - wantedAt > ReportWithin;
    }

    private bool Begin(uint commandId)
    {
        if ((commands == 0 && (commands = platform.AllocatePages(0)) == 0) || !SendCommand(commandId, arrays ? (uint)BlockSize : 0))
            return false;
        Runs++;
        active = commandId;
        waiting = false;
        return sending = refilling = true;
    }

    private bool SendCommand(uint id, uint size)
    {
        bool stop = id == Stop;
        if (stop ? stopIsOut : startIsOut)
            return false;
        ulong at = commands + (stop ? 64u : 0u);
        platform.Write(at, 4, id);
        platform.Write(at + 4, 4, size);
        if (!queue.Add(stop ? StopToken : StartToken, at, arrays ? 8u : 4u, 0, 0))
            return false;
        if (stop)
            stopIsOut = true;
        else
            startIsOut = true;
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
            if (!queue.Add(BlockToken, 0, 0, block, (uint)BlockSize))
                break;
            HintedBytes += BlockSize;
            queue.Kick();
        }
        if (!refilling)
        {
            sending = false;
            ending = true;
        }
    }

    // The lists are read after the array is taken, so that it does not name itself. Without memory for one nothing is named.
    private void SendArray()
    {
        const uint PerArray = (uint)(BlockSize / 8);
        sending = false;
        ending = true;
        ulong array = platform.AllocatePages(Order);
        if (array == 0)
            return;
        held[0] = (uint)(array / DriverPlatform.PageSize);
        heldCount = 1;
        uint count = platform.ListFreeBlocks(Order, array, PerArray);
        if (count == 0 || !queue.Add(ArrayToken, 0, 0, array, count * 8))
        {
            Release();
            return;
        }
        HintedBytes += count * BlockSize;
        queue.Kick();
    }

    private void Release()
    {
        while (heldCount > 0)
            platform.FreePages((ulong)held[--heldCount] * DriverPlatform.PageSize, Order);
    }
}
