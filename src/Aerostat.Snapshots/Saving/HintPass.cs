using System.Diagnostics;
using Aerostat.Machine;
using Aerostat.Memory;
using Aerostat.Platform;
using Aerostat.Virtio;

namespace Aerostat.Snapshots;

/// <summary>How the guest was asked for its free pages.</summary>
public enum HintOutcome
{
    /// <summary>It was not to be asked.</summary>
    NotWanted,
    /// <summary>The machine has no balloon, or one without hints.</summary>
    NoBalloon,
    /// <summary>No driver in the guest that can name free pages, or not yet.</summary>
    NoDriver,
    /// <summary>The guest stands still, and cannot answer.</summary>
    NotRunning,
    /// <summary>Someone else is asking.</summary>
    Busy,
    /// <summary>
    /// The host is short of memory: a guest that zeroes pages as it takes them touches all that it has free before it names it.
    /// </summary>
    HostShortOfMemory,
    /// <summary>The guest has named all it wanted to.</summary>
    Complete,
    /// <summary>The guest was not done in time; what it had named by then counts.</summary>
    TimedOut,
    /// <summary>The driver was reset meanwhile; nothing counts.</summary>
    DriverReset,
}

/// <summary>What came of asking the guest for its free pages.</summary>
/// <param name="Outcome">How that went.</param>
/// <param name="NamedBytes">Bytes that the guest has named.</param>
/// <param name="Elapsed">How long it took; the guest ran.</param>
public sealed record HintReport(HintOutcome Outcome, ulong NamedBytes, TimeSpan Elapsed)
{
    /// <summary>Bytes that were free in pieces too small to be named, and were emptied by way of the balloon.</summary>
    public ulong EmptiedBytes { get; init; }

    /// <summary>The outcome in words.</summary>
    public string Explanation => Outcome switch
    {
        HintOutcome.NotWanted => "not asked for",
        HintOutcome.NoBalloon => "the machine has no balloon with hints (--balloon)",
        HintOutcome.NoDriver => "no driver in the guest that names free pages (Linux: virtio_balloon)",
        HintOutcome.NotRunning => "the guest stands still",
        HintOutcome.Busy => "someone else is asking the guest",
        HintOutcome.HostShortOfMemory => "the host is short of memory, and the guest would touch all that it has free",
        HintOutcome.Complete => "complete",
        HintOutcome.TimedOut => "the guest was not done in time",
        _ => "the guest's driver was reset meanwhile",
    };
}

/// <summary>
/// Asks a running guest for its free pages, and lets it keep them until the snapshot is taken: it gets them back when this is disposed of,
/// whatever has become of the snapshot.
/// </summary>
internal sealed class HintPass : IFreePageHints, IDisposable
{
    // What the host keeps for itself besides.
    private const ulong Reserve = 128UL << 20;

    private readonly MemoryWriter writer;
    private readonly TaskCompletionSource<bool> finished = new(TaskCreationOptions.RunContinuationsAsynchronously);
    private VirtioBalloon? balloon;
    private ulong named;

    private HintPass(MemoryWriter writer) => this.writer = writer;

    /// <summary>How it went.</summary>
    public HintReport Report { get; private set; } = new(HintOutcome.NotWanted, 0, TimeSpan.Zero);

    /// <summary>Nobody is asked.</summary>
    public static HintPass None(MemoryWriter writer, HintOutcome why) => new(writer) { Report = new HintReport(why, 0, TimeSpan.Zero) };

    /// <summary>Asks, and waits for the end. Every write to memory is logged already.</summary>
    public static async Task<HintPass> RunAsync(VirtualMachine machine, MemoryWriter writer, TimeSpan limit, CancellationToken cancellation)
    {
        HintPass pass = new(writer);
        try
        {
            await pass.AskAsync(machine, limit, cancellation).ConfigureAwait(false);
            return pass;
        }
        catch
        {
            pass.Dispose();
            throw;
        }
    }

    private async Task AskAsync(VirtualMachine machine, TimeSpan limit, CancellationToken cancellation)
    {
        Stopwatch elapsed = Stopwatch.StartNew();
        HintOutcome outcome;
        ulong emptied = 0;
        if (machine.VirtioBalloon is not { OffersHints: true } device)
            outcome = HintOutcome.NoBalloon;
        else if (!device.CanHint)
            outcome = HintOutcome.NoDriver;
        else if (HostMemory.Read().UsableBytes < machine.Memory.TotalBytes - Math.Min(machine.Memory.TotalBytes, machine.Memory.AllocatedBytes) + Reserve)
            outcome = HintOutcome.HostShortOfMemory;
        else
        {
            emptied = await SmallPieces.EmptyAsync(machine, device, limit / 5, cancellation).ConfigureAwait(false);
            if (!device.TryStartHints(this))
                outcome = device.CanHint ? HintOutcome.Busy : HintOutcome.NoDriver;
            else
            {
                balloon = device;
                outcome = await EndAsync(machine, limit, cancellation).ConfigureAwait(false);
            }
        }
        Report = new HintReport(outcome, Volatile.Read(ref named), elapsed.Elapsed) { EmptiedBytes = emptied };
    }

    private async Task<HintOutcome> EndAsync(VirtualMachine machine, TimeSpan limit, CancellationToken cancellation)
    {
        using CancellationTokenSource over = CancellationTokenSource.CreateLinkedTokenSource(cancellation);
        Task first = await Task.WhenAny(finished.Task, machine.Exit, Task.Delay(limit, over.Token)).ConfigureAwait(false);
        await over.CancelAsync().ConfigureAwait(false);
        cancellation.ThrowIfCancellationRequested();
        if (first == finished.Task)
        {
            if (await finished.Task.ConfigureAwait(false))
                return HintOutcome.Complete;
            // Nobody promises anything any more for the pages of a driver that has gone.
            writer.DropHints();
            return HintOutcome.DriverReset;
        }
        // It keeps what it has named so far, but is to name no more.
        balloon!.StopHints(release: false);
        return HintOutcome.TimedOut;
    }

    void IFreePageHints.Hint(GuestAddress address, ulong length)
    {
        writer.Hint(address, length);
        Interlocked.Add(ref named, length);
    }

    void IFreePageHints.Finished(bool complete) => finished.TrySetResult(complete);

    /// <summary>The guest gets its pages back.</summary>
    public void Dispose() => Interlocked.Exchange(ref balloon, null)?.StopHints(release: true);
}
