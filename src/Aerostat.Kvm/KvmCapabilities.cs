using System.Runtime.InteropServices;
using Aerostat.Processors;

namespace Aerostat.Kvm;

/// <summary>What the KVM of a host offers, as far as Aerostat has a use for it. Read once from /dev/kvm; makes no virtual machine.</summary>
public sealed record KvmCapabilities
{
    /// <summary>KVM_GET_API_VERSION; Aerostat speaks version 12, the only one in use since 2007.</summary>
    public required int ApiVersion { get; init; }

    /// <summary>Most vCPUs in a machine.</summary>
    public required int MaximumVcpus { get; init; }

    /// <summary>Most memory slots in a machine.</summary>
    public required int MaximumSlots { get; init; }

    /// <summary>Bytes of the pages that a vCPU shares with the kernel.</summary>
    public required int RunAreaBytes { get; init; }

    /// <summary>Memory slots made of the program's own memory.</summary>
    public required bool UserMemory { get; init; }

    /// <summary>KVM_RUN can be told to complete what is half done and come back (Linux 4.13).</summary>
    public required bool ImmediateExit { get; init; }

    /// <summary>Accesses to MSRs that KVM does not know come to the program (Linux 5.10).</summary>
    public required bool UserSpaceMsr { get; init; }

    /// <summary>So do accesses to MSRs that the program names.</summary>
    public required bool MsrFilter { get; init; }

    /// <summary>An interrupt controller in the kernel can be had.</summary>
    public required bool Irqchip { get; init; }

    /// <summary>The local APICs alone in the kernel can be had.</summary>
    public required bool SplitIrqchip { get; init; }

    /// <summary>So can their timers' frequency be chosen (Linux 6.11); else it is 1 GHz.</summary>
    public required bool ApicTimerFrequency { get; init; }

    /// <summary>The guest's TSC can be scaled to a frequency of its own.</summary>
    public required bool TscControl { get; init; }

    /// <summary>Breakpoints and single steps of the host.</summary>
    public required bool GuestDebug { get; init; }

    /// <summary>Memory that the guest reads and executes, but whose writes come to the program.</summary>
    public required bool ReadonlyMemory { get; init; }

    /// <summary>A single step can keep interrupts out (Linux 5.16).</summary>
    public required bool BlocksInterruptsInSteps { get; init; }

    /// <summary>x87, SSE and AVX state in XSAVE form; bytes of the largest area, 0 without.</summary>
    public required int XsaveBytes { get; init; }

    /// <summary>XCR0 can be read and set.</summary>
    public required bool Xcrs { get; init; }

    /// <summary>DR0..DR7 can be read and set.</summary>
    public required bool DebugRegisters { get; init; }

    /// <summary>Pending and masked events can be read and set.</summary>
    public required bool VcpuEvents { get; init; }

    /// <summary>The kernel's clock of a machine can be read and set.</summary>
    public required bool Clock { get; init; }

    /// <summary>NMIs can be injected.</summary>
    public required bool Nmi { get; init; }

    /// <summary>Dirty pages can be had from a ring; the most entries, 0 without. (A bitmap for each slot there is always.)</summary>
    public required int DirtyRingEntries { get; init; }

    /// <summary>Writes to a port or an address can signal an eventfd, and an eventfd can raise an interrupt.</summary>
    public required bool EventDescriptors { get; init; }

    /// <summary>Such writes may be of any length (Linux 4.4).</summary>
    public required bool EventsOfAnyLength { get; init; }

    /// <summary>Writes to memory-mapped registers can be gathered.</summary>
    public required bool CoalescedMmio { get; init; }

    /// <summary>So can writes to ports.</summary>
    public required bool CoalescedPorts { get; init; }

    /// <summary>The Hyper-V enlightenments in the kernel.</summary>
    public required bool HyperV { get; init; }

    /// <summary>Which of them there are, by KVM's capabilities.</summary>
    public required IReadOnlyList<string> HyperVFeatures { get; init; }

