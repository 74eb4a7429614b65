using System.Buffers.Binary;
using System.Text;
using Aerostat.Chipset;
using Aerostat.Memory;
using Aerostat.Processors;
using Aerostat.State;

namespace Aerostat.HyperV;

/// <summary>A processor and its interrupt controller, as a partition is built around it.</summary>
/// <param name="Timestamp">Its time-stamp counter.</param>
/// <param name="Apic">Its local APIC.</param>
public readonly record struct PartitionProcessor(ITimestampCounter Timestamp, LocalApic Apic);

/// <summary>What a partition is made from.</summary>
public sealed record PartitionOptions
{
    /// <summary>Whether hypercalls are made with VMMCALL, as on AMD's processors, in place of VMCALL.</summary>
    public bool UsesVmmcall { get; init; }

    /// <summary>The port that hypercalls are made with in place of an instruction for them, 0 to 255; null: none. See <see cref="IHypervisor.HypercallPort"/>.</summary>
    public byte? HypercallPort { get; init; }

    /// <summary>Flushes the translations of the processors whose bits are set, and waits until that is done. Null: it cannot be done.</summary>
    public Action<ulong>? FlushTranslations { get; init; }

    /// <summary>Takes a range of memory that the guest does not use until it writes there; false: it is not memory. On a vCPU's thread. Null: it cannot be said.</summary>
    public Func<GuestAddress, ulong, bool>? ReportFree { get; init; }

    /// <summary>Takes what the guest says of its own crash. On a vCPU's thread; must return at once.</summary>
    public Action<GuestCrash>? Crashed { get; init; }
}

/// <summary>What a guest's kernel says when it dies (TLFS, 2.4.4: guest crash enlightenment).</summary>
/// <param name="Parameters">Five values of the guest's choice; in Linux: code, RIP, RAX or a message's address and length, depending on the version.</param>
/// <param name="Message">The end of its log; null: it gave none.</param>
public sealed record GuestCrash(IReadOnlyList<ulong> Parameters, string? Message)
{
    /// <summary>One line for people.</summary>
    public string Summary
    {
        get
        {
            string parameters = string.Join(' ', Parameters.Select(p => $"0x{p:x}"));
            string? panic = Message?.Split('\n').LastOrDefault(l => l.Contains("panic", StringComparison.OrdinalIgnoreCase));
            return $"the guest's kernel reports a crash ({parameters}){(panic is null ? "" : $": {panic.Trim()}")}";
        }
    }
}

/// <summary>
/// What the virtual processors of a Hyper-V guest share: identity, hypercall page, reference TSC page, connections, crash registers.
/// </summary>
/// <remarks>Registers may come from any vCPU's thread; the rest belongs to who builds and resets the machine.</remarks>
public sealed class HyperVPartition : ISavable<HyperVPartitionSavedState>
{
    /// <summary>Most virtual processors: as many as a mask in one word holds.</summary>
    public const int MaxProcessors = 64;

    private const ulong EnableBit = 1, LockedBit = 2, CrashNotify = 1UL << 63, CrashMessage = 1UL << 62;
    private const int CrashRegisters = 5, LongestCrashMessage = 4096;
    private const uint FirstSequence = 1;

    // ENDBR64; VMCALL, VMMCALL or OUT imm8, EAX; RET.
    private byte[] HypercallCode =>
    [
        0xF3, 0x0F, 0x1E, 0xFA,
        .. options.HypercallPort is { } port ? (ReadOnlySpan<byte>)[0xE7, port] : options.UsesVmmcall ? [0x0F, 0x01, 0xD9] : [0x0F, 0x01, 0xC1],
        0xC3,
    ];

    private readonly Lock gate = new();
    private readonly PartitionOptions options;
    private readonly GuestMemory memory;
    private readonly OverlayPage hypercallPage, tscPage;
    private readonly ulong[] crash = new ulong[CrashRegisters];
    private ulong guestOsId, hypercall, referenceTsc;
    private uint sequence = FirstSequence;
    private volatile bool hypercallsOn;

