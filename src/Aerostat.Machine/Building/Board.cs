using System.Text.Json.Serialization.Metadata;
using Aerostat.Chipset;
using Aerostat.Devices;
using Aerostat.HyperV;
using Aerostat.Memory;
using Aerostat.Platform;
using Aerostat.Processors;
using Aerostat.State;
using Aerostat.VMware;

namespace Aerostat.Machine;

/// <summary>
/// The PC board: every device, the wires between them, and where they sit on the buses. Devices know neither each other nor the
/// machine; what connects them is all here.
/// </summary>
internal sealed class Board
{
    // What a BIOS leaves open on the 8259 pair: timer, keyboard, serial port, RTC.
    private const ushort FirmwareIrqs = (1 << 0) | (1 << PcLayout.KeyboardIrq) | (1 << PcLayout.Com1Irq) | (1 << PcLayout.RtcIrq);

    private const int TestDeviceIrq = 11;

    // ELCR 2, IRQ 8..15: the ACPI interrupt is level-triggered (PIIX data sheet, 2.5.3.6).
    private const ushort EdgeLevelPort2 = 0x4D1;

    // I/O APIC inputs that the HPET's comparators may be routed to, as on Intel's chipsets.
    private static readonly int[] s_hpetPins = [20, 21, 22, 23];

    private readonly List<IDevice> devices = [];
    private readonly VirtioBoard virtio;
    private readonly PciMemorySpace pciSpace;
    private readonly List<PciEndpoint> functions = [];
    private readonly List<StateElement> elements = [];
    private readonly List<string> unsavable = [];
    private readonly Pic pic;
    private readonly AcpiPm acpiPm;
    private readonly Rtc rtc;
    private readonly ushort firmwareIrqs = FirmwareIrqs;

