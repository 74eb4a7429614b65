using Aerostat.Chipset;
using Aerostat.Devices;
using Aerostat.HyperV;
using Aerostat.Loader;
using Aerostat.Memory;
using Aerostat.Processors;
using Aerostat.State;

namespace Aerostat.Machine;

/// <summary>What a machine with the Hyper-V personality has besides every PC's devices: the partition, and a VMBus with the integration components.</summary>
internal sealed class HyperVBoard : IDevice
{
    // As of devices that are made: the bus stands still.
    private bool quiet = true;

    /// <summary>Builds it around the processors.</summary>
    public HyperVBoard(
        HyperVHost host, GuestMemory memory, TimeProvider clock, IReadOnlyList<IVirtualProcessor> processors, IReadOnlyList<LocalApic> apics, DynamicMemoryOptions balloon,
        BoardDisks disks)
    {
        Balloon = new DynamicMemory(memory, clock, balloon);
        Partition = new HyperVPartition(
            [.. processors.Zip(apics, (p, a) => new PartitionProcessor(p.Timestamp, a))], memory, clock,
            new PartitionOptions
            {
                UsesVmmcall = host.IsAmd,
                HypercallPort = host.Hypervisor.HypercallPort,
                FlushTranslations = host.Hypervisor.FlushTranslations,
                Crashed = host.Crashed,
                ReportFree = Balloon.TakesReports ? Balloon.Report : null,
            });
        Bus = new VmBusServer(Partition, memory, clock, new VmBusOptions { Log = host.Log }, host.Failed);
        Components = new HyperVComponents(Bus, TimeProvider.System, line => host.Note("freeze", line), Balloon);
        StorageDisk[] onScsi = [.. disks.OnScsi.Select(d => new StorageDisk(d.Name, d.Contents, d.Options.Serial))];
        if (onScsi.Length > 0)
            Bus.Add(Storage = new StorageController(onScsi, memory, host.Failed));
        Elements =
        [
            StateElement.Of("hyperv", Partition, static () => HyperVStates.Default.HyperVPartitionSavedState),
            StateElement.Of("vmbus", Bus, static () => HyperVStates.Default.VmBusSavedState),
        ];
    }

    /// <inheritdoc/>
    public string Name => "hyperv";

    /// <summary>The partition.</summary>
    public HyperVPartition Partition { get; }

    /// <summary>The VMBus.</summary>
    public VmBusServer Bus { get; }

    /// <summary>Dynamic memory.</summary>
    public DynamicMemory Balloon { get; }

    /// <summary>The storage controller; null: no disk is on one.</summary>
    public StorageController? Storage { get; }

    /// <summary>The integration components.</summary>
    public HyperVComponents Components { get; }

    /// <summary>The states of what the processors share, in the order in which they are put back: after the local APICs'.</summary>
    public IReadOnlyList<StateElement> Elements { get; }

    /// <summary>What the ACPI tables say of the bus (Linux, drivers/hv/vmbus_drv.c): the name is all that matters, but _CRS has to be there.</summary>
    public static void Describe(AmlBuilder sb) => sb.Device("VMBS", d => d
        .Name("_HID", "VMBus")
        .Name("_UID", 0)
        .Name("_DDN", "VMBUS")
        .Name("_STA", 0xF)
        .Name("_CRS", v => v.ResourceTemplate(_ => { })));

    /// <inheritdoc/>
    public void Reset()
    {
        Bus.Reset();
        Balloon.Reset();
        Partition.Reset();
    }

    /// <summary>The figures of what is on the bus, by name.</summary>
    public void AddCounters(Dictionary<string, long> counters)
    {
        foreach ((string name, long value) in Balloon.Counters)
            counters[$"{Balloon.Name}-{name}"] = value;
        foreach ((string name, long value) in Storage?.Counters ?? [])
            counters[name] = value;
    }

    /// <summary>Lets the bus go on. The machine's queue only, as the next.</summary>
    public void Resume()
    {
        if (quiet)
        {
            Bus.Resume();
            Storage?.Resume();
        }
        quiet = false;
    }

    /// <summary>Waits until the bus's and its devices' threads do not touch guest memory.</summary>
    public void Quiesce()
    {
        if (!quiet)
        {
            Bus.Quiesce();
            Storage?.Quiesce();
        }
        quiet = true;
    }

    /// <summary>Ends the threads. Guest memory and disks are there until this returns.</summary>
    public void Stop()
    {
        Bus.Stop();
        Storage?.Stop();
    }
}

/// <summary>What the Hyper-V personality needs of its machine.</summary>
/// <param name="IsAmd">Whether the processors say that they are AMD's.</param>
/// <param name="Hypervisor">How hypercalls reach the machine, and what can be flushed.</param>
/// <param name="Crashed">Takes what the guest says of its crash.</param>
/// <param name="Log">Where complaints about the guest go.</param>
/// <param name="Note">Writes an event of a kind into the journal.</param>
/// <param name="Failed">The bus's thread has failed.</param>
internal sealed record HyperVHost(
    bool IsAmd, IHypervisor Hypervisor, Action<GuestCrash> Crashed, IDeviceLog Log, Action<string, string> Note, Action<Exception> Failed);
