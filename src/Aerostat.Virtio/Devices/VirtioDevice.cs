using Aerostat.Devices;
using Aerostat.Memory;
using Aerostat.Platform;

namespace Aerostat.Virtio;

/// <summary>
/// What all virtio devices have in common, whatever carries them: features, status, queues and configuration space (virtio 1.2, chapter 2).
/// <para>Not emulated: legacy and transitional drivers (a driver without VERSION_1 does not get FEATURES_OK), notification data, shared memory.</para>
/// </summary>
/// <remarks>
/// One lock guards it all. The driver's accesses come through the transport on vCPU threads; work on queues is done by the device's own
/// threads, which take a chain under the lock, work without it, and complete under it. A reset that comes meanwhile (of the device or of one
/// queue) is carried out when the last of them has finished, and until then reads as not yet done, so that no thread of ours writes to
/// buffers the driver has got back. A driver that breaks the rules gets NEEDS_RESET: from then on nothing in its memory is looked at until it resets.
/// Lock order: this lock, the transport's, the interrupt controllers'.
/// </remarks>
public abstract partial class VirtioDevice : IDevice, IBackgroundDevice
{
    private readonly LimitedLog _log;
    private readonly WorkerPool _workers;
    private readonly Action? _step;
    private ulong _driverFeatures;
    private VirtioStatus _status;
    private bool _resetPending;
    private int _busy;
    private byte _generation;

    /// <summary>Makes a device that no driver has found yet.</summary>
    /// <param name="name">Its name in the machine.</param>
    /// <param name="id">Its type.</param>
    /// <param name="features">What it offers besides <see cref="VirtioFeatures.Common"/>.</param>
    /// <param name="queueSizes">Largest size of each queue; powers of two.</param>
    /// <param name="context">The machine.</param>
    /// <param name="threads">How many threads of its own it has at most.</param>
    protected VirtioDevice(string name, VirtioDeviceId id, ulong features, ReadOnlySpan<ushort> queueSizes, VirtioContext context, int threads = 1)
    {
        ArgumentNullException.ThrowIfNull(context);
        Name = name;
        Id = id;
        OfferedFeatures = features | VirtioFeatures.Common;
        Memory = context.Memory;
        _log = new LimitedLog(context.Log, name);
        var queues = new Virtqueue[queueSizes.Length];
        for (int i = 0; i < queues.Length; i++)
            queues[i] = new Virtqueue(this, i, queueSizes[i]);
        Queues = queues;
        // The machine is made paused; Resume comes with its start.
        _step = context.Step;
        _workers = new WorkerPool(name, threads, Serve, WorkerFailed, paused: true, byHand: _step is not null);
    }

    /// <inheritdoc/>
    public string Name { get; }

    /// <summary>Its type.</summary>
    public VirtioDeviceId Id { get; }

    /// <summary>What it offers.</summary>
    public ulong OfferedFeatures { get; }

    /// <summary>Its queues.</summary>
    public IReadOnlyList<Virtqueue> Queues { get; }

    /// <summary>Bytes of its configuration space.</summary>
    public virtual int ConfigLength => 0;

    /// <summary>Whether a driver runs it: DRIVER_OK is set and nothing has gone wrong since.</summary>
    public bool IsRunning => (_status & (VirtioStatus.DriverOk | VirtioStatus.NeedsReset)) == VirtioStatus.DriverOk && !_resetPending;

    /// <summary>Whether a driver broke the rules and has not reset the device since.</summary>
    protected bool Complained => (_status & VirtioStatus.NeedsReset) != 0;

    /// <summary>What the driver accepted; 0 before FEATURES_OK.</summary>
    public ulong Features => (_status & VirtioStatus.FeaturesOk) != 0 ? _driverFeatures : 0;

    /// <summary>How often a driver has broken the rules, or asked for what cannot be done.</summary>
    public long Complaints => _log.Count;

    /// <summary>Figures for statistics, by name.</summary>
    public virtual IEnumerable<(string Name, long Value)> Counters => [("completed", Queues.Sum(q => q.Completed)), ("complaints", Complaints)];

    /// <summary>Guards everything here.</summary>
    protected internal Lock Gate { get; } = new();

    /// <summary>Guest memory.</summary>
    protected internal GuestMemory Memory { get; }

    /// <summary>The transport, once there is one.</summary>
    internal IVirtioInterrupts? Interrupts { get; set; }

    /// <summary>Whether a feature was negotiated.</summary>
    public bool HasFeature(ulong feature) => (Features & feature) == feature;

    /// <inheritdoc/>
    public void Reset()
    {
        lock (Gate)
        {
            // The machine is paused: nothing is under way.
            _resetPending = false;
            FinishReset();
        }
    }

