using System.ComponentModel;
using System.Threading.Channels;
using Aerostat.Memory;
using Aerostat.Platform;
using Aerostat.Processors;
using Aerostat.State;
using Aerostat.X86;

namespace Aerostat.Machine;

/// <summary>
/// A virtual machine: memory, vCPU threads and a board, and the life they share. Any thread may call any member.
/// </summary>
/// <remarks>
/// What is asked of the machine, from outside or by the guest (reset, power-off, crash), goes through one queue and is carried
/// out one after the other; the first end wins. A guest's wish closes the <see cref="RunGate"/> at once, so that no vCPU runs a
/// further instruction, and is then carried out from the queue.
/// </remarks>
public sealed partial class VirtualMachine : IVcpuObserver, IAsyncDisposable
{
    // CPUID.1:ECX.
    private const uint CpuidX2Apic = 1 << 21;

    private readonly Channel<Func<Task>> queue = Channel.CreateUnbounded<Func<Task>>(new() { SingleReader = true });
    private readonly TaskCompletionSource<MachineExit> exit = new(TaskCreationOptions.RunContinuationsAsynchronously);
    private readonly RunGate gate = new();
    private readonly Lock statisticsGate = new();
    private readonly Accelerator accelerator;
    private readonly GuestMemory memory;
    private readonly VmClock clock;
    private readonly IHypervisor hypervisor;
    private readonly Board board;
    private readonly IVirtualProcessor[] processors;
    private readonly VcpuExitHandler[] handlers;
    private readonly IPersonality[] personalities;
    private readonly KvmMasterClock kvmClock;
    private readonly VcpuThread[] vcpus;
    private BootImage? boot;
    private readonly Task lifecycle;
    private volatile MachineState state = MachineState.Created;
    private int guestRequested;
    private int resets;
    private int disposed;

    /// <summary>Builds a machine and loads what it boots. It starts with <see cref="StartAsync"/>.</summary>
    /// <exception cref="ConfigurationException">The options cannot be met.</exception>
    /// <exception cref="Loader.BootException">What is to be booted cannot be.</exception>
    /// <exception cref="HostException">The host cannot give what the machine needs.</exception>
    public VirtualMachine(MachineOptions options, Accelerator accelerator)
        : this(options, accelerator, origin: null)
    {
    }

