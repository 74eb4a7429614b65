using System.Globalization;
using System.Text;
using System.Threading.Channels;
using Aerostat.Machine;
using Aerostat.Processors;

namespace Aerostat.Debugger;

/// <summary>
/// One GDB on one connection, in all-stop mode (GDB manual, appendix "Remote Protocol"): threads are vCPUs, number n + 1. What comes over the
/// connection is not trusted: it can do with the guest what it likes, but not with the monitor.
/// </summary>
internal sealed partial class GdbSession
{
    private const string Ok = "OK", BadRequest = "E01", NoSpace = "E1c", NotMapped = "E0e", NoSuchVcpu = "E03";
    private const int SignalInterrupt = 2, SignalTrap = 5, SignalSegmentationFault = 11;

    private readonly MachineDebugger debugger;
    private readonly Stream stream;
    private readonly RegisterFile registers;
    private readonly PacketReader reader = new();
    private readonly Channel<GdbInput> inputs = Channel.CreateBounded<GdbInput>(new BoundedChannelOptions(16) { SingleReader = true, SingleWriter = true });
    private readonly ProcessorState?[] states;
    private byte[] lastSent = [];
    private bool acknowledges = true;
    // What goes on, when it does: the answer to the present packet comes with the next stop.
    private bool running, closed;
    private int selected, continueThread = -1;
    private string lastStop = "T05thread:1;";
    private bool tellsBreakpointKinds;

    public GdbSession(MachineDebugger debugger, Stream stream)
    {
        this.debugger = debugger;
        this.stream = stream;
        registers = new RegisterFile(debugger.HasAvx);
        states = new ProcessorState?[debugger.Vcpus];
    }