    /// <summary>Makes a partition in its power-on state.</summary>
    public HyperVPartition(IReadOnlyList<PartitionProcessor> processors, GuestMemory memory, TimeProvider clock, PartitionOptions options)
    {
        ArgumentNullException.ThrowIfNull(processors);
        ArgumentNullException.ThrowIfNull(options);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(processors.Count, MaxProcessors, nameof(processors));
        this.options = options;
        this.memory = memory;
        Time = new ReferenceClock(clock);
        hypercallPage = new OverlayPage(memory);
        tscPage = new OverlayPage(memory);
        Processors = [.. processors.Select((p, i) => new HyperVProcessor(this, i, p.Timestamp, p.Apic, memory, clock))];
        Hypercalls = new Hypercalls(this, memory, options.FlushTranslations, options.ReportFree);
    }

    /// <summary>The virtual processors, by index.</summary>
    public IReadOnlyList<HyperVProcessor> Processors { get; }

    /// <summary>Where posted messages and signalled events go.</summary>
    public Connections Connections { get; } = new();

    /// <summary>What the guest calls itself; 0: it has not said, or it is gone.</summary>
    public ulong GuestOsId
    {
        get
        {
            lock (gate)
                return guestOsId;
        }
    }

    /// <summary>Reference time now, 100 ns units.</summary>
    public ulong ReferenceTime => Time.Read(Processors[0].Timestamp);

    internal ReferenceClock Time { get; }
    internal Hypercalls Hypercalls { get; }
    internal bool IsHypercallEnabled => hypercallsOn;

    internal bool ReadMsr(uint index, out ulong value)
    {
        lock (gate)
        {
            value = index switch
            {
                HyperVMsr.GuestOsId => guestOsId,
                HyperVMsr.Hypercall => hypercall,
                HyperVMsr.ReferenceTsc => referenceTsc,
                >= HyperVMsr.CrashP0 and <= HyperVMsr.CrashP4 => crash[index - HyperVMsr.CrashP0],
                // What a guest may do: tell of a crash, with a message.
                HyperVMsr.CrashControl => CrashNotify | CrashMessage,
                _ => 0,
            };
            return index is HyperVMsr.GuestOsId or HyperVMsr.Hypercall or HyperVMsr.ReferenceTsc or (>= HyperVMsr.CrashP0 and <= HyperVMsr.CrashControl);
        }
    }

    internal bool WriteMsr(uint index, ulong value, ITimestampCounter counter)
    {
        GuestCrash? report;
        lock (gate)
        {
            switch (index)
            {
                case HyperVMsr.GuestOsId:
                    guestOsId = value;
                    if (value == 0)
                        DisableHypercalls();
                    return true;
                case HyperVMsr.Hypercall:
                    return WriteHypercall(value);
                case HyperVMsr.ReferenceTsc:
                    referenceTsc = value;
                    if (tscPage.Follow(value, default))
                        PublishTsc(counter);
                    return true;
                case >= HyperVMsr.CrashP0 and <= HyperVMsr.CrashP4:
                    crash[index - HyperVMsr.CrashP0] = value;
                    return true;
                case HyperVMsr.CrashControl:
                    if ((value & CrashNotify) == 0)
                        return true;
                    report = new GuestCrash([.. crash], (value & CrashMessage) != 0 ? ReadCrashMessage() : null);
                    break;
                default:
                    return false;
            }
        }
        options.Crashed?.Invoke(report);
        return true;
    }

    internal void OnTimestampAdjusted(ITimestampCounter counter)
    {
        if (!Time.Adjusted(counter))
            return;
        lock (gate)
        {
            if (tscPage.Address is not null)
                PublishTsc(counter);
        }
    }

    /// <summary>Back to the power-on state. No vCPU is in the guest.</summary>
    public void Reset()
    {
        foreach (HyperVProcessor processor in Processors)
            processor.Reset();
        lock (gate)
        {
            guestOsId = referenceTsc = 0;
            DisableHypercalls();
            hypercall = 0;
            tscPage.Remove();
            Array.Clear(crash);
            sequence = FirstSequence;
        }
        Time.Reset();
    }

    /// <inheritdoc/>
    public HyperVPartitionSavedState Save()
    {
        lock (gate)
        {
            (long offset, bool known, bool broken) = Time.Save();
            return new HyperVPartitionSavedState
            {
                GuestOsId = guestOsId,
                Hypercall = hypercall,
                ReferenceTsc = referenceTsc,
                UnderHypercallPage = hypercallPage.Save(),
                UnderTscPage = tscPage.Save(),
                Sequence = sequence,
                TimeOffset = offset,
                IsTimeKnown = known,
                IsTscUseless = broken,
                Crash = [.. crash],
            };
        }
    }