    /// <summary>
    /// Builds a machine that goes on from where another was. What it boots is looked for when the guest resets it, not before. It starts with
    /// <see cref="StartAsync"/>.
    /// </summary>
    /// <param name="options">As the other's; serial output and the like may differ.</param>
    /// <param name="accelerator">Runs the same CPU model.</param>
    /// <param name="origin">What to go on from; null: a fresh start.</param>
    /// <exception cref="SavedStateException">The state does not fit the machine.</exception>
    /// <exception cref="ConfigurationException">The options cannot be met.</exception>
    /// <exception cref="Loader.BootException">What is to be booted cannot be.</exception>
    /// <exception cref="HostException">The host cannot give what the machine needs.</exception>
    public VirtualMachine(MachineOptions options, Accelerator accelerator, MachineOrigin? origin)
    {
        ArgumentNullException.ThrowIfNull(options);
        ArgumentNullException.ThrowIfNull(accelerator);
        options.Validate();
        Options = options;
        this.accelerator = accelerator;
        Stack<IDisposable> built = [];
        try
        {
            if (origin is null)
                built.Push(boot = new BootImage(options));
            built.Push(memory = CreateMemory(options));
            built.Push(hypervisor = accelerator.Open(memory));
            VmClock time = origin is null ? new VmClock() : new VmClock(origin.State.BootTime, origin.State.Timestamp);
            built.Push(clock = time);
            clock.CallbackFailed = e => Fail("a timer's call-back failed", e, null);
            processors = new IVirtualProcessor[options.Cpus];
            for (int i = 0; i < options.Cpus; i++)
            {
                built.Push(processors[i] = hypervisor.CreateProcessor(new VirtualProcessorOptions
                {
                    Index = i,
                    Count = options.Cpus,
                    Cpuid = DescribeCpuid(i),
                    Clock = clock,
                }));
            }
            bool x2Apic = (accelerator.Cpuid(0, options.Cpus).Get(1, 0).Ecx & CpuidX2Apic) != 0;
            built.Push(disks = new BoardDisks(options.Devices));
            board = new Board(options with { DeviceLog = new JournaledLog(Journal, options.DeviceLog), Accelerator = accelerator.Name }, memory, clock, processors, x2Apic, hypervisor, OnGuestRequest, () => queue.Writer.TryWrite(Wake), disks, DescribeHyperVHost());
            built.Push(board.Virtio);
            kvmClock = new KvmMasterClock(clock);
            personalities = options.Personality switch
            {
                KvmPersonality.Name => [.. processors.Select(p => new KvmPersonality(p, memory, board.Fabric, board.LocalApics[p.Index], kvmClock, hypervisor.HypercallPort is null))],
                VmwarePersonality.Name => [.. processors.Select(p => new VmwarePersonality(p, board.Vmware!.Connect(p, () => vcpus?[p.Index].HostThreadId ?? 0)))],
                HyperVPersonality.Name => [.. processors.Select(p => new HyperVPersonality(p, board.HyperV!.Partition.Processors[p.Index]))],
                _ => [],
            };
            handlers = [.. board.LocalApics.Select((apic, i) => new VcpuExitHandler(apic, board.Ports, board.Mmio, gate, personalities.ElementAtOrDefault(i)))];
            if (origin is null)
                ResetProcessors(boot!.Load(memory, board.GenerationId), direct: true).GetAwaiter().GetResult();
            else
                RestoreState(origin);
            vcpus = [.. processors.Zip(handlers, (p, h) => new VcpuThread(p, h, this))];
        }
        catch
        {
            while (built.TryPop(out IDisposable? part))
                part.Dispose();
            throw;
        }
        StartPolicy();
        lifecycle = Task.Run(RunQueue);
    }

    /// <summary>What was asked for.</summary>
    public MachineOptions Options { get; }

    /// <summary>Where the machine is in its life.</summary>
    public MachineState State => state;

    /// <summary>Increments of the guest's time-stamp counter in a second of VM time.</summary>
    public long TscFrequencyHz => processors[0].Timestamp.FrequencyHz;

    /// <summary>Guest physical memory.</summary>
    public GuestMemory Memory => memory;

    /// <summary>Completes when the run is over. The machine can then only be read and disposed of.</summary>
    public Task<MachineExit> Exit => exit.Task;

    /// <summary>Lets a created or paused machine run.</summary>
    public Task StartAsync() => Enqueue(RunAndNote);

    /// <summary>Takes all vCPUs out of the guest and stops VM time.</summary>
    public Task PauseAsync() => Enqueue(PauseAndNote);

    /// <summary>Goes on after <see cref="PauseAsync"/>.</summary>
    public Task ResumeAsync() => Enqueue(RunAndNote);

    /// <summary>Resets the machine as its reset button would, whatever <see cref="MachineOptions.NoReboot"/> says.</summary>
    public Task ResetAsync() => Enqueue(() => ResetAndNote("request"));

    /// <summary>Presses the power button: an ACPI guest shuts down by itself.</summary>
    public Task PressPowerButtonAsync() => Enqueue(() =>
    {
        if (state != MachineState.Ended)
        {
            board.PressPowerButton();
            Journal.Write("power-button", "had its power button pressed");
        }
        return Task.CompletedTask;
    });

    /// <summary>Ends the run at once; does nothing when it is over already.</summary>
    /// <param name="kind">What <see cref="Exit"/> shall say.</param>
    public Task StopAsync(MachineExitKind kind = MachineExitKind.Stopped) => Enqueue(async () =>
    {
        string? report = kind == MachineExitKind.TimedOut && state != MachineState.Ended ? await DescribeProcessors().ConfigureAwait(false) : null;
        await End(new MachineExit(kind, 0, report)).ConfigureAwait(false);
    });

