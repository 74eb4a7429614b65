using Aerostat.Devices;
using Aerostat.Interrupts;
using Aerostat.Memory;
using Aerostat.Processors;
using Aerostat.X86;

namespace Aerostat.Kvm;

/// <summary>
/// Runs guest code on the host's processor through /dev/kvm, by ioctls alone (Linux, Documentation/virt/kvm/api.rst). The local APICs are the
/// kernel's, where <see cref="KvmOptions.LocalApics"/> says so; the 8259 pair, the I/O APIC and the 8254 are always the machine's own.
/// Without local APICs in the kernel vectors are injected one at a time as the guest can take them.
/// </summary>
/// <remarks>
/// Not used: the kernel's 8259, I/O APIC, 8254 and clocks, and its Hyper-V partition: the synthetic registers come to the exit handler, as on every
/// other processor. VMCALL and VMMCALL are answered by the kernel; <see cref="HypercallPort"/> takes their place.
/// </remarks>
public sealed unsafe class KvmHypervisor : IHypervisor
{
    // Three pages that KVM on Intel hosts needs for itself (real mode without "unrestricted guest"), and one for an identity map, in the
    // hole below the BIOS at the end of 4 GiB, where a PC has nothing.
    private const ulong TssAddress = 0xFFFB_D000, IdentityMapAddress = 0xFFFB_C000;

    // What the machine's own local APICs count.
    internal const long ApicTimerHz = 25_000_000;

    // A port of one byte's address that a PC has nothing at.
    internal const byte HypercallPortNumber = 0xEC;

    private readonly GuestMemory memory;
    private readonly HashSet<int> made = [];
    private readonly KvmSlots slots;
    private readonly KvmBreakpoints? breakpoints;
    private readonly KvmLocalApics? localApics;
    private readonly KvmGatheredWrites? gathered;
    private readonly KvmDoorbells? doorbells;
    private readonly int device, machine;
    private bool disposed;

    /// <summary>Opens /dev/kvm and makes a machine of its own around guest memory, which must outlive it.</summary>
    /// <exception cref="NotSupportedException">This KVM lacks what Aerostat needs.</exception>
    /// <exception cref="KvmException">The host refuses; <see cref="KvmHost.Probe()"/> says so beforehand.</exception>
    public KvmHypervisor(GuestMemory memory, KvmOptions? options = null)
    {
        ArgumentNullException.ThrowIfNull(memory);
        options ??= KvmOptions.Bare;
        this.memory = memory;
        machine = -1;
        device = KvmException.Check(KvmCalls.Open(KvmHost.DevicePath), "to open /dev/kvm");
        try
        {
            Capabilities = KvmCapabilities.Read(device);
            if (Capabilities.ApiVersion != KvmIoctl.ApiVersion || Capabilities.MissingRequirement is not null)
                throw new NotSupportedException($"this host's KVM lacks {Capabilities.MissingRequirement ?? $"API version {KvmIoctl.ApiVersion}"}; use --accel auto");
            machine = KvmException.Check(KvmCalls.Control(device, KvmIoctl.CreateVm), "to make a virtual machine");
            // Hosts that do not need the pages refuse them.
            _ = KvmCalls.Control(machine, KvmIoctl.SetTssAddress, unchecked((nint)TssAddress));
            ulong identity = IdentityMapAddress;
            _ = KvmCalls.Control(machine, KvmIoctl.SetIdentityMapAddress, &identity);
            if (options.LocalApics == KvmLocalApicMode.Kernel && !Capabilities.SplitIrqchip)
                throw new NotSupportedException("this host's KVM keeps no local APICs");
            if (options.LocalApics != KvmLocalApicMode.Machine && Capabilities.SplitIrqchip)
                localApics = new KvmLocalApics(machine, Capabilities, ApicTimerHz, options.EventDescriptors);
            RouteMsrs();
            if (options.GathersWrites)
                gathered = KvmGatheredWrites.Create(machine, Capabilities);
            if (options.EventDescriptors && Capabilities.EventDescriptors && Capabilities.EventsOfAnyLength)
                doorbells = new KvmDoorbells(machine);
            slots = new KvmSlots(memory, machine, Capabilities, options.DirtyTracking);
            if (Capabilities is { GuestDebug: true, ReadonlyMemory: true })
                breakpoints = new KvmBreakpoints(memory, slots);
        }
        catch
        {
            Release();
            throw;
        }
    }

