using Aerostat.Machine;
using Aerostat.Platform;

namespace Aerostat.Cli;

/// <summary>
/// The guest's serial console on standard input and output. On a terminal Ctrl-A begins a command (X quits, H helps, Ctrl-A sends
/// itself); otherwise input is forwarded as it is until its end.
/// </summary>
/// <remarks>
/// Output goes through a bounded buffer and a thread of its own: a terminal that stands still never holds up a vCPU. What does
/// not fit is dropped and counted.
/// </remarks>
internal sealed class ConsoleRelay : IDisposable
{
    private const int BufferLimit = 4 << 20;

    private readonly Terminal terminal = new();
    private readonly Lock gate = new();
    private readonly SemaphoreSlim filled = new(0);
    private readonly CancellationTokenSource ending = new();
    private readonly TaskCompletionSource quit = new(TaskCreationOptions.RunContinuationsAsynchronously);
    private readonly TaskCompletionSource<string?> outputLost = new(TaskCreationOptions.RunContinuationsAsynchronously);
    private readonly Thread writer;
    private Thread? reader;
    private byte[] pending = new byte[4096];
    private byte[] writing = new byte[4096];
    private int pendingCount;
    private bool finished;
    private long dropped;

    /// <summary>Starts to write what <see cref="Write"/> gets.</summary>
    public ConsoleRelay()
    {
        writer = new Thread(RunWriter) { Name = "console-out", IsBackground = true };
        writer.Start();
    }

    /// <summary>Completes when the user has typed Ctrl-A X.</summary>
    public Task Quit => quit.Task;

    /// <summary>Completes when standard output takes no more: with null when nobody reads it, else with the reason.</summary>
    public Task<string?> OutputLost => outputLost.Task;

    /// <summary>Bytes that did not fit the buffer.</summary>
    public long Dropped => Volatile.Read(ref dropped);

    /// <summary>Takes what the guest writes. Any thread; returns at once.</summary>
    public void Write(ReadOnlySpan<byte> bytes)
    {
        lock (gate)
        {
            if (finished)
                return;
            if (pendingCount + bytes.Length > BufferLimit)
            {
                dropped += bytes.Length;
                return;
            }
            if (pendingCount + bytes.Length > pending.Length)
                Array.Resize(ref pending, Math.Max(pending.Length * 2, pendingCount + bytes.Length));
            bytes.CopyTo(pending.AsSpan(pendingCount));
            if (pendingCount == 0)
                filled.Release();
            pendingCount += bytes.Length;
        }
    }

    /// <summary>Begins to forward input. A terminal goes into raw mode.</summary>
    public void StartInput(VirtualMachine machine)
    {
        bool commands = terminal.EnterRawMode();
        reader = new Thread(() => RunReader(machine, commands)) { Name = "console-in", IsBackground = true };
        reader.Start();
    }

    /// <summary>Writes out what is left and gives the terminal back.</summary>
    public void Finish()
    {
        lock (gate)
        {
            if (finished)
                return;
            finished = true;
        }
        ending.Cancel();
        terminal.CancelRead();
        filled.Release();
        // A terminal that stands still (Ctrl-S) must not keep the program from ending.
        if (!writer.Join(TimeSpan.FromSeconds(2)))
        {
            terminal.CancelWrite();
            writer.Join();
        }
        reader?.Join();
        terminal.LeaveRawMode();
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        Finish();
        terminal.Dispose();
        filled.Dispose();
        ending.Dispose();
    }

    private void RunWriter()
    {
        while (true)
        {
            filled.Wait();
            int count;
            bool last;
            lock (gate)
            {
                (pending, writing) = (writing, pending);
                count = pendingCount;
                pendingCount = 0;
                last = finished;
            }
            if (count > 0 && !terminal.Write(writing.AsSpan(0, count)))
            {
                outputLost.TrySetResult(terminal.WriteFailure);
                lock (gate)
                    finished = true;
                return;
            }
            if (last)
                return;
        }
    }

    private void RunReader(VirtualMachine machine, bool commands)
    {
        byte[] buffer = new byte[1024];
        EscapeFilter filter = new();
        try
        {
            while (true)
            {
                int count = terminal.Read(buffer);
                if (count <= 0)
                    return;
                int kept = count;
                if (commands)
                {
                    kept = filter.Filter(buffer.AsSpan(0, count), out ConsoleCommand command);
                    if (command == ConsoleCommand.Help)
                        Write("\nCtrl-A X  quit\nCtrl-A H  this help\nCtrl-A Ctrl-A  send Ctrl-A\n"u8);
                    if (command == ConsoleCommand.Quit)
                    {
                        quit.TrySetResult();
                        return;
                    }
                }
                machine.SendSerialAsync(buffer.AsMemory(0, kept), ending.Token).GetAwaiter().GetResult();
            }
        }
        catch (OperationCanceledException)
        {
            // The machine has ended before it took everything.
        }
    }
}