    /// <summary>
    /// Waits for the end of the run; when it has not come after <paramref name="timeout"/>, stops the machine
    /// (<see cref="MachineExitKind.TimedOut"/>).
    /// </summary>
    public async Task<MachineExit> WaitForExitAsync(TimeSpan? timeout = null)
    {
        if (timeout is { } limit)
        {
            using CancellationTokenSource over = new();
            if (await Task.WhenAny(Exit, Task.Delay(limit, over.Token)).ConfigureAwait(false) != Exit)
                await StopAsync(MachineExitKind.TimedOut).ConfigureAwait(false);
            await over.CancelAsync().ConfigureAwait(false);
        }
        return await Exit.ConfigureAwait(false);
    }

    /// <summary>Types into COM1, as fast as the guest takes it. One call at a time.</summary>
    public Task SendSerialAsync(ReadOnlyMemory<byte> bytes, CancellationToken cancellation = default) => board.Serial.SendAsync(bytes, cancellation);

    /// <summary>What the machine has done so far.</summary>
    public MachineStatistics GetStatistics()
    {
        // Processors keep their figures in one place each, made anew for whoever asks.
        lock (statisticsGate)
            return CollectStatistics();
    }

    private MachineStatistics CollectStatistics()
    {
        Dictionary<string, long> exits = [], handled = [], counters = [];
        Dictionary<string, TimeSpan> exitTimes = [], handledTimes = [];
        long instructions = 0;
        foreach (VcpuThread vcpu in vcpus)
            foreach (ExitReason reason in Enum.GetValues<ExitReason>())
            {
                Add(exits, CounterName(reason), vcpu.ExitCount(reason));
                exitTimes[CounterName(reason)] = exitTimes.GetValueOrDefault(CounterName(reason)) + vcpu.TimeOutside(reason);
            }
        foreach (VcpuExitHandler handler in handlers)
        {
            foreach ((string name, long count) in handler.Counters)
                Add(handled, name, count);
            foreach ((string name, TimeSpan time) in handler.Times)
                handledTimes[name] = handledTimes.GetValueOrDefault(name) + time;
        }
        foreach (IVirtualProcessor processor in processors)
        {
            ProcessorCounters own = processor.Counters;
            instructions += Volatile.Read(ref own.Instructions);
            foreach ((string name, long count) in own.Named)
                Add(counters, name, count);
        }
        board.Virtio.AddCounters(counters);
        board.Vmware?.AddCounters(counters);
        board.HyperV?.AddCounters(counters);
        return new MachineStatistics(
            accelerator.Name, accelerator.CpuModel, instructions, exits, handled, exitTimes, handledTimes, counters,
            board.Ports.UnclaimedAccesses, board.Mmio.UnclaimedAccesses, Volatile.Read(ref resets), clock.GetElapsedTime(0));
    }

    private static void Add(Dictionary<string, long> sums, string name, long count) =>
        sums[name] = sums.GetValueOrDefault(name) + count;

    private static string CounterName(ExitReason reason) => reason switch
    {
        ExitReason.Interrupted => "interrupted",
        ExitReason.Halted => "halted",
        ExitReason.WaitForStartup => "wait-for-startup",
        ExitReason.InterruptWindow => "interrupt-window",
        ExitReason.Debug => "debug",
        ExitReason.Shutdown => "shutdown",
        ExitReason.FailedEntry => "failed-entry",
        ExitReason.HandlerRequest => "handler-request",
        ExitReason.InternalError => "internal-error",
        _ => "unknown",
    };

    private static GuestMemory CreateMemory(MachineOptions options)
    {
        ulong bytes = options.MemoryBytes;
        try
        {
            return GuestMemory.CreatePc(bytes, options.HugePages != HugePageUse.Off, options.Devices.OfType<BalloonOptions>().FirstOrDefault()?.SpareBytes ?? 0);
        }
        catch (Exception e) when (e is Win32Exception or IOException or OutOfMemoryException)
        {
            throw new HostException($"the host does not give {MemorySize.Format(bytes)} of guest memory ({e.Message}); give --memory less, or raise the limit (ulimit -v, vm.overcommit_memory)", e);
        }
    }

