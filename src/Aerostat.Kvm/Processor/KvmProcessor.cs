using Aerostat.Memory;
using Aerostat.Platform;
using Aerostat.Processors;

namespace Aerostat.Kvm;

/// <summary>
/// A vCPU of /dev/kvm behind the seam that all processors share. Without a local APIC in the kernel the states that belong to it (halted, waiting for
/// start-up) are kept here, and interrupts are injected one at a time; with one, what comes here is the 8259 pair's vectors.
/// </summary>
/// <remarks>
/// Leaving on request. A thread that wants the vCPU's attention raises <see cref="attention"/>, then sets the shared page's immediate-exit
/// flag, then sends the kick signal if the vCPU's thread is inside <see cref="Run"/>. The signal is blocked in that thread except inside
/// KVM_RUN, which it ends at once, also before its first guest instruction; so no order of events loses it, and no handler ever runs.
/// </remarks>
internal sealed unsafe partial class KvmProcessor : IVirtualProcessor
{
    private readonly KvmCapabilities capabilities;
    private readonly KvmTimestamp timestamp;
    private readonly KvmLocalApics? localApics;
    private readonly KvmGatheredWrites? gathered;
    private readonly KvmDoorbells? doorbells;
    private readonly KvmSlots slots;
    private readonly KvmBreakpoints? breakpoints;
    private readonly GuestMemory memory;
    private readonly int fd;
    private readonly nuint runBytes;
    // SAFETY: the shared pages live until Dispose, which the owner calls after the vCPU's thread has ended; other threads touch them under kickLock,
    // which knows whether they are still there.
    private readonly KvmRun* run;
    private readonly ProcessorCounters counters = new();
    private readonly Lock kickLock = new();
    private bool disposed, kicked;
    private int hostThread, maskedThread;
    private volatile int managedThread;

    public KvmProcessor(VirtualProcessorOptions options, KvmCapabilities capabilities, GuestMemory memory, int machine, KvmLocalApics? localApics, KvmGatheredWrites? gathered, KvmDoorbells? doorbells, KvmSlots slots, KvmBreakpoints? breakpoints)
    {
        this.memory = memory;
        this.breakpoints = breakpoints;
        this.doorbells = doorbells;
        this.localApics = localApics;
        this.gathered = gathered;
        this.slots = slots;
        this.capabilities = capabilities;
        Index = options.Index;
        fd = KvmException.Check(KvmCalls.Control(machine, KvmIoctl.CreateVcpu, options.Index), $"vCPU {options.Index}");
        try
        {
            runBytes = (nuint)capabilities.RunAreaBytes;
            run = (KvmRun*)KvmCalls.Map(fd, runBytes);
            if (run == null)
                throw new KvmException($"the shared pages of vCPU {options.Index}", 12);
            timestamp = new KvmTimestamp(this, options.Clock, ChooseFrequency(options.TscFrequencyHz));
            SetCpuid(options.Cpuid);
            PrepareState();
            Reset();
        }
        catch
        {
            Dispose();
            throw;
        }
    }

    /// <inheritdoc/>
    public int Index { get; }

    /// <inheritdoc/>
    public ITimestampCounter Timestamp => timestamp;

    /// <inheritdoc/>
    public Action? WakeUp { get; set; }

    /// <inheritdoc/>
    public IReadOnlyList<(ulong From, ulong To)> LastBranches => [];

    /// <inheritdoc/>
    public ProcessorCounters Counters
    {
        get
        {
            // KVM counts no instructions.
            lock (counters.Named)
            {
                for (int i = 0; i < exitCounts.Length; i++)
                    if (exitCounts[i] != 0)
                        counters.Named[$"kvm-{ExitName(i)}"] = exitCounts[i];
                counters.Named["kvm-entries"] = entries;
                counters.Named["interrupts"] = interrupts;
                // The machine's, told by one of its vCPUs.
                if (Index == 0 && localApics is not null)
                    counters.Named["kvm-message-descriptors"] = localApics.DescriptorCount;
                if (Index == 0 && doorbells is not null)
                    (counters.Named["kvm-doorbells"], counters.Named["kvm-doorbell-rings"]) = doorbells.Counts;
                if (Index == 0 && gathered is not null)
                    counters.Named["kvm-gathered-writes"] = gathered.Count;
                if (Index == 0 && slots.RingPages is { } pages)
                    counters.Named["kvm-ring-pages"] = pages;
            }
            return counters;
        }
    }

    /// <summary>The vCPU's descriptor.</summary>
    internal int Descriptor => fd;

    /// <summary>Whether the caller is the thread that runs the guest, between entries.</summary>
    internal bool OnOwnThread => managedThread == Environment.CurrentManagedThreadId;

    /// <inheritdoc/>
    public void Dispose()
    {
        lock (kickLock)
        {
            if (disposed)
                return;
            disposed = true;
        }
        Unplant();
        if (run != null)
            KvmCalls.Unmap((byte*)run, runBytes);
        KvmCalls.Close(fd);
    }

