namespace Aerostat.Guest.Drivers;

/// <summary>
/// VMware's memory balloon as a virtio transport, as its driver of March 2010 had it: two queues whose buffers become LOCK and UNLOCK commands, page by page,
/// and a configuration whose target is what the host last said. With <c>batched</c> it speaks today's form, 512 pages a command through a page of entries.
/// </summary>
/// <remarks>The channel is IN from port 0x5670; the host answers with a status, and with the target since the capabilities came.</remarks>
public sealed class VmwareTransport : VirtioTransport
{
    private const ushort BackdoorPort = 0x5658, ChannelPort = 0x5670;
    private const uint BackdoorMagic = 0x564D_5868, ChannelMagic = 0x456C_6D6F, GetVersion = 10;
    private const uint Start = 0, GetTarget = 1, Lock = 2, GuestId = 4, BatchedLock = 6;
    private const uint Success = 0, SuccessWithCapabilities = 0x0300_0000, ResetWanted = 7;
    private const uint BasicCommands = 2, BatchedCommands = 4, LinuxGuest = 1;
    private const ulong PollEvery = 1_000_000_000;
    private const int TargetAt = 0, ActualAt = 4, MostEntries = 512;

    private readonly DriverPlatform platform;
    private readonly bool batched;
    private readonly VmwareQueue?[] queues = new VmwareQueue?[2];
    private ulong batch;
    private uint status;
    private uint target;
    private uint actual;
    private bool targetIsCurrent;
    private bool resetPending;
    private ulong polledAt;
    private bool batching;

    private VmwareTransport(DriverPlatform platform, bool batched)
    {
        this.platform = platform;
        this.batched = batched;
    }

    public override string Name => batching ? "VMware, batched" : "VMware";

    public override uint Status
    {
        get => status;
        set => status = value;
    }

    public override ulong Offered => BalloonDriver.MustTellHost | BalloonDriver.HostMayRefuse | Version1;

    public override bool ResetPending => resetPending;

    public override bool AnswersAtOnce => true;

    /// <summary>Commands that the host answered with an error.</summary>
    public ulong Errors { get; private set; }

    /// <summary>Commands to lock or unlock pages.</summary>
    public ulong Commands { get; private set; }

    /// <summary>A transport, if the machine is one of VMware's: it says so in CPUID, and its backdoor answers with its magic number; otherwise null.</summary>
    public static VmwareTransport? Open(DriverPlatform platform, bool batched)
    {
        // QEMU has the backdoor too, without the balloon's channel.
        if (!platform.IsVmware)
            return null;
        uint version = platform.Call(BackdoorPort, BackdoorMagic, GetVersion, 0xFFFF_FFFF, 0, out ulong magic, out _);
        return version == 0xFFFF_FFFF || (uint)magic != BackdoorMagic ? null : new VmwareTransport(platform, batched);
    }

    public override void Accept(ulong features)
    {
    }

    public override DriverQueue? OpenQueue(int index, int most)
    {
        if (index > 1)
            return null;
        if (index == 0)
        {
            Begin();
            polledAt = platform.Nanoseconds;
        }
        VmwareQueue queue = queues[index] ?? new VmwareQueue(platform, this, (uint)index);
        queues[index] = queue;
        return queue;
    }

    public override uint ReadConfig(int offset)
    {
        if (offset == TargetAt && !targetIsCurrent)
            AskTarget();
        return offset switch { TargetAt => target, ActualAt => actual, _ => 0 };
    }

    public override void WriteConfig(int offset, uint value)
    {
        if (offset == ActualAt)
            actual = value;
    }

    /// <summary>The driver has given up its pages: START makes the host begin anew too.</summary>
    public override bool CompleteReset()
    {
        Begin();
        return false;
    }

    /// <summary>The host cannot call: its target is asked for each second.</summary>
    public override void Poll()
    {
        ulong now = platform.Nanoseconds;
        if (now - polledAt < PollEvery)
            return;
        polledAt = now;
        if (resetPending)
            return;
        targetIsCurrent = false;
    }

    /// <summary>Locks or unlocks the frames at an address, and says of each whether the host took it.</summary>
    internal void Hand(uint direction, ulong frames, uint count, ulong answers)
    {
        targetIsCurrent = false;
        if (batching)
        {
            HandBatch(direction, frames, count, answers);
            return;
        }
        for (uint i = 0; i < count; i++)
        {
            bool taken = !resetPending && Command(Lock + direction, platform.Read(frames + (4 * i), 4), 1, out _, out _);
            Commands++;
            platform.Write(answers + i, 1, taken ? BalloonDriver.PageOk : 0u);
        }
    }

    // Entries are the page's address with a status in the low bits, which the host writes.
    private void HandBatch(uint direction, ulong frames, uint count, ulong answers)
    {
        for (uint i = 0; i < count && i < MostEntries; i++)
            platform.Write64(batch + (8 * i), (ulong)platform.Read(frames + (4 * i), 4) << 12);
        bool whole = !resetPending && Command(BatchedLock + direction, batch >> 12, count, out _, out _);
        Commands++;
        for (uint i = 0; i < count; i++)
            platform.Write(answers + i, 1, whole && (platform.Read64(batch + (8 * i)) & 31) == Success ? BalloonDriver.PageOk : 0u);
    }

    private void Begin()
    {
        resetPending = true;
        batching = false;
        // What was handed over and not taken back belongs to what the host has forgotten.
        for (int i = 0; i < queues.Length; i++)
            queues[i]?.Clear();
        if (batched && batch == 0)
            batch = platform.AllocatePages(0);
        uint wanted = batched && batch != 0 ? BasicCommands | BatchedCommands : BasicCommands;
        uint answer = platform.Call(ChannelPort, ChannelMagic, Start, wanted, 0, out _, out ulong granted);
        if (answer is not (Success or SuccessWithCapabilities))
        {
            Errors++;
            return;
        }
        batching = answer == SuccessWithCapabilities && (granted & wanted & BatchedCommands) != 0;
        resetPending = false;
        targetIsCurrent = false;
        Command(GuestId, LinuxGuest, 0, out _, out _);
    }

    private void AskTarget()
    {
        // Without the capability for more, memory is counted in 32 bits.
        ulong limit = platform.TotalPages;
        if (resetPending || limit > 0xFFFF_FFFF || !Command(GetTarget, limit, 0, out ulong wanted, out _))
            return;
        target = (uint)wanted;
        targetIsCurrent = true;
    }

    private bool Command(uint command, ulong argument, ulong second, out ulong result, out ulong extra)
    {
        uint answer = platform.Call(ChannelPort, ChannelMagic, command, argument, second, out result, out extra);
        if (answer == Success)
            return true;
        Errors++;
        if (answer == ResetWanted)
            resetPending = true;
        return false;
    }
}