    /// <summary>What this host's KVM offers.</summary>
    public KvmCapabilities Capabilities { get; }

    /// <inheritdoc/>
    public string Name => "kvm";

    /// <inheritdoc/>
    /// <exception cref="ArgumentOutOfRangeException">The index is not below the count, or has been made before; or the host's KVM has not that many.</exception>
    public IVirtualProcessor CreateProcessor(VirtualProcessorOptions options)
    {
        ArgumentNullException.ThrowIfNull(options);
        if (options.Count > Capabilities.MaximumVcpus)
            throw new ArgumentOutOfRangeException(nameof(options), options.Count, $"this host's KVM has at most {Capabilities.MaximumVcpus} vCPUs in a machine");
        if (options.Index < 0 || options.Index >= options.Count || !made.Add(options.Index))
            throw new ArgumentOutOfRangeException(nameof(options), options.Index, $"vCPU numbers are 0..{options.Count - 1}, each once");
        KvmProcessor processor = new(options, Capabilities, memory, machine, localApics, gathered, doorbells, slots, breakpoints);
        localApics?.Add(processor);
        slots.Add(processor);
        return processor;
    }

    /// <inheritdoc/>
    public IHostedLocalApics? LocalApics => localApics;

    /// <inheritdoc/>
    public byte? HypercallPort => HypercallPortNumber;

    /// <inheritdoc/>
    public IDoorbells? Doorbells => doorbells;

    /// <inheritdoc/>
    public void Dispose()
    {
        if (disposed)
            return;
        disposed = true;
        doorbells?.Dispose();
        localApics?.Dispose();
        slots.Dispose();
        Release();
        breakpoints?.Dispose();
    }

    // What the machine's own devices hold: KVM would keep some of these registers itself and do nothing with them.
    private void RouteMsrs()
    {
        // KVM_MSR_EXIT_REASON_INVAL, _UNKNOWN, _FILTER.
        KvmEnableCapability exits = new() { Capability = (uint)KvmCapability.UserSpaceMsr };
        exits.Arguments[0] = 7;
        KvmException.Check(KvmCalls.Control(machine, KvmIoctl.EnableCapability, &exits), "MSR exits");
        ReadOnlySpan<(uint First, uint Count)> ours =
        [
            .. localApics is null ? (ReadOnlySpan<(uint, uint)>)[(Msr.ApicBase, 1), (Msr.TscDeadline, 1)] : [],
            // The synthetic MSRs of the hypervisor interfaces, as CPUID leaves from 40000000H on announce them.
            (0x11, 2), (0x4000_0000, 0x110), (0x4B56_4D00, 8),
        ];
        // A clear bit sends the access here, so one bitmap of zeros serves all.
        byte* zeros = stackalloc byte[0x40];
        new Span<byte>(zeros, 0x40).Clear();
        KvmMsrFilter filter = default;
        for (int i = 0; i < ours.Length; i++)
            filter.Ranges[i] = new KvmMsrRange { Flags = KvmMsrRange.Read | KvmMsrRange.Write, First = ours[i].First, Count = ours[i].Count, Bitmap = (ulong)zeros };
        KvmException.Check(KvmCalls.Control(machine, KvmIoctl.SetMsrFilter, &filter), "an MSR filter");
    }

    private void Release()
    {
        if (machine >= 0)
            KvmCalls.Close(machine);
        KvmCalls.Close(device);
    }
}