    /// <summary>Builds the board around its processors.</summary>
    /// <param name="options">What was asked for.</param>
    /// <param name="memory">Guest memory; CMOS tells its size.</param>
    /// <param name="clock">VM time.</param>
    /// <param name="processors">The vCPUs; each gets a local APIC.</param>
    /// <param name="x2Apic">Whether CPUID announces the x2APIC.</param>
    /// <param name="hypervisor">May keep the local APICs.</param>
    /// <param name="request">Where a guest's wish to reset, power off, suspend or exit goes. Called on vCPU threads; returns at once.</param>
    /// <param name="wake">Called when an event ends S3, on any thread; returns at once.</param>
    /// <param name="disks">The contents of its disks; disposed of by the caller.</param>
    /// <param name="hyperV">What the Hyper-V personality needs; null: the machine has another.</param>
    public Board(
        MachineOptions options, GuestMemory memory, VmClock clock, IReadOnlyList<IVirtualProcessor> processors, bool x2Apic,
        IHypervisor hypervisor, Action<GuestRequest> request, Action wake, BoardDisks disks, HyperVHost? hyperV = null)
    {
        Fabric = new InterruptFabric { Hosted = hypervisor.LocalApics };
        void RequestReset() => request(new GuestRequest(MachineExitKind.Reset));

        // Interrupts.
        InterruptFabric fabric = Fabric;
        LocalApics = [.. processors.Select(p => Add(new LocalApic(new LocalApicOptions { Id = p.Index, X2Apic = x2Apic }, p, p.Timestamp, fabric, clock), static () => ChipsetStates.Default.LocalApicSavedState))];
        pic = Add(new Pic(fabric.ExternalInterrupt), static () => ChipsetStates.Default.PicSavedState);
        fabric.ExternalInterruptController = pic;
        Claim(pic, PcPorts.Pic);
        IoApic ioApic = Add(new IoApic(fabric), static () => ChipsetStates.Default.IoApicSavedState);
        Mmio.Add(ioApic.Name, PcLayout.IoApicBase, PcLayout.IoApicSize, ioApic);
        GsiRouter router = new(pic, ioApic);

        // Time. In legacy replacement mode the HPET takes the place of the 8254 and the RTC on their interrupts.
        Hpet hpet = Add(new Hpet(
            router.Connect(0), router.Connect(PcLayout.RtcIrq),
            s_hpetPins.Select(pin => KeyValuePair.Create(pin, router.Connect(pin))), clock), static () => ChipsetStates.Default.HpetSavedState);
        Mmio.Add(hpet.Name, PcLayout.HpetBase, PcLayout.HpetSize, hpet);
        Pit pit = Add(new Pit(hpet.PitInput, clock), static () => ChipsetStates.Default.PitSavedState);
        Claim(pit, PcPorts.Pit);
        Claim(Add(new SystemControlPortB(pit, clock), static () => ChipsetStates.Default.SystemControlPortBSavedState), PcPorts.SystemControlB);
        rtc = Add(new Rtc(new RtcOptions
        {
            Epoch = clock.GetUtcNow(),
            LowMemory = Math.Min(memory.TotalBytes, GuestMemory.PciHoleStart),
            HighMemory = memory.TotalBytes - Math.Min(memory.TotalBytes, GuestMemory.PciHoleStart),
        }, hpet.RtcInput, clock), static () => ChipsetStates.Default.RtcSavedState);
        Claim(rtc, PcPorts.Rtc);

        // Serial line.
        Serial = new SerialPort(options.Serial);
        Serial16550 uart = Add(new Serial16550("serial0", PcPorts.Com1.First, router.Connect(PcLayout.Com1Irq), Serial) { AwaitsListener = true }, static () => ChipsetStates.Default.Serial16550SavedState);
        Serial.Connect(uart);
        Claim(uart, PcPorts.Com1);

        // Power and reset.
        acpiPm = Add(new AcpiPm(
            new AcpiPmOptions(), router.Connect(PcLayout.SciIrq), clock,
            () => request(new GuestRequest(MachineExitKind.PoweredOff)), () => request(GuestRequest.Suspend), wake), static () => ChipsetStates.Default.AcpiPmSavedState);
        rtc.AlarmRaised += () => acpiPm.SignalRtcAlarm();
        Claim(acpiPm, PcPorts.AcpiPm);
        Claim(Add(new ResetControl(RequestReset), static () => ChipsetStates.Default.ResetControlSavedState), PcPorts.ResetControl);
        Claim(Add(new SystemControlPortA(RequestReset), static () => ChipsetStates.Default.SystemControlPortASavedState), PcPorts.SystemControlA);
        Claim(Add(new I8042(router.Connect(PcLayout.KeyboardIrq), RequestReset), static () => ChipsetStates.Default.I8042SavedState), PcPorts.I8042);

        // Identity.
        GenerationId = Add(
            new VmGenerationId(memory, () => acpiPm.RaiseGeneralPurposeEvent(PcLayout.GenerationIdEvent)), static () => ChipsetStates.Default.VmGenerationIdSavedState);

        // PCI.
        PciBus pci = new();
        pci.Attach(0, 0, Add(new PciHostBridge(PcLayout.EcamBase), static () => ChipsetStates.Default.PciHostBridgeSavedState));
        Claim(Add(new PciConfigurationPorts(pci), static () => ChipsetStates.Default.PciConfigurationPortsSavedState), PcPorts.PciConfiguration);
        PciEcamWindow ecam = AddStateless(new PciEcamWindow(pci));
        Mmio.Add(ecam.Name, PcLayout.EcamBase, PcLayout.EcamSize, ecam);

        pciSpace = new PciMemorySpace { Doorbells = hypervisor.Doorbells };
        virtio = new VirtioBoard(options, disks, memory, clock, pci, pciSpace, Mmio, router, fabric);
        devices.AddRange(virtio.Parts);
        elements.AddRange(virtio.Elements);
        functions.AddRange(virtio.Functions);

        if (options.Personality == VmwarePersonality.Name)
        {
            VmciDevice vmci = new(memory, pciSpace, fabric, router.Connect(PcLayout.PciGsi(VirtioPlacement.PersonalitySlot, 0)));
            pci.Attach(VirtioPlacement.PersonalitySlot, 0, vmci);
            functions.Add(vmci);
            Vmware = new VmwareParts(options, memory, clock, processors[0].Timestamp, vmci, x2Apic, transfers: options.Accelerator != "kvm");
            AddStateless(Vmware.Backdoor);
            Add(Vmware.Tools, static () => VmwareStates.Default.GuestToolsSavedState);
            Add(Vmware.Balloon, static () => VmwareStates.Default.VmwareBalloonSavedState);
            Add(vmci, static () => VmwareStates.Default.VmciSavedState);
        }
        if (functions.Count > 0)
        {
            Mmio.Add("pci-memory", PcLayout.PciWindowBase, PcLayout.PciWindowSize, pciSpace.OpenWindow(PcLayout.PciWindowBase, PcLayout.PciWindowSize));
            Mmio.Add("pci-memory-high", PcLayout.PciHighWindowBase, PcLayout.PciHighWindowSize, pciSpace.OpenWindow(PcLayout.PciHighWindowBase, PcLayout.PciHighWindowSize));
        }
        if (hyperV is not null)
            devices.Add(HyperV = new HyperVBoard(hyperV, memory, clock, processors, LocalApics, DescribeDynamicMemory(options, memory), disks));

        foreach (DeviceOptions device in options.Devices)
        {
            switch (device)
            {
                case DebugExitOptions exit:
                    DebugExit port = AddStateless(new DebugExit(exit.Port, status => request(new GuestRequest(MachineExitKind.DebugExit, status))));
                    Claim(port, new PortRange(exit.Port, 1));
                    break;
                case TestDeviceOptions:
                    TestDevice test = Add(new TestDevice(Enumerable.Range(0, TestDevice.InterruptPortCount).Select(router.Connect)), static () => ChipsetStates.Default.TestDeviceSavedState);
                    Claim(test, TestDevice.LatchPorts);
                    Ports.Add(test.Name, TestDevice.InterruptPorts, TestDevice.InterruptPortCount, test.Interrupts, widest: 1);
                    Mmio.Add(test.Name, TestDevice.MmioBase, TestDevice.MmioSize, test);
                    // Its real-mode test waits for IRQ 11 without having programmed the 8259 pair.
                    firmwareIrqs |= 1 << TestDeviceIrq;
                    break;
                case HyperVTestDeviceOptions:
                    Claim(Add(new HyperVTestDevice(HyperV!.Partition), static () => HyperVStates.Default.HyperVTestDeviceSavedState), HyperVTestDevice.Ports);
                    break;
                case VirtioOptions:
                    break;
                default:
                    throw new ConfigurationException($"--device: {device.GetType().Name} cannot be put on this board");
            }
        }
        ConfigureLikeFirmware();
    }

