using System.Globalization;
using Aerostat.Devices;

namespace Aerostat.VMware;

/// <summary>
/// Freezes a guest's file systems by VMware's tools in it, with their handshake of quiesced snapshots. The tools run the guest's own scripts before
/// and after, thaw by themselves when they lose patience, and say so.
/// </summary>
public sealed class ToolsFreezer : IVolumeFreezer
{
    private static readonly TimeSpan s_thawLimit = TimeSpan.FromSeconds(35);

    private readonly GuestTools tools;
    private readonly TimeProvider clock;
    private readonly Lock gate = new();
    private FreezePhase phase;
    private long askedAt, frozenAt;
    private ITimer? watchdog;
    private Task<FreezeResult>? thaw;

    /// <summary>Makes it.</summary>
    /// <param name="tools">The guest's tools.</param>
    /// <param name="clock">VM time.</param>
    public ToolsFreezer(GuestTools tools, TimeProvider clock)
    {
        ArgumentNullException.ThrowIfNull(tools);
        ArgumentNullException.ThrowIfNull(clock);
        this.tools = tools;
        this.clock = clock;
    }

    /// <inheritdoc/>
    public string Dialect => "vmware";

    /// <inheritdoc/>
    public FreezePhase Phase
    {
        get
        {
            // The tools may have lost patience, or have gone.
            lock (gate)
                return phase == FreezePhase.Frozen && !tools.IsFrozen ? FreezePhase.Idle : phase;
        }
    }

    /// <inheritdoc/>
    public event Action<FreezePhase>? PhaseChanged;

    /// <inheritdoc/>
    /// <remarks>Nothing to do: the tools thaw when nobody asks them to in time.</remarks>
    public void ThawLeftovers()
    {
    }

    /// <inheritdoc/>
    public async Task FreezeAsync(FreezeOptions options)
    {
        ArgumentNullException.ThrowIfNull(options);
        lock (gate)
        {
            if (phase == FreezePhase.Frozen && !tools.IsFrozen)
                End();
            if (phase != FreezePhase.Idle)
                throw new FreezeException("a freeze is under way already");
            if (!tools.IsRunning)
                throw new FreezeException("the guest's tools are not at work: install open-vm-tools there and start vmtoolsd");
            Enter(FreezePhase.Freezing);
            askedAt = clock.GetTimestamp();
        }
        string? failure = null;
        using (CancellationTokenSource limit = new(options.Deadline, clock))
        {
            try
            {
                if (!await tools.FreezeAsync(limit.Token).ConfigureAwait(false))
                    failure = "the guest's tools could not freeze its file systems; its log says why";
            }
            catch (OperationCanceledException)
            {
                failure = $"the guest has not frozen its file systems within {options.Deadline.TotalSeconds.ToString("0.#", CultureInfo.InvariantCulture)} s";
            }
        }
        lock (gate)
        {
            if (failure is not null)
            {
                End();
                throw new FreezeException(failure);
            }
            frozenAt = clock.GetTimestamp();
            Enter(FreezePhase.Frozen);
            watchdog = clock.CreateTimer(_ => WatchdogThaws(), null, options.Watchdog, Timeout.InfiniteTimeSpan);
        }
    }

    /// <inheritdoc/>
    public Task<FreezeResult> ThawAsync() => Thaw(byWatchdog: false);

    private void WatchdogThaws()
    {
        lock (gate)
        {
            if (phase == FreezePhase.Frozen)
                _ = Thaw(byWatchdog: true).ContinueWith(static t => t.Exception, CancellationToken.None, TaskContinuationOptions.ExecuteSynchronously, TaskScheduler.Default);
        }
    }

    // Who asks for it while it is under way gets the same answer.
    private Task<FreezeResult> Thaw(bool byWatchdog)
    {
        lock (gate)
        {
            if (phase == FreezePhase.Thawing && thaw is not null)
                return thaw;
            if (phase != FreezePhase.Frozen)
                return Task.FromException<FreezeResult>(new FreezeException("nothing is frozen"));
            Enter(FreezePhase.Thawing);
            watchdog?.Dispose();
            watchdog = null;
            return thaw = FinishAsync(byWatchdog);
        }
    }

    private async Task<FreezeResult> FinishAsync(bool byWatchdog)
    {
        bool whole = false;
        using (CancellationTokenSource limit = new(s_thawLimit, clock))
        {
            try
            {
                whole = await tools.ThawAsync(limit.Token).ConfigureAwait(false);
            }
            catch (OperationCanceledException)
            {
                // As if they had said so.
            }
        }
        lock (gate)
        {
            End();
            return whole
                ? new FreezeResult(clock.GetElapsedTime(askedAt, frozenAt), clock.GetElapsedTime(frozenAt), byWatchdog)
                : throw new FreezeException("the guest's tools have not kept its file systems frozen, have gone, or do not confirm that they have thawed them");
        }
    }

    private void End()
    {
        watchdog?.Dispose();
        watchdog = null;
        thaw = null;
        Enter(FreezePhase.Idle);
    }

    private void Enter(FreezePhase next)
    {
        phase = next;
        PhaseChanged?.Invoke(next);
    }
}