    /// <summary>CPUID as far as this KVM can virtualize it (KVM_GET_SUPPORTED_CPUID).</summary>
    public required CpuidTable SupportedCpuid { get; init; }

    /// <summary>The MSRs that KVM saves and restores (KVM_GET_MSR_INDEX_LIST).</summary>
    public required IReadOnlyList<uint> Msrs { get; init; }

    /// <summary>What is there and what is not, by name, for people and for JSON.</summary>
    public IEnumerable<(string Name, string Value)> Describe() =>
    [
        ("api-version", $"{ApiVersion}"),
        ("max-vcpus", $"{MaximumVcpus}"),
        ("memory-slots", $"{MaximumSlots}"),
        ("immediate-exit", YesNo(ImmediateExit)),
        ("user-space-msr", YesNo(UserSpaceMsr)),
        ("msr-filter", YesNo(MsrFilter)),
        ("irqchip", YesNo(Irqchip)),
        ("split-irqchip", YesNo(SplitIrqchip)),
        ("apic-timer-frequency", YesNo(ApicTimerFrequency)),
        ("tsc-control", YesNo(TscControl)),
        ("guest-debug", YesNo(GuestDebug)),
        ("readonly-memory", YesNo(ReadonlyMemory)),
        ("xsave-bytes", $"{XsaveBytes}"),
        ("xcrs", YesNo(Xcrs)),
        ("debug-registers", YesNo(DebugRegisters)),
        ("vcpu-events", YesNo(VcpuEvents)),
        ("clock", YesNo(Clock)),
        ("nmi", YesNo(Nmi)),
        ("dirty-ring", DirtyRingEntries == 0 ? "no" : $"{DirtyRingEntries}"),
        ("ioeventfd-irqfd", YesNo(EventDescriptors)),
        ("coalesced-mmio", YesNo(CoalescedMmio)),
        ("coalesced-ports", YesNo(CoalescedPorts)),
        ("hyperv", HyperVFeatures.Count == 0 ? YesNo(HyperV) : string.Join('+', HyperVFeatures)),
        ("msrs", $"{Msrs.Count}"),
    ];

    /// <summary>What Aerostat cannot do without and this KVM lacks, or null.</summary>
    public string? MissingRequirement =>
        !UserMemory ? "user memory slots"
        : !ImmediateExit ? "immediate exit (Linux 4.13)"
        : XsaveBytes == 0 ? "XSAVE state"
        : !VcpuEvents ? "vCPU events"
        : !DebugRegisters ? "debug registers"
        : !Nmi ? "NMI injection"
        : !UserSpaceMsr || !MsrFilter ? "MSR exits (Linux 5.10)"
        : null;

