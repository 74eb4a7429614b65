using System.Threading.Channels;
using Aerostat.Processors;
using Xunit;

namespace Aerostat.Machine.Tests;

public sealed class VcpuThreadTests
{
    private sealed class Handler : IExitHandler
    {
        public volatile bool Leave;

        public bool LeaveRequested => Leave;

        public ulong TaskPriority { get; set; }

        public bool LocalApicEnabled => true;

        public uint ReadPort(ushort port, int size) => 0;

        public void WritePort(ushort port, int size, uint value)
        {
        }

        public ulong ReadMmio(ulong address, int size) => 0;

        public void WriteMmio(ulong address, int size, ulong value)
        {
        }

        public bool ReadMsr(uint index, out ulong value)
        {
            value = 0;
            return false;
        }

        public bool WriteMsr(uint index, ulong value) => false;

        public int AcknowledgeInterrupt() => -1;

        public bool Hypercall(IVirtualProcessor processor, Span<ulong> registers) => false;
    }

    private sealed class Observer : IVcpuObserver
    {
        public Channel<object> Events { get; } = Channel.CreateUnbounded<object>();

        public void Crashed(VcpuThread vcpu, ProcessorExit exit) => Events.Writer.TryWrite(exit);

        public void Failed(VcpuThread vcpu, Exception error) => Events.Writer.TryWrite(error);
    }

    private readonly FakeProcessor processor = new();
    private readonly Handler handler = new();
    private readonly Observer observer = new();

    private VcpuThread Create() => new(processor, handler, observer);

    private static CancellationToken Token => TestContext.Current.CancellationToken;

    // The step signals that it is in the guest, then waits for the kick.
    private Task NextEntry()
    {
        TaskCompletionSource entered = new(TaskCreationOptions.RunContinuationsAsynchronously);
        processor.Steps.Enqueue(h =>
        {
            entered.SetResult();
            return processor.Run(h);
        });
        return entered.Task;
    }

    [Fact]
    public void ThereIsACounterForEachReason() => Assert.Equal(ExitReason.Unknown, Enum.GetValues<ExitReason>().Max());

    [Fact]
    public async Task StartsPausedAndEntersOnlyWhenResumed()
    {
        using VcpuThread vcpu = Create();
        await vcpu.InvokeAsync(() => { });
        Assert.Equal(VcpuState.Paused, vcpu.State);
        Assert.Equal(0, processor.Runs);
        Task entry = NextEntry();
        await vcpu.ResumeAsync();
        await entry;
        Assert.Equal(VcpuState.Running, vcpu.State);
    }

    [Fact]
    public async Task PauseLeavesTheGuestAndResumeGoesBack()
    {
        using VcpuThread vcpu = Create();
        for (int i = 0; i < 100; i++)
        {
            Task entry = NextEntry();
            await vcpu.ResumeAsync();
            await entry;
            await vcpu.PauseAsync();
            Assert.Equal(VcpuState.Paused, vcpu.State);
            Assert.Equal(0, processor.InGuest);
        }
        Assert.True(vcpu.ExitCount(ExitReason.Interrupted) >= 100);
    }

    [Fact]
    public async Task CommandsRunOnTheVcpuThreadOutsideTheGuest()
    {
        using VcpuThread vcpu = Create();
        Task entry = NextEntry();
        await vcpu.ResumeAsync();
        await entry;
        string? name = null;
        int inGuest = -1;
        await vcpu.InvokeAsync(() => (name, inGuest) = (Thread.CurrentThread.Name, processor.InGuest));
        Assert.Equal("vcpu0", name);
        Assert.Equal(0, inGuest);
        await Assert.ThrowsAsync<FormatException>(() => vcpu.InvokeAsync(() => throw new FormatException()));
        Assert.Equal(VcpuState.Running, vcpu.State);
    }

    [Fact]
    public async Task HaltSleepsUntilWorkArrives()
    {
        using VcpuThread vcpu = Create();
        TaskCompletionSource halted = new(TaskCreationOptions.RunContinuationsAsynchronously);
        processor.Steps.Enqueue(_ =>
        {
            halted.SetResult();
            return new(ExitReason.Halted);
        });
        Task entry = NextEntry();
        await vcpu.ResumeAsync();
        await halted.Task;
        Assert.False(entry.IsCompleted);
        processor.HasWork = true;
        await entry;
        Assert.Equal(1, vcpu.ExitCount(ExitReason.Halted));
    }

    [Fact]
    public async Task WorkThatArrivesBeforeTheSleepIsNotLost()
    {
        using VcpuThread vcpu = Create();
        processor.Steps.Enqueue(_ =>
        {
            processor.HasWork = true;
            return new(ExitReason.Halted);
        });
        Task entry = NextEntry();
        await vcpu.ResumeAsync();
        await entry;
    }

    [Fact]
    public async Task ASleepingVcpuTakesCommands()
    {
        using VcpuThread vcpu = Create();
        processor.Steps.Enqueue(_ => new(ExitReason.WaitForStartup));
        await vcpu.ResumeAsync();
        await vcpu.PauseAsync();
        Assert.Equal(VcpuState.Paused, vcpu.State);
        await vcpu.StopAsync();
        await vcpu.Ended;
        Assert.Equal(VcpuState.Stopped, vcpu.State);
    }

    [Fact]
    public async Task AHandlerThatAsksToLeaveParksTheVcpu()
    {
        using VcpuThread vcpu = Create();
        processor.Steps.Enqueue(_ =>
        {
            handler.Leave = true;
            return new(ExitReason.HandlerRequest);
        });
        await vcpu.ResumeAsync();
        while (vcpu.State != VcpuState.Paused)
            await Task.Yield();
        Assert.Equal(1, processor.Runs);
        handler.Leave = false;
        Task entry = NextEntry();
        await vcpu.ResumeAsync();
        await entry;
    }

    [Theory]
    [InlineData(ExitReason.Shutdown)]
    [InlineData(ExitReason.FailedEntry)]
    [InlineData(ExitReason.Unknown)]
    [InlineData(ExitReason.Debug)]
    public async Task AnExitNobodyServesIsReportedAndPauses(ExitReason reason)
    {
        using VcpuThread vcpu = Create();
        processor.Steps.Enqueue(_ => new(reason, 7));
        await vcpu.ResumeAsync();
        Assert.Equal(new ProcessorExit(reason, 7), await observer.Events.Reader.ReadAsync(Token));
        Assert.Equal(VcpuState.Paused, vcpu.State);
    }

    [Fact]
    public async Task AnExceptionIsReportedAndEndsOnlyTheThread()
    {
        using VcpuThread vcpu = Create();
        processor.Steps.Enqueue(_ => throw new InvalidDataException("decoder"));
        await vcpu.ResumeAsync();
        Assert.IsType<InvalidDataException>(await observer.Events.Reader.ReadAsync(Token));
        await vcpu.Ended;
        await vcpu.PauseAsync();
        await vcpu.StopAsync();
        await Assert.ThrowsAsync<InvalidOperationException>(vcpu.ResumeAsync);
        await Assert.ThrowsAsync<InvalidOperationException>(() => vcpu.InvokeAsync(() => { }));
    }
}
