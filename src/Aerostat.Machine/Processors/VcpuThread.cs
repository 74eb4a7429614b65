using System.Diagnostics;
using System.Threading.Channels;
using Aerostat.Platform;
using Aerostat.Processors;

namespace Aerostat.Machine;

/// <summary>What a vCPU thread tells the machine. Called on the vCPU's thread.</summary>
internal interface IVcpuObserver
{
    /// <summary>The guest cannot go on here (triple fault, failed entry, unknown exit); the thread is now paused.</summary>
    void Crashed(VcpuThread vcpu, ProcessorExit exit);

    /// <summary>The host's debugger asked for this stop; the thread is now paused.</summary>
    void Debugged(VcpuThread vcpu, ProcessorExit exit) => Crashed(vcpu, exit);

    /// <summary>The program itself failed; the thread has ended.</summary>
    void Failed(VcpuThread vcpu, Exception error);
}

/// <summary>
/// The host thread of one vCPU: a machine of three states (<see cref="VcpuState"/>) that starts paused. Commands come through
/// a channel, are carried out between two entries into the guest, and are answered as tasks.
/// </summary>
/// <remarks>
/// All that is needed to make the thread look at its channel is <see cref="Kick"/>: a processor that is in the guest leaves it,
/// one that is about to enter does not stay, and a thread that sleeps because its guest has halted wakes up.
/// </remarks>
internal sealed class VcpuThread : IDisposable
{
    private readonly record struct Command(Action? Body, VcpuState? Target, TaskCompletionSource Done);

    private readonly Channel<Command> commands = Channel.CreateUnbounded<Command>(new() { SingleReader = true });
    // No spinning: an idle guest costs nothing.
    private readonly ManualResetEventSlim wake = new(false, 0);
    private readonly IVirtualProcessor processor;
    private readonly IExitHandler handler;
    private readonly IVcpuObserver observer;
    private readonly TaskCompletionSource ended = new(TaskCreationOptions.RunContinuationsAsynchronously);
    private readonly long[] exits = new long[(int)ExitReason.Unknown + 1];
    private readonly long[] outside = new long[(int)ExitReason.Unknown + 1];
    private readonly Thread thread;
    private (ExitReason Reason, long Since)? left;
    private volatile bool asleep;
    private volatile VcpuState state = VcpuState.Paused;

    /// <summary>Makes the thread and starts it in the paused state.</summary>
    public VcpuThread(IVirtualProcessor processor, IExitHandler handler, IVcpuObserver observer)
    {
        this.processor = processor;
        this.handler = handler;
        this.observer = observer;
        processor.WakeUp = wake.Set;
        thread = new Thread(Loop) { Name = $"vcpu{processor.Index}", IsBackground = true };
        thread.Start();
    }

    /// <summary>The processor. Its members belong to this thread: reach them through <see cref="InvokeAsync"/>.</summary>
    public IVirtualProcessor Processor => processor;

    /// <summary>Running, Paused or Stopped.</summary>
    public VcpuState State => state;

    /// <summary>The host's number of the thread; 0: it has not begun.</summary>
    public int HostThreadId { get; private set; }

    /// <summary>Completes when the thread has ended.</summary>
    public Task Ended => ended.Task;

    /// <summary>How often the processor came back for <paramref name="reason"/>.</summary>
    public long ExitCount(ExitReason reason) => Volatile.Read(ref exits[(int)reason]);

    /// <summary>How often the processor came back, for all reasons.</summary>
    public long TotalExits => exits.Sum();

    /// <summary>Whether the thread sleeps because there is nothing to do.</summary>
    public bool IsAsleep => asleep;

    /// <summary>How long the vCPU was then out of the guest, asleep or looking after what was to be done.</summary>
    public TimeSpan TimeOutside(ExitReason reason) => Stopwatch.GetElapsedTime(0, Volatile.Read(ref outside[(int)reason]));