    private Task Enqueue(Func<Task> body)
    {
        TaskCompletionSource done = new(TaskCreationOptions.RunContinuationsAsynchronously);
        bool queued = queue.Writer.TryWrite(async () =>
        {
            try
            {
                await body().ConfigureAwait(false);
                done.TrySetResult();
            }
            catch (Exception e)
            {
                done.TrySetException(e);
                throw;
            }
        });
        if (!queued)
            done.TrySetResult();
        return done.Task;
    }

    private async Task RunQueue()
    {
        await foreach (Func<Task> body in queue.Reader.ReadAllAsync().ConfigureAwait(false))
        {
            try
            {
                await body().ConfigureAwait(false);
            }
            catch (Exception e)
            {
                await End(new MachineExit(MachineExitKind.VmmFailed, 0, e.ToString())).ConfigureAwait(false);
            }
        }
    }

    private async Task Run()
    {
        if (state is not (MachineState.Created or MachineState.Paused))
            return;
        clock.Start();
        hypervisor.LocalApics?.ReleaseTime();
        if (asleep)
        {
            state = MachineState.Suspended;
            await Wake().ConfigureAwait(false);
            return;
        }
        board.Virtio.Resume();
        board.HyperV?.Resume();
        state = MachineState.Running;
        await Task.WhenAll(vcpus.Select(v => v.ResumeAsync())).ConfigureAwait(false);
    }

    private async Task Pause()
    {
        if (state is not (MachineState.Running or MachineState.Suspended))
            return;
        await Task.WhenAll(vcpus.Select(v => v.PauseAsync())).ConfigureAwait(false);
        board.Virtio.Quiesce();
        board.HyperV?.Quiesce();
        hypervisor.LocalApics?.HoldTime();
        clock.Stop();
        state = MachineState.Paused;
    }

    private async Task Reset()
    {
        if (state == MachineState.Ended)
            return;
        bool wasRunning = state is MachineState.Running or MachineState.Suspended;
        await Pause().ConfigureAwait(false);
        asleep = false;
        board.Reset();
        ForgetPast();
        // Memory comes up empty, as after power-on; what must be there is loaded anew.
        foreach (MemoryRegion region in memory.Regions)
            memory.Discard(region.Base, region.Size);
        if (boot is null)
        {
            try
            {
                boot = new BootImage(Options);
            }
            catch (Loader.BootException e)
            {
                await End(new MachineExit(MachineExitKind.VmmFailed, 0, $"the guest has reset a machine that was restored from a snapshot, and what it boots is not there: {e.Message}")).ConfigureAwait(false);
                return;
            }
        }
        await ResetProcessors(boot.Load(memory, board.GenerationId), direct: false).ConfigureAwait(false);
        Interlocked.Increment(ref resets);
        Volatile.Write(ref guestRequested, 0);
        gate.Closed = false;
        if (wasRunning)
            await Run().ConfigureAwait(false);
    }

    // What belongs to the life that a reset ends.
    private void ForgetPast()
    {
        kvmClock.Reset();
        foreach (IPersonality personality in personalities)
            personality.Reset();
        debugger?.Forget();
    }

    // Before there are threads the caller owns the processors.
    private async Task ResetProcessors(Func<ProcessorState, ProcessorState>? start, bool direct)
    {
        ulong? memoryTypes = null;
        for (int i = 0; i < processors.Length; i++)
        {
            IVirtualProcessor processor = processors[i];
            void ResetOne()
            {
                processor.Reset();
                if (start is null)
                    return;
                ProcessorState state = processor.GetState();
                if (processor.Index == 0)
                {
                    state = start(state);
                    memoryTypes = state.Msrs.TryGetValue(Msr.MtrrDefType, out ulong value) ? value : null;
                }
                else if (memoryTypes is { } types)
                {
                    // Firmware gives every processor the same memory types; INIT leaves them (Intel SDM vol. 3 table 10-1).
                    state.Msrs[Msr.MtrrDefType] = types;
                }
                processor.SetState(state);
            }
            if (direct)
                ResetOne();
            else
                await vcpus[i].InvokeAsync(ResetOne).ConfigureAwait(false);
        }
    }

