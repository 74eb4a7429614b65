namespace Aerostat.Guest.Drivers;

/// <summary>
/// The driver of a block device (virtio 1.2, 5.2). Unlike other drivers it waits for its device, for that is what file systems want; several writes are under way at a
/// time. A device that does not answer within ten seconds, or answers garbage, is given up.
/// </summary>
public sealed class VirtioBlockDriver : BlockDevice
{
    /// <summary>The device type.</summary>
    public const int Type = 2;

    private const ulong ReadOnly = 1UL << 5, FlushFeature = 1UL << 9;
    private const uint TypeIn = 0, TypeOut = 1, TypeFlush = 4;
    private const uint SectorsPerBlock = 8, HeaderSize = 16, AnswersAt = 2048;
    private const int MostRequests = 32, LongestQueue = 128;
    private const ulong AnswerWithin = 10_000_000_000;
    private const byte Unanswered = 0xFF;

    private readonly DriverPlatform platform;
    private readonly VirtioTransport transport;
    private readonly ulong[] addresses = new ulong[3];
    private readonly uint[] sizes = new uint[3];
    private readonly bool[] taken = new bool[MostRequests];
    private DriverQueue? queue;
    private ulong page;
    private ulong features;
    private int underway;
    private bool wrong;

    public VirtioBlockDriver(DriverPlatform platform, VirtioTransport transport)
    {
        this.platform = platform;
        this.transport = transport;
    }

    public bool IsRunning { get; private set; }

    public override ulong Blocks => IsRunning ? (((ulong)transport.ReadConfig(4) << 32) | transport.ReadConfig(0)) / SectorsPerBlock : 0;

    public override bool IsReadOnly => (features & ReadOnly) != 0;

    public ulong Reads { get; private set; }

    public ulong Writes { get; private set; }

    public ulong Flushes { get; private set; }

    /// <summary>Requests that the device did not carry out.</summary>
    public ulong Errors { get; private set; }

    /// <summary>Takes the device; null, or what is wrong.</summary>
    public string? Start()
    {
        if (page == 0 && (page = platform.AllocatePages(0)) == 0)
            return "no page for the driver";
        if (!transport.Reset(platform))
            return "the device does not come out of reset";
        transport.Status = VirtioTransport.Acknowledge;
        transport.Status |= VirtioTransport.Driver;
        features = transport.Offered & (ReadOnly | FlushFeature | VirtioTransport.Version1);
        transport.Accept(features);
        transport.Status |= VirtioTransport.FeaturesOk;
        if ((transport.Status & VirtioTransport.FeaturesOk) == 0)
            return Fail("the device does not accept our features");
        queue = transport.OpenQueue(0, LongestQueue);
        if (queue is null || queue.Room < addresses.Length)
            return Fail("the device lacks a queue");
        transport.Status |= VirtioTransport.DriverOk;
        underway = 0;
        for (int i = 0; i < MostRequests; i++)
            taken[i] = false;
        IsRunning = true;
        return null;
    }

    public override bool Read(ulong block, ulong to)
    {
        Reads++;
        // A read may not pass a write to the same block.
        return Drain() && Begin(TypeIn, block, to) && Drain();
    }

    public override bool Write(ulong block, ulong from)
    {
        Writes++;
        return Begin(TypeOut, block, from) && !wrong;
    }

    public override bool Flush()
    {
        Flushes++;
        return Drain() && ((features & FlushFeature) == 0 || (Begin(TypeFlush, 0, 0) && Drain()));
    }

    private string Fail(string why)
    {
        transport.Status |= VirtioTransport.Failed;
        return why;
    }

    // Header, data, a byte for the answer.
    private bool Begin(uint type, ulong block, ulong data)
    {
        if (!IsRunning || queue is null)
            return false;
        int slot;
        while ((slot = FreeSlot()) < 0 || queue.Room < addresses.Length)
            if (!WaitForOne())
                return false;
        ulong header = page + ((uint)slot * HeaderSize);
        platform.Write(header, 4, type);
        platform.Write(header + 4, 4, 0);
        platform.Write64(header + 8, block * SectorsPerBlock);
        platform.Write(page + AnswersAt + (uint)slot, 1, Unanswered);
        int count = 0;
        AddPart(ref count, header, HeaderSize);
        if (data != 0)
            AddPart(ref count, data, BlockSize);
        AddPart(ref count, page + AnswersAt + (uint)slot, 1);
        if (!queue.AddParts((uint)slot, addresses, sizes, type == TypeIn ? 1 : count - 1, count))
            return false;
        taken[slot] = true;
        underway++;
        queue.Kick();
        return true;
    }

    private void AddPart(ref int count, ulong address, uint size)
    {
        addresses[count] = address;
        sizes[count++] = size;
    }

    private int FreeSlot()
    {
        for (int i = 0; i < MostRequests; i++)
            if (!taken[i])
                return i;
        return -1;
    }

    // All that was begun is done; what failed is said once.
    private bool Drain()
    {
        while (underway > 0)
            if (!WaitForOne())
                return false;
        bool good = !wrong && IsRunning;
        wrong = false;
        return good;
    }

    private bool GiveUp(string why)
    {
        IsRunning = false;
        platform.Log(why);
        transport.Status |= VirtioTransport.Failed;
        return false;
    }

    private bool WaitForOne()
    {
        if (queue is null || !IsRunning)
            return false;
        uint slot;
        ulong begun = platform.Nanoseconds;
        while (!queue.TryTake(out slot))
        {
            if (queue.IsBroken)
                return GiveUp("disk: given up, for the device answers garbage");
            if (transport.ResetPending)
                return GiveUp("disk: given up, for the device wants a reset");
            if (platform.Nanoseconds - begun > AnswerWithin)
                return GiveUp("disk: given up, for the device does not answer");
            platform.Relax();
        }
        underway--;
        taken[slot] = false;
        if (platform.Read(page + AnswersAt + slot, 1) != 0)
        {
            Errors++;
            wrong = true;
        }
        return true;
    }
}