    /// <summary>Reads the capabilities of an open /dev/kvm.</summary>
    internal static unsafe KvmCapabilities Read(int device)
    {
        int Check(KvmCapability capability) => Math.Max(0, KvmCalls.Control(device, KvmIoctl.CheckExtension, (nint)capability));
        bool Has(KvmCapability capability) => Check(capability) > 0;
        return new KvmCapabilities
        {
            ApiVersion = KvmCalls.Control(device, KvmIoctl.GetApiVersion),
            MaximumVcpus = Math.Max(Check(KvmCapability.MaximumVcpus), 1),
            MaximumSlots = Math.Max(Check(KvmCapability.MaximumSlots), 32),
            RunAreaBytes = Math.Max(0, KvmCalls.Control(device, KvmIoctl.GetVcpuMapSize)),
            UserMemory = Has(KvmCapability.UserMemory),
            ImmediateExit = Has(KvmCapability.ImmediateExit),
            UserSpaceMsr = Has(KvmCapability.UserSpaceMsr),
            MsrFilter = Has(KvmCapability.MsrFilter),
            Irqchip = Has(KvmCapability.Irqchip),
            SplitIrqchip = Has(KvmCapability.SplitIrqchip),
            ApicTimerFrequency = Has(KvmCapability.ApicBusCycle),
            TscControl = Has(KvmCapability.TscControl),
            GuestDebug = Has(KvmCapability.GuestDebug),
            ReadonlyMemory = Has(KvmCapability.ReadonlyMemory),
            BlocksInterruptsInSteps = (Check(KvmCapability.GuestDebug2) & 0x100000) != 0,
            XsaveBytes = Has(KvmCapability.Xsave) ? Math.Max(4096, Check(KvmCapability.Xsave2)) : 0,
            Xcrs = Has(KvmCapability.Xcrs),
            DebugRegisters = Has(KvmCapability.DebugRegisters),
            VcpuEvents = Has(KvmCapability.VcpuEvents),
            Clock = Has(KvmCapability.AdjustClock),
            Nmi = Has(KvmCapability.UserNmi),
            DirtyRingEntries = Check(KvmCapability.DirtyRing) / 16,
            EventDescriptors = Has(KvmCapability.Ioeventfd) && Has(KvmCapability.Irqfd),
            EventsOfAnyLength = Has(KvmCapability.IoeventfdAnyLength),
            CoalescedMmio = Has(KvmCapability.CoalescedMmio),
            CoalescedPorts = Has(KvmCapability.CoalescedPio),
            HyperV = Has(KvmCapability.HyperV),
            HyperVFeatures = [.. s_hyperV.Where(f => Has(f.Capability)).Select(f => f.Name)],
            SupportedCpuid = ReadCpuid(device),
            Msrs = ReadMsrs(device),
        };
    }

    private static readonly (KvmCapability Capability, string Name)[] s_hyperV =
    [
        (KvmCapability.HyperVSynic2, "synic"), (KvmCapability.HyperVVpIndex, "vp-index"), (KvmCapability.HyperVTlbFlush, "tlb-flush"),
        (KvmCapability.HyperVSendIpi, "send-ipi"), (KvmCapability.HyperVEventDescriptor, "eventfd"), (KvmCapability.HyperVCpuid, "cpuid"),
    ];

    private static string YesNo(bool value) => value ? "yes" : "no";

    private static unsafe CpuidTable ReadCpuid(int device)
    {
        CpuidTable table = new();
        for (int most = 128; most <= 4096; most *= 2)
        {
            int bytes = 8 + (most * sizeof(KvmCpuidEntry));
            // SAFETY: the block holds the header and as many entries as the header says.
            byte* block = (byte*)NativeMemory.AllocZeroed((nuint)bytes);
            try
            {
                *(uint*)block = (uint)most;
                int result = KvmCalls.Control(device, KvmIoctl.GetSupportedCpuid, block);
                if (result == -KvmCalls.TooBig)
                    continue;
                if (result < 0)
                    return table;
                KvmCpuidEntry* entries = (KvmCpuidEntry*)(block + 8);
                for (uint i = 0; i < Math.Min(*(uint*)block, (uint)most); i++)
                {
                    bool any = (entries[i].Flags & KvmCpuidEntry.SignificantIndex) == 0;
                    table.Set(entries[i].Function, entries[i].Index, new(entries[i].Eax, entries[i].Ebx, entries[i].Ecx, entries[i].Edx), any);
                }
                return table;
            }
            finally
            {
                NativeMemory.Free(block);
            }
        }
        return table;
    }

    private static unsafe uint[] ReadMsrs(int device)
    {
        uint header = 0;
        _ = KvmCalls.Control(device, KvmIoctl.GetMsrIndexList, &header);
        if (header is 0 or > 65536)
            return [];
        uint[] list = new uint[header + 1];
        list[0] = header;
        // SAFETY: the array holds the count and that many numbers.
        fixed (uint* pointer = list)
            return KvmCalls.Control(device, KvmIoctl.GetMsrIndexList, pointer) >= 0 ? list[1..(int)Math.Min(list[0] + 1, header + 1)] : [];
    }
}