    /// <summary>The I/O ports.</summary>
    public PortBus Ports { get; } = new();

    /// <summary>The memory-mapped devices, but for the local APICs, of which each vCPU sees its own.</summary>
    public MmioBus Mmio { get; } = new();

    /// <summary>What carries interrupts between processors and controllers.</summary>
    public InterruptFabric Fabric { get; }

    /// <summary>The local APIC of each vCPU.</summary>
    public IReadOnlyList<LocalApic> LocalApics { get; }

    /// <summary>
    /// What takes memory from the guest: the virtio balloon, or else that of a personality (any part of the board that is one); null: nothing.
    /// </summary>
    public IBalloon? Balloon => devices.OfType<IBalloon>().OrderBy(b => b is Aerostat.Virtio.VirtioBalloon ? 0 : 1).FirstOrDefault() ?? HyperV?.Balloon;

    /// <summary>What belongs to the VMware personality; null: the machine has another.</summary>
    public VmwareParts? Vmware { get; }

    /// <summary>COM1, the host's end.</summary>
    public SerialPort Serial { get; }

    /// <summary>What tells the guest that it goes on from a copy of itself.</summary>
    public VmGenerationId GenerationId { get; }

    /// <summary>
    /// Every device with a state, in the order in which states are put back: first the interrupt controllers, so that devices that drive their
    /// lines again make no new edges, then the devices, at last the local APICs. Taking states goes devices first: some catch up with the time
    /// when asked, and may drive their lines then.
    /// </summary>
    public IEnumerable<StateElement> Elements => elements.OrderBy(e => e.Shape.Name switch { "pic" or "ioapic" => 0, "local-apic" => 2, _ => 1 });

