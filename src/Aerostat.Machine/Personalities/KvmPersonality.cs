using Aerostat.Chipset;
using Aerostat.Memory;
using Aerostat.Processors;
using Aerostat.State;

namespace Aerostat.Machine;

/// <summary>
/// What a guest of Linux's KVM finds, on one vCPU (the kernel's Documentation/virt/kvm/x86: cpuid.rst, msr.rst, hypercalls.rst): the
/// signature, kvmclock in memory with the wall clock at boot, the end of interrupts through memory, and the hypercalls that send IPIs
/// and that pair the host's clock with the time-stamp counter.
/// <para>
/// Not announced: steal time (nothing is stolen that VM time does not show) and what needs it, asynchronous page faults, the polling
/// control, and the wake-up of halted processors by hypercall.
/// </para>
/// </summary>
internal sealed class KvmPersonality : IPersonality, ISavable<KvmPersonalitySavedState>
{
    /// <summary>The name after <c>--personality</c>.</summary>
    public const string Name = "kvm";

    private const uint Signature = 0x4000_0000, Features = 0x4000_0001;

    // CPUID 0x40000001:EAX: kvmclock under the old and the new MSRs, no delays needed after port I/O, end of interrupt through memory,
    // kvmclock stable across vCPUs; and IPIs by hypercall.
    private const uint FeatureBits = 1u << 0 | 1u << 1 | 1u << 3 | 1u << 6 | 1u << 24, IpiFeature = 1u << 11;

    private const uint OldWallClock = 0x11, OldSystemTime = 0x12, WallClock = 0x4B56_4D00, SystemTime = 0x4B56_4D01, EndOfInterrupt = 0x4B56_4D04;
    private const ulong PollForInterrupt = 1, ClockPairing = 9, SendIpi = 10;
    private const ulong NoSuchHypercall = unchecked((ulong)-1000L), NotSupported = unchecked((ulong)-95L), BadAddress = unchecked((ulong)-14L);
    private const int PairingBytes = 64;

    private readonly IVirtualProcessor processor;
    private readonly GuestMemory memory;
    private readonly InterruptFabric fabric;
    private readonly LocalApic apic;
    private readonly KvmMasterClock clock;
    private readonly bool hypercalls;
    private ulong systemTime, wallClock, endOfInterrupt;
    private uint version;

    /// <summary>A vCPU's part.</summary>
    /// <param name="processor">The vCPU.</param>
    /// <param name="memory">Its memory.</param>
    /// <param name="fabric">Where its IPIs go.</param>
    /// <param name="apic">Its local APIC.</param>
    /// <param name="clock">The machine's clock.</param>
    /// <param name="hypercalls">Whether VMCALL and VMMCALL come here. Where they do not, no port takes their place: guests of this kind use the instructions.</param>
    public KvmPersonality(IVirtualProcessor processor, GuestMemory memory, InterruptFabric fabric, LocalApic apic, KvmMasterClock clock, bool hypercalls)
    {
        this.hypercalls = hypercalls;
        this.processor = processor;
        this.memory = memory;
        this.fabric = fabric;
        this.apic = apic;
        this.clock = clock;
        processor.Timestamp.Adjusted += Publish;
    }

    /// <summary>The signature and the features.</summary>
    /// <param name="table">The CPU model's.</param>
    /// <param name="hypercalls">Whether hypercalls come here.</param>
    public static CpuidTable AddCpuid(CpuidTable table, bool hypercalls) => table
        // "KVMKVMKVM".
        .Set(Signature, 0, new CpuidResult(Features, 0x4B4D_564B, 0x564B_4D56, 0x4D), anySubleaf: true)
        .Set(Features, 0, new CpuidResult(FeatureBits | (hypercalls ? IpiFeature : 0), 0, 0, 0), anySubleaf: true);