    /// <inheritdoc/>
    public void Quiesce() => _workers.Pause();

    /// <inheritdoc/>
    public void Resume()
    {
        // What was left in the rings, or was restored with them.
        if (IsRunning)
            _workers.Signal();
        _workers.Resume();
    }

    /// <inheritdoc/>
    public virtual void Stop() => _workers.Stop();

    /// <summary>Waits until everything that was announced has been done. For tests.</summary>
    internal void WaitUntilIdle() => _workers.WaitUntilIdle();

    /// <summary>Whether <see cref="TryRunWork"/> would do something.</summary>
    internal bool HasWork => _workers.HasWork;

    /// <summary>Does the device's work on the calling thread, for a device without threads (<see cref="VirtioContext.Step"/>); false: there is none.</summary>
    internal bool TryRunWork() => _workers.TryRun();

    /// <summary>Somebody else may do something between this step of the work and the next. No lock held.</summary>
    protected void Step() => _step?.Invoke();

    /// <summary>Whether <see cref="Serve"/> is to return soon.</summary>
    protected bool IsPausing => _workers.IsPausing;

    /// <summary>Lets <see cref="Serve"/> run, or run once more. Any thread, with or without the lock.</summary>
    protected void SignalWork() => _workers.Signal();

    /// <summary>
    /// Does what there is to do, on a thread of the device (several at once if it has more than one), without the lock. Looks at
    /// <see cref="IsPausing"/> between two chains.
    /// </summary>
    protected abstract void Serve();

    /// <summary>Fills the configuration space as it is now. Lock held; the span is <see cref="ConfigLength"/> long.</summary>
    protected virtual void FillConfig(Span<byte> space)
    {
    }

    /// <summary>The driver has written to configuration space. Lock held; inside the space.</summary>
    protected virtual void OnConfigWritten(int offset, ReadOnlySpan<byte> bytes)
    {
    }

    /// <summary>The driver is ready. Lock held; <see cref="OnNotified"/> follows for each enabled queue.</summary>
    protected virtual void OnStarted()
    {
    }

    /// <summary>The driver has made buffers available. Lock held, on a vCPU's thread: hands the work over.</summary>
    protected virtual void OnNotified(Virtqueue queue) => _workers.Signal();

    /// <summary>All that the driver said is to be forgotten. Lock held; no chain is being worked on.</summary>
    protected virtual void OnReset()
    {
    }

    /// <summary>One queue starts anew. Lock held; no chain of it is being worked on.</summary>
    protected virtual void OnQueueReset(Virtqueue queue)
    {
    }

    /// <summary>Says something about the driver, a limited number of times.</summary>
    protected void Warn(string message) => _log.Warn(message);

    /// <summary>The driver broke the rules: nothing of its memory is touched any more until it resets the device. Lock held.</summary>
    protected internal void Break(string problem)
    {
        _log.Warn($"the driver broke the rules, so the device needs a reset: {problem}");
        bool told = (_status & VirtioStatus.NeedsReset) != 0;
        _status |= VirtioStatus.NeedsReset;
        if (!told && (_status & VirtioStatus.DriverOk) != 0)
            Interrupts?.RaiseConfiguration();
    }

    /// <summary>Configuration space reads differently now. Lock held.</summary>
    protected void ConfigChanged()
    {
        _generation++;
        if (IsRunning)
            Interrupts?.RaiseConfiguration();
    }

    /// <summary>A chain of the queue is being worked on without the lock. Lock held.</summary>
    protected internal void BeginWork(Virtqueue queue)
    {
        queue.Busy++;
        _busy++;
    }

    /// <summary>That has ended; resets that waited for it are carried out. Lock held.</summary>
    protected internal void EndWork(Virtqueue queue)
    {
        queue.Busy--;
        _busy--;
        if (queue.Busy == 0 && queue.ResetPending)
            FinishQueueReset(queue);
        if (_busy == 0 && _resetPending)
        {
            _resetPending = false;
            FinishReset();
        }
    }

    internal void RaiseQueueInterrupt(Virtqueue queue) => Interrupts?.RaiseQueue(queue.Index);

    private void WorkerFailed(Exception error)
    {
        lock (Gate)
            Break($"the device itself failed: {error.Message}");
    }

    private void FinishReset()
    {
        _status = VirtioStatus.None;
        _driverFeatures = 0;
        foreach (Virtqueue queue in Queues)
            queue.Clear();
        Interrupts?.DriverReset();
        OnReset();
    }

    private void FinishQueueReset(Virtqueue queue)
    {
        queue.Clear();
        OnQueueReset(queue);
    }
}