    /// <summary>Devices whose state cannot be taken.</summary>
    public IReadOnlyList<string> Unsavable => unsavable;

    /// <summary>Every device that a reset reaches.</summary>
    public IReadOnlyList<IDevice> Devices => devices;

    /// <summary>What belongs to the Hyper-V personality; null: the machine has another.</summary>
    public HyperVBoard? HyperV { get; }

    /// <summary>The virtio devices.</summary>
    public VirtioBoard Virtio => virtio;

    /// <summary>Presses the power button.</summary>
    public void PressPowerButton() => acpiPm.PressPowerButton();

    /// <summary>Whether the guest has entered S3 and nothing has woken it yet.</summary>
    public bool IsAsleep => acpiPm.IsAsleep;

    /// <summary>What has become of its last press.</summary>
    public PowerButtonState PowerButton => acpiPm.PowerButton;

    /// <summary>Resets every device. No vCPU is in the guest.</summary>
    public void Reset() => Reset(static _ => true);

    /// <summary>Gives devices their power back after S3. What can wake the machine had it all the time. No vCPU is in the guest.</summary>
    public void Wake() => Reset(device => device != acpiPm && device != rtc);

    private static DynamicMemoryOptions DescribeDynamicMemory(MachineOptions options, GuestMemory memory) =>
        options.Devices.OfType<BalloonOptions>().FirstOrDefault(b => !b.IsVirtio) is { } balloon
            ? new DynamicMemoryOptions { TargetBytes = balloon.FirstTarget(memory.TotalBytes), Reporting = balloon.Reporting, Spare = memory.Regions.FirstOrDefault(static r => r.IsSpare) }
            : new DynamicMemoryOptions();

    private void Reset(Func<IDevice, bool> which)
    {
        foreach (IDevice device in devices.Where(which))
            device.Reset();
        Serial.Reset();
        ConfigureLikeFirmware();
    }

    // The machine boots without firmware: what a BIOS would have set up, and kernels rely on, is done here.
    private void ConfigureLikeFirmware()
    {
        LocalApics[0].ConfigureVirtualWire();
        pic.ConfigureLikeFirmware(firmwareIrqs);
        pic.WritePort(EdgeLevelPort2, 1, 1u << (PcLayout.SciIrq - 8));
        PciEndpoint.Assign(functions, pciSpace);
    }

    // A device whose state cannot be taken. Snapshots are refused, and say why.
    private T Add<T>(T device)
        where T : IDevice
    {
        devices.Add(device);
        unsavable.Add(device.Name);
        return device;
    }

    private T Add<T, TState>(T device, Func<JsonTypeInfo<TState>> shape)
        where T : IDevice, ISavable<TState>
        where TState : class
    {
        devices.Add(device);
        elements.Add(StateElement.Of(device.Name, device, shape));
        return device;
    }

    // A device that keeps nothing.
    private T AddStateless<T>(T device)
        where T : IDevice
    {
        devices.Add(device);
        return device;
    }

    private void Claim<T>(T device, params IReadOnlyList<PortRange> ranges)
        where T : IDevice, IPortDevice
    {
        for (int i = 0; i < ranges.Count; i++)
        {
            try
            {
                Ports.Add(device.Name, ranges[i].First, ranges[i].Count, device);
            }
            catch (InvalidOperationException e)
            {
                throw new ConfigurationException($"{e.Message}; choose another port", e);
            }
        }
    }
}