    /// <inheritdoc/>
    public bool ReadMsr(uint index, out ulong value)
    {
        value = index switch
        {
            OldSystemTime or SystemTime => systemTime,
            OldWallClock or WallClock => wallClock,
            // INIT turns it off.
            _ => apic.EndOfInterruptFlag is null ? endOfInterrupt & ~1UL : endOfInterrupt,
        };
        return index is OldSystemTime or SystemTime or OldWallClock or WallClock or EndOfInterrupt;
    }

    /// <inheritdoc/>
    public bool WriteMsr(uint index, ulong value)
    {
        switch (index)
        {
            case OldSystemTime or SystemTime:
                systemTime = value;
                Publish();
                return true;
            case OldWallClock or WallClock:
                wallClock = value;
                PublishWallClock();
                return true;
            case EndOfInterrupt:
                // Bit 0 enables, bit 1 is reserved; the rest is an address.
                GuestAddress at = new(value & ~3UL);
                if ((value & 2) != 0 || ((value & 1) != 0 && !memory.TryRead(at, out uint _)))
                    return false;
                endOfInterrupt = value;
                apic.EndOfInterruptFlag = (value & 1) != 0 ? new EndFlag(memory, at) : null;
                return true;
            default:
                return false;
        }
    }

    /// <inheritdoc/>
    public bool Hypercall(Span<ulong> registers)
    {
        if (!hypercalls)
            return false;
        // The number is in RAX, arguments are in RBX, RCX, RDX and RSI.
        registers[0] = registers[0] switch
        {
            // Interrupts are taken on the way back in any case.
            PollForInterrupt => 0,
            ClockPairing => PairClocks(registers[3], registers[1]),
            SendIpi => (ulong)SendIpis(registers[3], registers[1], (uint)registers[2], (uint)registers[6]),
            _ => NoSuchHypercall,
        };
        return true;
    }

    /// <inheritdoc/>
    public void Reset()
    {
        systemTime = wallClock = endOfInterrupt = 0;
        apic.EndOfInterruptFlag = null;
    }

    /// <summary>Writes struct kvm_clock_pairing: the time of day, and what the time-stamp counter showed then.</summary>
    private ulong PairClocks(ulong address, ulong clockType)
    {
        const ulong wallClockType = 0;
        if (clockType != wallClockType)
            return NotSupported;
        KvmTimePair pair = clock.Measure(processor.Timestamp);
        long ticks = (clock.BootTime - DateTimeOffset.UnixEpoch).Ticks, seconds = ticks / TimeSpan.TicksPerSecond;
        ulong nanoseconds = (ulong)(ticks % TimeSpan.TicksPerSecond * TimeSpan.NanosecondsPerTick) + pair.Nanoseconds;
        Span<byte> body = stackalloc byte[PairingBytes];
        body.Clear();
        BitConverter.TryWriteBytes(body, seconds + (long)(nanoseconds / 1_000_000_000));
        BitConverter.TryWriteBytes(body[8..], nanoseconds % 1_000_000_000);
        BitConverter.TryWriteBytes(body[16..], pair.Tsc);
        return memory.TryWrite(new GuestAddress(address), body) ? 0 : BadAddress;
    }

    /// <inheritdoc/>
    public IEnumerable<StateElement> Elements => [StateElement.Of($"kvm{processor.Index}", this, static () => MachineStates.Default.KvmPersonalitySavedState)];

    /// <inheritdoc/>
    public KvmPersonalitySavedState Save() => new() { SystemTime = systemTime, WallClock = wallClock, Version = version, EndOfInterrupt = apic.EndOfInterruptFlag is null ? 0 : endOfInterrupt };

    /// <inheritdoc/>
    public void Restore(KvmPersonalitySavedState state)
    {
        // What the guest reads is in its memory, and holds as well here: VM time and time-stamp counter go on from where they were.
        systemTime = state.SystemTime;
        wallClock = state.WallClock;
        version = state.Version;
        endOfInterrupt = state.EndOfInterrupt;
        apic.EndOfInterruptFlag = (endOfInterrupt & 1) != 0 ? new EndFlag(memory, new GuestAddress(endOfInterrupt & ~3UL)) : null;
    }

