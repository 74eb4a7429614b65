using System.Diagnostics;
using System.Net.Sockets;
using Aerostat.Control;
using Aerostat.Debugger;
using Aerostat.Hosting;
using Aerostat.Machine;
using Aerostat.Platform;
using Aerostat.Snapshots;

namespace Aerostat.Cli;

/// <summary>One machine in the foreground: console, signals, time limit, statistics, and the exit status that comes of it.</summary>
internal sealed class MachineSession(MachineOptions options)
{
    // What a shell says of a program that wrote to a closed pipe: 128 + SIGPIPE.
    private const int BrokenPipe = 141;

    /// <summary>Ends the run when it takes longer.</summary>
    public TimeSpan? Timeout { get; init; }

    /// <summary>Where the statistics go, or null.</summary>
    public string? StatsPath { get; init; }

    /// <summary>Where a debugger may attach, or null.</summary>
    public DebugEndpoint? Debug { get; init; }

    /// <summary>Where the machine can be controlled while it runs, or null.</summary>
    public ControlEndpoint? Control { get; init; }

    /// <summary>What the machine goes on from, or null: it starts anew.</summary>
    public Snapshot? From { get; init; }

    /// <summary>With <see cref="From"/>: disk images may have changed since.</summary>
    public bool AnyDisks { get; init; }

    /// <summary>Whether the guest starts only when a debugger lets it.</summary>
    public bool WaitsForDebugger { get; init; }

    /// <summary>Whether standard input goes to the guest.</summary>
    public bool ForwardInput { get; init; } = true;

    /// <summary>Also sees the guest's output.</summary>
    public SerialOutput? Observer { get; init; }

    /// <summary>Runs beside the guest, for instance to type; cancelled when the guest has ended.</summary>
    public Func<VirtualMachine, CancellationToken, Task>? Companion { get; init; }

    /// <summary>Runs the machine to its end. Reports go to <paramref name="error"/>, each headed by <paramref name="verb"/>.</summary>
    public async Task<RunReport> RunAsync(TextWriter error, string verb)
    {
        if (StatsPath is not null)
            RunReport.CheckPath(StatsPath);
        // Before anything is built: another machine may have the name.
        using ControlListener? listener = Control is null ? null : ControlListener.Open(Control);
        using HostSignals signals = new();
        using ConsoleRelay console = new();
        using MemorySampler memory = new();
        MachineOptions wired = options with
        {
            DeviceLog = new DeviceMessages(error, verb),
            Devices = [.. options.Devices.Select(d => d is ConsoleOptions c ? c with { Output = (port, bytes) => Show(console, port, bytes) } : d)],
            Serial = Observer is null ? console.Write : bytes => { console.Write(bytes); Observer(bytes); },
        };
        // Differential snapshots need the writes since the one before; only who can be asked for them pays for that.
        bool tracks = listener is not null;
        VirtualMachine machine = From is null ? Machines.Create(wired) : Machines.Restore(From, wired, tracks, AnyDisks, verify: false);
        await using (machine.ConfigureAwait(false))
        {
            memory.Leave(machine.Memory);
            if (ForwardInput)
                console.StartInput(machine);
            long start = Stopwatch.GetTimestamp();
            using CancellationTokenSource over = new();
            await using DebugServer? debug = Listen(machine, error, verb);
            using MachineSnapshots snapshots = new(machine, tracks ? From : null);
            await using ControlledMachine controlled = new(machine, Program.Version) { AcceleratorReason = options.Accelerator == "auto" ? Accelerators.Automatic(Accelerators.Kvm).Reason : "it was asked for", Debug = debug, Snapshots = snapshots };
            using FreezeMark? mark = Control is null ? null : new FreezeMark(Control, machine, isRestored: From is not null);
            await using ControlServer? control = listener is null ? null : new ControlServer(listener, controlled, ControlVerbs.All());
            if (debug is null || !WaitsForDebugger)
                await machine.StartAsync().ConfigureAwait(false);
            Task companion = Companion?.Invoke(machine, over.Token) ?? Task.CompletedTask;
            using CancellationTokenRegistration stop = signals.Stopping.Register(() => _ = machine.StopAsync());
            _ = console.Quit.ContinueWith(_ => machine.StopAsync(), TaskScheduler.Default);
            _ = console.OutputLost.ContinueWith(_ => machine.StopAsync(), TaskScheduler.Default);
            MachineExit exit = await machine.WaitForExitAsync(Timeout).ConfigureAwait(false);
            TimeSpan wall = Stopwatch.GetElapsedTime(start);
            await over.CancelAsync().ConfigureAwait(false);
            console.Finish();
            await CompanionEnd(companion).ConfigureAwait(false);
            string? failure = console.OutputLost.IsCompleted ? await console.OutputLost.ConfigureAwait(false) : null;
            int status = exit.Kind != MachineExitKind.Stopped ? exit.ExitStatus
                : signals.Received != 0 ? signals.ExitStatus
                : failure is not null ? ExitStatus.Failure
                : console.OutputLost.IsCompleted ? BrokenPipe
                : 0;
            RunReport report = new(options, exit, status, machine.GetStatistics(), wall, ProcessUsage.Read(), memory.Peak, machine.Memory.AllocatedBytes);
            if (failure is not null)
                error.WriteLine($"{verb}: standard output cannot be written ({failure}); free some space or send it elsewhere");
            Explain(error, verb, exit, console.Dropped);
            if (StatsPath is not null)
                report.Write(StatsPath);
            return report;
        }
    }

    private DebugServer? Listen(VirtualMachine machine, TextWriter error, string verb)
    {
        if (Debug is null)
            return null;
        try
        {
            DebugServer server = new(machine, Debug);
            error.WriteLine($"{verb}: gdb: target remote {server.Endpoint.ForGdb}{(WaitsForDebugger ? " (the guest waits for it)" : "")}");
            return server;
        }
        catch (Exception e) when (e is SocketException or IOException or UnauthorizedAccessException)
        {
            throw new HostException($"--gdb: cannot listen on {Debug.ForGdb} ({e.Message}); choose another port or path", e);
        }
    }

    private static async Task CompanionEnd(Task companion)
    {
        try
        {
            await companion.ConfigureAwait(false);
        }
        catch (OperationCanceledException)
        {
            // The guest ended first.
        }
    }

    private void Explain(TextWriter error, string verb, MachineExit exit, long dropped)
    {
        if (dropped > 0)
            error.WriteLine($"{verb}: {dropped} bytes of console output were dropped because standard output was too slow");
        switch (exit.Kind)
        {
            case MachineExitKind.Crashed:
                error.WriteLine($"{verb}: the guest crashed the machine; {exit.Report}");
                break;
            case MachineExitKind.VmmFailed:
                error.WriteLine($"{verb}: the monitor failed, please report it: {exit.Report}");
                break;
            case MachineExitKind.TimedOut:
                error.WriteLine($"{verb}: the guest was still running after {Timeout!.Value.TotalSeconds:0.###} s (--timeout) and was stopped\n{exit.Report}");
                break;
        }
    }

    // What programs say on further ports is not for the terminal.
    private static void Show(ConsoleRelay console, int port, ReadOnlyMemory<byte> bytes)
    {
        if (port == 0)
            console.Write(bytes.Span);
    }

    // Devices limit how much they say.
    private sealed class DeviceMessages(TextWriter error, string verb) : Devices.IDeviceLog
    {
        private readonly TextWriter safe = TextWriter.Synchronized(error);

        public void Warn(string device, string message) => safe.WriteLine($"{verb}: {device}: {message}");
    }
}