    /// <inheritdoc/>
    public void Restore(HyperVPartitionSavedState state)
    {
        ArgumentNullException.ThrowIfNull(state);
        if (state.Crash.Length != CrashRegisters)
            throw new ArgumentException("there are five crash registers");
        lock (gate)
        {
            guestOsId = state.GuestOsId;
            hypercall = state.Hypercall;
            referenceTsc = state.ReferenceTsc;
            hypercallPage.Restore(hypercall, state.UnderHypercallPage);
            tscPage.Restore(referenceTsc, state.UnderTscPage);
            hypercallsOn = hypercallPage.Address is not null;
            // It may have been made where hypercalls are made in another way.
            hypercallPage.Fill(HypercallCode);
            sequence = state.Sequence;
            Time.Restore(state.TimeOffset, state.IsTimeKnown, state.IsTscUseless);
            state.Crash.CopyTo(crash, 0);
        }
    }

    // TLFS, 3.13: without an identity the page cannot be enabled; locked, the register does not change any more.
    private bool WriteHypercall(ulong value)
    {
        if ((hypercall & LockedBit) != 0)
            return true;
        if (guestOsId == 0)
            value &= ~EnableBit;
        if ((value & EnableBit) != 0 && !memory.Contains(value & ~0xFFFUL, GuestAddress.PageSize))
            return false;
        hypercall = value & ~0xFFCUL;
        hypercallPage.Follow(hypercall, HypercallCode);
        hypercallsOn = hypercallPage.Address is not null;
        return true;
    }

    private void DisableHypercalls()
    {
        hypercall &= ~(EnableBit | LockedBit);
        hypercallPage.Remove();
        hypercallsOn = false;
    }

    // Scale and offset first, the sequence last; 0 sends the guest to the register (TLFS, 12.4).
    private void PublishTsc(ITimestampCounter counter)
    {
        if (!tscPage.TryGet(0, 24, out Span<byte> page))
            return;
        bool stable = Time.IsStable;
        BinaryPrimitives.WriteUInt64LittleEndian(page[8..], ReferenceClock.Scale(counter.FrequencyHz));
        BinaryPrimitives.WriteInt64LittleEndian(page[16..], stable ? Time.Offset(counter) : 0);
        Interlocked.MemoryBarrier();
        sequence = sequence >= uint.MaxValue - 1 ? FirstSequence : sequence + 1;
        BinaryPrimitives.WriteUInt32LittleEndian(page, stable ? sequence : 0);
        tscPage.Written(0, 24);
    }

    // P3 is an address, P4 a length.
    private string? ReadCrashMessage()
    {
        Span<byte> text = stackalloc byte[(int)Math.Min(crash[4], LongestCrashMessage)];
        if (!memory.TryRead(new GuestAddress(crash[3]), text))
            return null;
        StringBuilder line = new(text.Length);
        foreach (byte b in text)
        {
            if (b is (byte)'\n' or (byte)'\t' or (>= 32 and < 127))
                line.Append((char)b);
        }
        return line.ToString();
    }
}

/// <summary>What a partition's processors share, at rest.</summary>
[SavedState("hyperv-partition", 1)]
public sealed record HyperVPartitionSavedState
{
    /// <summary>Guest OS ID register.</summary>
    public ulong GuestOsId { get; init; }
    /// <summary>Hypercall register.</summary>
    public ulong Hypercall { get; init; }
    /// <summary>Reference TSC register.</summary>
    public ulong ReferenceTsc { get; init; }
    /// <summary>What the hypercall page covers; null: there is no page.</summary>
    public byte[]? UnderHypercallPage { get; init; }
    /// <summary>What the reference TSC page covers; null: there is no page.</summary>
    public byte[]? UnderTscPage { get; init; }
    /// <summary>The reference TSC page's sequence number.</summary>
    public uint Sequence { get; init; }
    /// <summary>Reference time less the scaled time-stamp counter.</summary>
    public long TimeOffset { get; init; }
    /// <summary>Whether the guest has asked for the time.</summary>
    public bool IsTimeKnown { get; init; }
    /// <summary>Whether a time-stamp counter has been moved.</summary>
    public bool IsTscUseless { get; init; }
    /// <summary>Crash registers P0 to P4.</summary>
    public ulong[] Crash { get; init; } = [];
}
