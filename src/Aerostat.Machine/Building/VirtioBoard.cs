using System.Text.Json.Serialization.Metadata;
using Aerostat.Chipset;
using Aerostat.Devices;
using Aerostat.Memory;
using Aerostat.State;
using Aerostat.Virtio;

namespace Aerostat.Machine;

/// <summary>The virtio devices of a board with their transports. Without any there is nothing: no thread.</summary>
internal sealed class VirtioBoard : IDisposable
{
    private readonly List<VirtioDevice> devices = [];
    private readonly List<PciEndpoint> functions = [];
    private readonly List<IDevice> parts = [];
    private readonly List<StateElement> elements = [];
    private readonly BoardDisks disks;
    private readonly IDoorbells? doorbells;
    // As devices are made.
    private bool quiet = true;

    /// <summary>Builds what the options name.</summary>
    public VirtioBoard(
        MachineOptions options, BoardDisks disks, GuestMemory memory, TimeProvider clock, PciBus pci, PciMemorySpace space, MmioBus mmio, GsiRouter router, InterruptFabric fabric)
    {
        this.disks = disks;
        doorbells = space.Doorbells;
        Build(new VirtioContext(memory, options.DeviceLog, clock), options, pci, space, mmio, router, fabric);
    }

    private void Build(VirtioContext context, MachineOptions options, PciBus pci, PciMemorySpace space, MmioBus mmio, GsiRouter router, InterruptFabric fabric)
    {
        foreach (VirtioPlace place in VirtioPlacement.Of(options.Devices))
        {
            VirtioDevice device = Create(place, context);
            devices.Add(device);
            if (place.Options.Transport == VirtioTransport.Mmio)
            {
                VirtioMmio registers = new(device, router.Connect(place.Gsi), place.Address, doorbells);
                mmio.Add(device.Name, place.Address, PcLayout.VirtioMmioStride, registers);
                Add(registers, static () => VirtioStates.Default.VirtioMmioSavedState);
                continue;
            }
            VirtioPci function = new(device, space, fabric, router.Connect(place.Gsi));
            pci.Attach(place.Index, 0, function);
            functions.Add(function);
            Add(function, static () => VirtioStates.Default.VirtioPciSavedState);
        }
    }

    /// <summary>Devices and transports, each device before its transport.</summary>
    public IReadOnlyList<IDevice> Parts => parts;

    /// <summary>The states of the parts, in the same order.</summary>
    public IReadOnlyList<StateElement> Elements => elements;

    /// <summary>The devices.</summary>
    public IReadOnlyList<VirtioDevice> Devices => devices;

    /// <summary>The transports on PCI.</summary>
    public IReadOnlyList<PciEndpoint> Functions => functions;

    /// <summary>Lets the devices' threads go on. The machine's queue only, as the next.</summary>
    public void Resume()
    {
        if (quiet)
            devices.ForEach(d => d.Resume());
        quiet = false;
    }

    /// <summary>Waits until no device's thread touches guest memory.</summary>
    public void Quiesce()
    {
        // What the guest has announced before it was stopped is the devices' to know.
        doorbells?.Drain();
        if (!quiet)
            devices.ForEach(d => d.Quiesce());
        quiet = true;
    }

    /// <summary>Ends the devices' threads.</summary>
    public void Stop() => devices.ForEach(d => d.Stop());

    /// <summary>The devices' figures, by name.</summary>
    public void AddCounters(Dictionary<string, long> counters)
    {
        foreach (VirtioDevice device in devices)
            foreach ((string name, long value) in device.Counters)
                counters[$"{device.Name}-{name}"] = value;
    }

    /// <summary>Ends the threads, if that was not done.</summary>
    public void Dispose() => Stop();

    private T Add<T, TState>(T part, Func<JsonTypeInfo<TState>> shape)
        where T : IDevice, ISavable<TState>
        where TState : class
    {
        parts.Add(part);
        elements.Add(StateElement.Of(part.Name, part, shape));
        return part;
    }

    private VirtioDevice Create(VirtioPlace place, VirtioContext context) => place.Options switch
    {
        RngOptions rng => Add(new VirtioRng(place.Name, rng.Packed, context), static () => VirtioStates.Default.VirtioRngSavedState),
        DiskOptions disk => Add(new VirtioBlock(place.Name, disks[place.Name], disk.Serial, disk.Queues, disk.Packed, context), static () => VirtioStates.Default.VirtioBlockSavedState),
        ConsoleOptions console => Add(new VirtioConsole(
            place.Name,
            [.. Enumerable.Range(0, console.Ports).Select(i => ($"port{i}", console.Output is { } output ? new ConsoleOutput(bytes => output(i, bytes.ToArray())) : null))],
            console.Packed, context), static () => VirtioStates.Default.VirtioConsoleSavedState),
        BalloonOptions balloon => Add(new VirtioBalloon(
            place.Name,
            new BalloonDeviceOptions
            {
                TargetBytes = balloon.FirstTarget(context.Memory.TotalBytes),
                StatisticsInterval = balloon.StatisticsInterval,
                DeflateOnOom = balloon.DeflateOnOom,
                Hinting = balloon.Hinting,
                Reporting = balloon.Reporting,
                Packed = balloon.Packed,
            },
            context), static () => VirtioStates.Default.VirtioBalloonSavedState),
        _ => throw new ConfigurationException($"--device: {place.Options.GetType().Name} cannot be put on this board"),
    };
}