    /// <summary>Leaves the guest. The task completes when the thread is out of it.</summary>
    public Task PauseAsync() => Post(null, VcpuState.Paused);

    /// <summary>Enters the guest.</summary>
    public Task ResumeAsync() => Post(null, VcpuState.Running);

    /// <summary>Ends the thread; the state stays <see cref="VcpuState.Stopped"/>.</summary>
    public Task StopAsync() => Post(null, VcpuState.Stopped);

    /// <summary>Runs <paramref name="body"/> on the vCPU's thread, outside the guest.</summary>
    public Task InvokeAsync(Action body) => Post(body, null);

    /// <summary>Makes the thread leave the guest and look around. The only member besides the commands that other threads call.</summary>
    public void Kick()
    {
        processor.Kick();
        wake.Set();
    }

    private Task Post(Action? body, VcpuState? target)
    {
        Command command = new(body, target, new TaskCompletionSource(TaskCreationOptions.RunContinuationsAsynchronously));
        if (commands.Writer.TryWrite(command))
            Kick();
        else
            Refuse(command);
        return command.Done.Task;
    }

    private static void Refuse(Command command)
    {
        // A thread that has ended is as good as paused; it cannot run anything any more.
        if (command.Target is VcpuState.Paused or VcpuState.Stopped)
            command.Done.TrySetResult();
        else
            command.Done.TrySetException(new InvalidOperationException("the vCPU has stopped"));
    }

    private void Loop()
    {
        HostThreadId = HostThread.CurrentId;
        Exception? failure = null;
        try
        {
            while (state != VcpuState.Stopped)
            {
                while (state != VcpuState.Stopped && commands.Reader.TryRead(out Command command))
                    CarryOut(command);
                if (state == VcpuState.Running)
                    EnterGuest();
                else if (state == VcpuState.Paused)
                    Sleep();
            }
        }
        catch (Exception e)
        {
            // Nothing a guest does may end the process: the machine decides what becomes of it.
            failure = e;
        }
        state = VcpuState.Stopped;
        commands.Writer.TryComplete();
        while (commands.Reader.TryRead(out Command command))
            Refuse(command);
        if (failure is not null)
            observer.Failed(this, failure);
        ended.TrySetResult();
    }

    private void CarryOut(Command command)
    {
        try
        {
            command.Body?.Invoke();
        }
        catch (Exception e)
        {
            command.Done.TrySetException(e);
            return;
        }
        if (command.Target is { } target)
            state = target;
        command.Done.TrySetResult();
    }

    private void EnterGuest()
    {
        if (handler.LeaveRequested)
        {
            // The machine is about to reset or end: no further instruction before it has decided.
            state = VcpuState.Paused;
            return;
        }
        if (left is { } before)
            outside[(int)before.Reason] += Stopwatch.GetTimestamp() - before.Since;
        ProcessorExit exit = processor.Run(handler);
        exits[(int)exit.Reason]++;
        left = (exit.Reason, Stopwatch.GetTimestamp());
        switch (exit.Reason)
        {
            case ExitReason.Interrupted or ExitReason.HandlerRequest:
                break;
            case ExitReason.Halted or ExitReason.WaitForStartup:
                Sleep();
                break;
            case ExitReason.Debug:
                state = VcpuState.Paused;
                observer.Debugged(this, exit);
                break;
            default:
                state = VcpuState.Paused;
                observer.Crashed(this, exit);
                break;
        }
    }

    // Whoever makes one of the conditions true calls Set afterwards, so resetting first loses no wake-up.
    private void Sleep()
    {
        wake.Reset();
        if (commands.Reader.TryPeek(out _))
            return;
        if (state == VcpuState.Running && (processor.HasWork || handler.LeaveRequested))
            return;
        asleep = true;
        wake.Wait();
        asleep = false;
    }

    /// <summary>Ends the thread and waits for it. The processor is not disposed of.</summary>
    public void Dispose()
    {
        _ = StopAsync();
        thread.Join();
        processor.WakeUp = null;
    }
}