    // From now on signals reach this thread.
    private void Enter()
    {
        if (maskedThread != Environment.CurrentManagedThreadId)
        {
            // The structure is a length and a set of so many bytes, without padding.
            uint* mask = stackalloc uint[3];
            ulong set = KvmCalls.BlockKicks();
            mask[0] = sizeof(ulong);
            mask[1] = (uint)set;
            mask[2] = (uint)(set >> 32);
            KvmException.Check(KvmCalls.Control(fd, KvmIoctl.SetSignalMask, mask), "a signal mask");
            maskedThread = Environment.CurrentManagedThreadId;
        }
        lock (kickLock)
        {
            managedThread = Environment.CurrentManagedThreadId;
            hostThread = HostThread.CurrentId;
        }
    }

    private void Leave()
    {
        bool consume;
        lock (kickLock)
        {
            hostThread = 0;
            managedThread = 0;
            consume = kicked;
            kicked = false;
        }
        if (consume)
            KvmCalls.ConsumeKick();
    }

    // After a request has been noted: makes the vCPU's thread look at it.
    private void Notify()
    {
        Interlocked.Exchange(ref attention, 1);
        if (OnOwnThread)
            return;
        lock (kickLock)
        {
            if (disposed)
                return;
            run->ImmediateExit = 1;
            if (hostThread != 0)
            {
                kicked = true;
                KvmCalls.Kick(hostThread);
            }
        }
    }

    /// <summary>
    /// Waits until the vCPU has been out of the guest at least for a moment. Any thread; not for its own, where it is out of it anyway.
    /// </summary>
    internal void LeaveGuestOnce()
    {
        long before = Volatile.Read(ref returns);
        if (!inGuest)
            return;
        Notify();
        SpinWait wait = default;
        while (inGuest && Volatile.Read(ref returns) == before)
            wait.SpinOnce();
    }

    /// <summary>Waits until the vCPU is out of the guest, where it stays since <see cref="KvmSlots.MayEnter"/> says so. Any thread.</summary>
    internal void StayOut()
    {
        while (inGuest)
            LeaveGuestOnce();
    }

    /// <summary>Before the guest is entered after VM time has stood still. The vCPU is not in the guest.</summary>
    internal void ResumeTimestamp() => timestamp.Resume();

    private long ChooseFrequency(long wanted)
    {
        int khz = KvmCalls.Control(fd, KvmIoctl.GetTscKhz);
        if (capabilities.TscControl && KvmCalls.Control(fd, KvmIoctl.SetTscKhz, (nint)(wanted / 1000)) >= 0)
            return wanted;
        return khz > 0 ? khz * 1000L : wanted;
    }

    private void SetCpuid(CpuidTable model)
    {
        CpuidTable table = KvmCpuid.WithFrequency(KvmCpuid.Mask(model, capabilities.SupportedCpuid), timestamp.FrequencyHz, localApics?.TimerFrequencyHz ?? KvmHypervisor.ApicTimerHz);
        (uint Leaf, uint Subleaf, CpuidResult Value)[] all =
        [
            // A leaf without sub-leaves is listed twice, once as "any".
            .. table.Entries.Where(e => e.Subleaf == CpuidTable.AnySubleaf || table.Get(e.Leaf, CpuidTable.AnySubleaf) != e.Value || IsIndexed(e.Leaf)).Where(e => !IsIndexed(e.Leaf) || e.Subleaf != CpuidTable.AnySubleaf),
        ];
        byte[] block = new byte[8 + (all.Length * sizeof(KvmCpuidEntry))];
        // SAFETY: the block holds the header and as many entries as it says.
        fixed (byte* pointer = block)
        {
            *(uint*)pointer = (uint)all.Length;
            KvmCpuidEntry* entry = (KvmCpuidEntry*)(pointer + 8);
            foreach ((uint leaf, uint subleaf, CpuidResult value) in all)
                *entry++ = new KvmCpuidEntry
                {
                    Function = leaf,
                    Index = subleaf == CpuidTable.AnySubleaf ? 0 : subleaf,
                    Flags = subleaf == CpuidTable.AnySubleaf ? 0 : KvmCpuidEntry.SignificantIndex,
                    Eax = value.Eax,
                    Ebx = value.Ebx,
                    Ecx = value.Ecx,
                    Edx = value.Edx,
                };
            KvmException.Check(KvmCalls.Control(fd, KvmIoctl.SetCpuid, pointer), "the CPUID table");
        }
        hasXsave = (table.Get(1, 0).Ecx & (1 << 26)) != 0;
        signature = table.Get(1, 0).Eax;

        static bool IsIndexed(uint leaf) => leaf is 4 or 7 or 0xB or 0xD or 0x1F or 0x8000_001D;
    }
}
