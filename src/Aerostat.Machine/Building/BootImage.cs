using Aerostat.Chipset;
using Aerostat.Loader;
using Aerostat.Memory;
using Aerostat.Platform;
using Aerostat.Processors;

namespace Aerostat.Machine;

/// <summary>What a machine starts with, opened and ready to be put into memory again at every reset.</summary>
internal sealed class BootImage : IDisposable
{
    private const uint RealModeCode = 0x9B, RealModeData = 0x93;

    private readonly MachineOptions options;
    private readonly KernelImage? kernel;
    private readonly BootFile? initrd;

    /// <summary>Opens the files.</summary>
    /// <exception cref="BootException">One of them is not there or is not what it should be.</exception>
    public BootImage(MachineOptions options)
    {
        this.options = options;
        if (options.Boot is UnavailableBootOptions none)
            throw new BootException(none.Reason);
        if (options.Boot is not KernelBootOptions boot)
            return;
        CheckKind(boot.Kernel, "kernel");
        kernel = KernelImage.Open(boot.Kernel);
        try
        {
            if (boot.InitrdBytes is null && boot.Initrd is not null)
                CheckKind(boot.Initrd, "initrd");
            initrd = boot.InitrdBytes is { } bytes ? BootFile.FromMemory(bytes, "image", "initrd")
                : boot.Initrd is { } path ? BootFile.Open(path, "initrd")
                : null;
        }
        catch
        {
            kernel.Dispose();
            throw;
        }
    }

    // Opening a pipe would wait for somebody to write to it.
    private static void CheckKind(string path, string kind)
    {
        if (path.Length == 0)
            throw new BootException($"the path of the {kind} is empty; give a file");
        if (HostFile.KindOf(path) == HostFileKind.Special)
            throw new BootException($"could not open {kind} {path}: it is a device or a pipe; give a regular file");
    }

    /// <summary>
    /// Writes firmware tables, kernel and initrd into memory. Answers what makes the start state of vCPU 0 out of its reset
    /// state, or null to leave it there.
    /// </summary>
    /// <exception cref="BootException">Something does not fit.</exception>
    public Func<ProcessorState, ProcessorState>? Load(GuestMemory memory, VmGenerationId identity)
    {
        switch (options.Boot)
        {
            case KernelBootOptions boot:
                SmbiosTables.Write(memory, options.Personality == VmwarePersonality.Name
                    ? VmwareParts.Describe(options)
                    : new SmbiosOptions { Processors = options.Cpus, MemoryBytes = options.MemoryBytes });
                ulong identityAddress = E820Map.GenerationIdAddress(memory);
                ulong rsdp = AcpiTables.Write(memory, DescribeBoard(identityAddress));
                identity.Publish(identityAddress);
                BootResult loaded = kernel!.Load(memory, new BootParameters
                {
                    MemoryMap = E820Map.ForPc(memory, PcLayout.EcamBase, PcLayout.EcamSize),
                    CommandLine = VirtioPlacement.ExtendCommandLine(boot.CommandLine, options.Devices),
                    Initrd = initrd,
                    RsdpAddress = rsdp,
                });
                return _ => loaded.State;
            case RealModeBootOptions code:
                memory.Write(new GuestAddress(code.Address), code.Code.Span);
                return reset => StartRealMode(reset, code.Address);
            default:
                return null;
        }
    }

    private static uint[] ApicIds(int count)
    {
        uint[] ids = new uint[count];
        for (int i = 0; i < count; i++)
            ids[i] = (uint)i;
        return ids;
    }

    private AcpiOptions DescribeBoard(ulong identityAddress) => new()
    {
        ApicIds = ApicIds(options.Cpus),
        LocalApicAddress = (uint)PcLayout.LocalApicBase,
        IoApicAddress = (uint)PcLayout.IoApicBase,
        HpetAddress = (uint)PcLayout.HpetBase,
        EcamAddress = PcLayout.EcamBase,
        SciInterrupt = PcLayout.SciIrq,
        Pm1EventPort = PcLayout.Pm1aEventPort,
        Pm1ControlPort = PcLayout.Pm1aControlPort,
        PmTimerPort = PcLayout.PmTimerPort,
        Gpe0Port = PcLayout.Gpe0Port,
        Gpe0Length = (byte)PcLayout.Gpe0Length,
        ResetPort = PcLayout.ResetPort,
        ResetValue = PcLayout.ResetValue,
        SleepTypeS5 = PcLayout.SleepTypeS5,
        SleepTypeS3 = PcLayout.SleepTypeS3,
        PciInterruptRoute = static (slot, pin) => (uint)PcLayout.PciGsi(slot, pin),
        Devices = [.. VirtioPlacement.Describe(options.Devices), .. options.Personality == HyperVPersonality.Name ? [HyperVBoard.Describe] : Array.Empty<Action<AmlBuilder>>()],
        GenerationIdAddress = identityAddress,
        GenerationIdEvent = PcLayout.GenerationIdEvent,
    };

    /// <summary>
    /// What makes the state of vCPU 0 after S3 out of its reset state; null when the guest has not said where it wants to go on. Memory
    /// is as the guest left it.
    /// </summary>
    public static Func<ProcessorState, ProcessorState>? Wake(MachineOptions options, GuestMemory memory) =>
        options.Boot is KernelBootOptions or RealModeBootOptions ? AcpiWake.Find(memory) : static reset => reset;

    private static ProcessorState StartRealMode(ProcessorState state, ushort address)
    {
        for (int i = 0; i < state.Segments.Length; i++)
            state.Segments[i] = new SegmentState(0, 0, 0xFFFF, i == 1 ? RealModeCode : RealModeData);
        state.Rip = address;
        state.Gpr[4] = address;
        return state;
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        kernel?.Dispose();
        initrd?.Dispose();
    }
}