    // Where everybody is: what one wants to know of a guest that hangs.
    private async Task<string> DescribeProcessors()
    {
        string[] lines = new string[vcpus.Length];
        await Task.WhenAll(vcpus.Select((vcpu, i) => vcpu.InvokeAsync(() => lines[i] = CrashReport.Summarize(vcpu.Processor)))).ConfigureAwait(false);
        return string.Join('\n', lines);
    }

    private async Task End(MachineExit how)
    {
        if (state == MachineState.Ended)
            return;
        gate.Closed = true;
        await Task.WhenAll(vcpus.Select(v => v.StopAsync())).ConfigureAwait(false);
        board.Virtio.Stop();
        board.HyperV?.Stop();
        clock.Stop();
        state = MachineState.Ended;
        Journal.Write("ended", how.Summary);
        exit.TrySetResult(how);
    }

    // From a device, on whatever thread it is called: the first wish of a life between two resets wins.
    private void OnGuestRequest(GuestRequest request)
    {
        if (Interlocked.Exchange(ref guestRequested, 1) != 0)
            return;
        gate.Closed = true;
        foreach (VcpuThread vcpu in vcpus)
            vcpu.Kick();
        queue.Writer.TryWrite(() => request.Kind switch
        {
            null => Suspend(),
            MachineExitKind.Reset when !Options.NoReboot => ResetAndNote("its guest"),
            { } kind => End(new MachineExit(kind, request.Code)),
        });
    }

    void IVcpuObserver.Crashed(VcpuThread vcpu, ProcessorExit how)
    {
        if (debugger is { } attached)
        {
            // Whoever debugs wants to see it first.
            attached.Crash(vcpu, how);
            return;
        }
        EndCrashed(vcpu, how);
    }

    private void EndCrashed(VcpuThread vcpu, ProcessorExit how)
    {
        gate.Closed = true;
        string report = $"{CrashReport.Describe(vcpu.Processor, how)}\n{CrashReport.Write(vcpu.Processor, memory)}";
        queue.Writer.TryWrite(() => End(new MachineExit(MachineExitKind.Crashed, 0, report)));
    }

    void IVcpuObserver.Failed(VcpuThread vcpu, Exception error) =>
        Fail($"vCPU {vcpu.Processor.Index} failed", error, vcpu.Processor);

    private void Fail(string what, Exception error, IVirtualProcessor? processor)
    {
        gate.Closed = true;
        string registers = "";
        try
        {
            if (processor is not null)
                registers = "\n" + CrashReport.Write(processor, memory);
        }
        catch (Exception e)
        {
            registers = $"\n(no registers: {e.Message})";
        }
        queue.Writer.TryWrite(() => End(new MachineExit(MachineExitKind.VmmFailed, 0, $"{what}: {error}{registers}")));
    }

    /// <summary>Stops the machine if it still runs and gives everything back to the host.</summary>
    public async ValueTask DisposeAsync()
    {
        if (Interlocked.Exchange(ref disposed, 1) != 0)
            return;
        await StopAsync().ConfigureAwait(false);
        queue.Writer.TryComplete();
        await lifecycle.ConfigureAwait(false);
        foreach (VcpuThread vcpu in vcpus)
            vcpu.Dispose();
        BalloonController?.Dispose();
        board.Virtio.Dispose();
        disks.Dispose();
        clock.Dispose();
        foreach (IVirtualProcessor processor in processors)
            processor.Dispose();
        hypervisor.Dispose();
        memory.Dispose();
        boot?.Dispose();
    }
}