    /// <summary>Serves until the debugger detaches or the connection ends. The machine is halted first.</summary>
    public async Task RunAsync(CancellationToken cancellation)
    {
        await debugger.HaltAsync().ConfigureAwait(false);
        using CancellationTokenSource over = CancellationTokenSource.CreateLinkedTokenSource(cancellation);
        Task receiving = Receive(over.Token);
        try
        {
            await Serve(over.Token).ConfigureAwait(false);
        }
        finally
        {
            await over.CancelAsync().ConfigureAwait(false);
            await receiving.ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);
        }
    }

    private async Task Receive(CancellationToken cancellation)
    {
        byte[] buffer = new byte[4096];
        try
        {
            int count;
            while ((count = await stream.ReadAsync(buffer, cancellation).ConfigureAwait(false)) > 0)
                for (int i = 0; i < count; i++)
                    if (reader.Take(buffer[i], out GdbInput input))
                        await inputs.Writer.WriteAsync(input, cancellation).ConfigureAwait(false);
        }
        finally
        {
            inputs.Writer.TryComplete();
        }
    }

    private async Task Serve(CancellationToken cancellation)
    {
        Task<bool>? input = null, stop = null;
        TaskCompletionSource never = new();
        while (!closed)
        {
            input ??= inputs.Reader.WaitToReadAsync(cancellation).AsTask();
            stop ??= debugger.Stops.WaitToReadAsync(cancellation).AsTask();
            // The end of the machine is told once, to a debugger that waits for a stop.
            Task ended = running ? debugger.Machine.Exit : never.Task;
            await Task.WhenAny(input, stop, ended).ConfigureAwait(false);
            cancellation.ThrowIfCancellationRequested();
            if (stop.IsCompleted)
            {
                stop = null;
                while (debugger.Stops.TryRead(out DebugStop? what))
                    await OnStop(what).ConfigureAwait(false);
            }
            if (running && debugger.Machine.Exit.IsCompleted)
            {
                running = false;
                await Send(Ended()).ConfigureAwait(false);
            }
            if (!input.IsCompleted)
                continue;
            if (!await input.ConfigureAwait(false))
                return;
            input = null;
            while (!closed && inputs.Reader.TryRead(out GdbInput next))
                await OnInput(next).ConfigureAwait(false);
        }
    }

    private string Ended()
    {
        MachineExit exit = debugger.Machine.Exit.Result;
        return exit.Kind is MachineExitKind.Crashed or MachineExitKind.VmmFailed ? "X0b" : $"W{exit.ExitStatus & 0xFF:x2}";
    }

    private async Task OnInput(GdbInput input)
    {
        switch (input.Kind)
        {
            case GdbInputKind.Interrupt:
                if (running)
                    await Interrupt().ConfigureAwait(false);
                return;
            case GdbInputKind.Nack:
                await stream.WriteAsync(lastSent).ConfigureAwait(false);
                return;
            case GdbInputKind.Corrupt:
                if (acknowledges)
                    await stream.WriteAsync("-"u8.ToArray()).ConfigureAwait(false);
                return;
            case GdbInputKind.TooLong:
                await Acknowledge().ConfigureAwait(false);
                await Send(BadRequest).ConfigureAwait(false);
                return;
        }
        await Acknowledge().ConfigureAwait(false);
        string? answer;
        try
        {
            answer = await Answer(input.Body).ConfigureAwait(false);
        }
        catch (InvalidOperationException)
        {
            // The machine has ended meanwhile.
            answer = BadRequest;
        }
        if (answer is not null)
            await Send(answer).ConfigureAwait(false);
    }

    private async Task Acknowledge()
    {
        if (acknowledges)
            await stream.WriteAsync("+"u8.ToArray()).ConfigureAwait(false);
    }

    private async Task Send(string body)
    {
        lastSent = PacketWriter.Frame(body);
        await stream.WriteAsync(lastSent).ConfigureAwait(false);
    }

    /// <summary>Answers a packet; null: later, or never.</summary>
    internal async Task<string?> Answer(byte[] body)
    {
        if (body.Length == 0)
            return "";
        if (body[0] == (byte)'X')
            return await WriteBinary(body).ConfigureAwait(false);
        string text = Encoding.Latin1.GetString(body);
        string rest = text[1..];
        switch (text[0])
        {
            case '?':
                return lastStop;
            case 'q' or 'Q':
                return await Query(text).ConfigureAwait(false);
            case 'H':
                return SelectThread(rest);
            case 'T':
                return TryThread(rest, out int asked) && asked >= 0 ? Ok : NoSuchVcpu;
            case 'g':
                return await ReadAllRegisters().ConfigureAwait(false);
            case 'G':
                return await WriteAllRegisters(rest).ConfigureAwait(false);
            case 'p':
                return await ReadRegister(rest).ConfigureAwait(false);
            case 'P':
                return await WriteRegister(rest).ConfigureAwait(false);
            case 'm':
                return await ReadMemory(rest).ConfigureAwait(false);
            case 'M':
                return await WriteMemory(rest).ConfigureAwait(false);
            case 'Z' or 'z':
                return ChangeBreakpoint(text[0] == 'Z', rest);
            case 'v':
                return await Verb(text).ConfigureAwait(false);
            case 'c' or 's' or 'C' or 'S':
                return await ResumeOld(text).ConfigureAwait(false);
            case 'D':
                closed = true;
                return Ok;
            case 'k':
                closed = true;
                await debugger.Machine.StopAsync().ConfigureAwait(false);
                return null;
            default:
                return "";
        }
    }

    private async Task<string?> Query(string text)
    {
        int colon = text.IndexOf(':');
        string name = colon < 0 ? text : text[..colon];
        switch (name)
        {
            case "qSupported":
                tellsBreakpointKinds = text.Contains("swbreak+", StringComparison.Ordinal) && text.Contains("hwbreak+", StringComparison.Ordinal);
                return $"PacketSize={PacketReader.MostBytes:x};QStartNoAckMode+;qXfer:features:read+;vContSupported+;swbreak+;hwbreak+";
            case "QStartNoAckMode":
                // This packet has been acknowledged; the answer's acknowledgement is read and means nothing.
                acknowledges = false;
                reader.Checksums = false;
                return Ok;
            case "qXfer":
                return Transfer(text);
            case "qAttached":
                return "1";
            case "qC":
                return $"QC{selected + 1:x}";
            case "qfThreadInfo":
                return "m" + string.Join(',', Enumerable.Range(1, debugger.Vcpus).Select(i => i.ToString("x", CultureInfo.InvariantCulture)));
            case "qsThreadInfo":
                return "l";
            case "qSymbol":
                return Ok;
            case "qTStatus":
                return "";
        }
        if (text.StartsWith("qThreadExtraInfo,", StringComparison.Ordinal))
            return TryThread(text["qThreadExtraInfo,".Length..], out int vcpu) && vcpu >= 0 ? await DescribeThread(vcpu).ConfigureAwait(false) : NoSuchVcpu;
        if (text.StartsWith("qRcmd,", StringComparison.Ordinal))
            return Hex.TryBytes(text.AsSpan("qRcmd,".Length)) is { } command ? await Monitor(Encoding.UTF8.GetString(command)).ConfigureAwait(false) : BadRequest;
        return "";
    }

    private async Task<string> DescribeThread(int vcpu)
    {
        ProcessorState s = await State(vcpu).ConfigureAwait(false);
        int cpl = (s.Cr0 & 1) == 0 ? 0 : (int)(s.Segments[2].Attributes >> 5) & 3;
        string activity = s.Activity switch
        {
            ActivityState.Halted => "halted",
            ActivityState.WaitForStartup => "waiting to be started",
            ActivityState.Shutdown => "shut down",
            _ => $"CPL {cpl}",
        };
        return Hex.Of(Encoding.ASCII.GetBytes($"vCPU {vcpu} [{activity}]"));
    }

    // qXfer:features:read:target.xml:OFFSET,LENGTH
    private string Transfer(string text)
    {
        string[] parts = text.Split(':');
        if (parts.Length != 5 || parts[1] != "features" || parts[2] != "read")
            return "";
        if (parts[3] != "target.xml")
            return "E00";
        string[] range = parts[4].Split(',');
        if (range.Length != 2 || !Hex.TryNumber(range[0], out ulong offset) || !Hex.TryNumber(range[1], out ulong length))
            return BadRequest;
        string all = registers.Description;
        if (offset >= (ulong)all.Length)
            return "l";
        int count = (int)Math.Min(Math.Min(length, PacketReader.MostBytes / 2), (ulong)all.Length - offset);
        return ((int)offset + count < all.Length ? "m" : "l") + all.Substring((int)offset, count);
    }

    // -1: all; 0: any, for which the selected one is as good as another.
    private bool TryThread(string text, out int vcpu)
    {
        vcpu = -1;
        if (text == "-1")
            return true;
        if (!Hex.TryNumber(text, out ulong id) || id > (ulong)debugger.Vcpus)
            return false;
        vcpu = id == 0 ? selected : (int)id - 1;
        return true;
    }

    private string SelectThread(string rest)
    {
        if (rest.Length < 2 || !TryThread(rest[1..], out int vcpu))
            return NoSuchVcpu;
        if (rest[0] == 'g')
            selected = vcpu < 0 ? selected : vcpu;
        else if (rest[0] == 'c')
            continueThread = rest is "c0" ? -1 : vcpu;
        else
            return BadRequest;
        return Ok;
    }

    private async Task<ProcessorState> State(int vcpu) => states[vcpu] ??= await debugger.GetStateAsync(vcpu).ConfigureAwait(false);

    /// <summary>What Ctrl-C does; for tests that call <see cref="Answer"/> themselves.</summary>
    internal Task HaltForTest() => running ? Interrupt() : Task.CompletedTask;

    private void ForgetStates() => Array.Clear(states);
}