    // 128 APIC IDs from a first one on; answers how many took it.
    private long SendIpis(ulong low, ulong high, uint first, uint command)
    {
        long count = 0;
        for (int i = 0; i < 128; i++)
        {
            if (((i < 64 ? low >> i : high >> (i - 64)) & 1) != 0 && first + (uint)i >= first && fabric.SendCommand(first + (uint)i, command))
                count++;
        }
        return count;
    }

    /// <summary>Writes struct pvclock_vcpu_time_info: the version is odd while it changes.</summary>
    private void Publish()
    {
        if ((systemTime & 1) == 0)
            return;
        GuestAddress at = new(systemTime & ~1UL);
        KvmTimePair pair = clock.Read(processor.Timestamp);
        (uint multiplier, int shift) = Scale(processor.Timestamp.FrequencyHz);
        Span<byte> body = stackalloc byte[24];
        BitConverter.TryWriteBytes(body, pair.Tsc);
        BitConverter.TryWriteBytes(body[8..], pair.Nanoseconds);
        BitConverter.TryWriteBytes(body[16..], multiplier);
        body[20] = (byte)(sbyte)shift;
        body[21] = pair.IsStable ? (byte)1 : (byte)0;
        body[22] = body[23] = 0;
        version = (version | 1) + 2;
        // Where there is no memory there is nobody to read it either.
        if (memory.TryWrite(at, version) && memory.TryWrite(new GuestAddress(at.Value + 8), body))
            memory.TryWrite(at, ++version);
    }

    /// <summary>Writes struct pvclock_wall_clock: the time of day when VM time was zero.</summary>
    private void PublishWallClock()
    {
        if (wallClock == 0)
            return;
        GuestAddress at = new(wallClock);
        TimeSpan boot = clock.BootTime - DateTimeOffset.UnixEpoch;
        Span<byte> body = stackalloc byte[8];
        BitConverter.TryWriteBytes(body, (uint)(boot.Ticks / TimeSpan.TicksPerSecond));
        BitConverter.TryWriteBytes(body[4..], (uint)(boot.Ticks % TimeSpan.TicksPerSecond * TimeSpan.NanosecondsPerTick));
        uint number = memory.TryRead(at, out uint before) ? before | 1 : 1;
        if (memory.TryWrite(at, number) && memory.TryWrite(new GuestAddress(at.Value + 4), body))
            memory.TryWrite(at, number + 1);
    }

    /// <summary>nanoseconds = ((ticks shifted left) * multiplier) >> 32, with the multiplier's top bit set.</summary>
    internal static (uint Multiplier, int Shift) Scale(long frequencyHz)
    {
        int shift = 0;
        UInt128 factor = ((UInt128)1_000_000_000 << 32) / (UInt128)frequencyHz;
        while (factor > uint.MaxValue)
        {
            factor >>= 1;
            shift++;
        }
        while (factor < 1u << 31)
        {
            shift--;
            factor = ((UInt128)1_000_000_000 << (32 - shift)) / (UInt128)frequencyHz;
        }
        return ((uint)factor, shift);
    }

    private sealed class EndFlag(GuestMemory memory, GuestAddress at) : IEndOfInterruptFlag
    {
        public bool Set() => memory.TryWrite(at, (byte)1);

        public bool Clear()
        {
            bool set = memory.TryRead(at, out byte value) && (value & 1) != 0;
            if (set)
                memory.TryWrite(at, (byte)(value & ~1));
            return set;
        }
    }
}

/// <summary>One vCPU's part of the personality at rest.</summary>
[SavedState("kvm-personality", 1)]
internal sealed record KvmPersonalitySavedState
{
    /// <summary>MSR_KVM_PV_EOI_EN.</summary>
    public ulong EndOfInterrupt { get; init; }
    /// <summary>MSR_KVM_SYSTEM_TIME_NEW.</summary>
    public ulong SystemTime { get; init; }
    /// <summary>MSR_KVM_WALL_CLOCK_NEW.</summary>
    public ulong WallClock { get; init; }
    /// <summary>Version of the published time.</summary>
    public uint Version { get; init; }
}
