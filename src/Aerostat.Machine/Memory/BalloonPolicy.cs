using Aerostat.Devices;

namespace Aerostat.Machine;

/// <summary>Why the policy decided what it did. The names are stable: programs see them in lower case with hyphens.</summary>
public enum PolicyReason
{
    /// <summary>The guest has what it needs and little more.</summary>
    Balanced,
    /// <summary>The guest has had more than it needs for some time: some is taken.</summary>
    Idle,
    /// <summary>The same while the host is short: more is taken, and sooner.</summary>
    HostPressure,
    /// <summary>The guest is about to run out: it gets memory back.</summary>
    GuestNeed,
    /// <summary>The guest reads again and again what it has just dropped, or swaps: it gets memory back.</summary>
    Refaults,
    /// <summary>The guest came to a stop before the target, or took memory back because it ran out: the target is what it has given.</summary>
    Stalled,
    /// <summary>The guest has not reached a target in time: the target is what it has given.</summary>
    Deadline,
    /// <summary>The guest has owed statistics for so long that it may lack the memory to send any: it gets memory back.</summary>
    StatisticsLate,
    /// <summary>The guest has not said anything yet, or nothing new.</summary>
    NoStatistics,
    /// <summary>No driver that could do anything.</summary>
    NoDriver,
    /// <summary>The guest is on its way to the target.</summary>
    Waiting,
    /// <summary>There would be something to take, but not so soon after the guest needed memory.</summary>
    CoolingDown,
    /// <summary>There would be something to take, but the guest has the least it may have.</summary>
    AtFloor,
    /// <summary>The guest needs more, but has the most it may have.</summary>
    AtCeiling,
}

/// <summary>How short of memory the host is.</summary>
/// <param name="TotalBytes">Its memory.</param>
/// <param name="AvailableBytes">What of it can be had without swapping.</param>
/// <param name="SomePercent">Share of the last ten seconds in which something waited for memory (PSI, "some avg10"); null: the host does not tell.</param>
public sealed record HostPressure(ulong TotalBytes, ulong AvailableBytes, double? SomePercent)
{
    /// <summary>The host should get memory from where it is not needed.</summary>
    public bool IsShort => SomePercent is >= 5 || AvailableBytes < TotalBytes / 10;
}

/// <summary>What the policy looks at.</summary>
/// <param name="Now">VM time; only differences count.</param>
/// <param name="MemoryBytes">The machine's memory.</param>
/// <param name="Balloon">The balloon and what the guest says.</param>
/// <param name="Host">The host.</param>
public sealed record PolicyInputs(TimeSpan Now, ulong MemoryBytes, BalloonReport Balloon, HostPressure Host);

/// <summary>What the policy remembers from one step to the next.</summary>
public sealed record PolicyState
{
    /// <summary>Of a policy that has done nothing yet.</summary>
    public static PolicyState Start { get; } = new();

    /// <summary>Steps in a row that found more than the guest needs.</summary>
    internal int IdleSteps { get; init; }

    /// <summary>Steps in a row that found the guest in need.</summary>
    internal int Needs { get; init; }

    /// <summary>Before this nothing is taken.</summary>
    internal TimeSpan QuietUntil { get; init; }

    /// <summary>How long the next quiet time is, if another stall comes soon.</summary>
    internal TimeSpan QuietTime { get; init; }

    /// <summary>When the guest was last asked for more than it had given; null: it has reached that.</summary>
    internal TimeSpan? AskedAt { get; init; }

    /// <summary>The figures that rates come from.</summary>
    internal (TimeSpan At, ulong SwapIn, ulong MajorFaults)? Last { get; init; }
}

/// <summary>What the policy decided.</summary>
/// <param name="TargetBytes">What the balloon is to have.</param>
/// <param name="Reason">Why.</param>
/// <param name="KeptBytes">What the guest has now.</param>
/// <param name="UsedBytes">What of it the guest cannot do without, by its own figures; null: it has not said.</param>
/// <param name="AvailableBytes">What it could give; null: it has not said.</param>
/// <param name="ReserveBytes">What it is to keep in reserve.</param>
/// <param name="State">For the next step.</param>
public sealed record PolicyDecision(
    ulong TargetBytes, PolicyReason Reason, ulong KeptBytes, ulong? UsedBytes, ulong? AvailableBytes, ulong ReserveBytes, PolicyState State);

/// <summary>
/// Decides how much memory a guest is left with: idle guests shrink step by step, guests in need grow at once. A function of its inputs and
/// nothing else, so every decision can be followed from the event that tells it.
/// </summary>
/// <remarks>
/// <para>What a guest keeps should be what it uses (kept less available) and a reserve: a quarter of that and 64 MiB at least, while the host is short an
/// eighth and 32 MiB. It gets memory back when less than a sixteenth (24 MiB at least) is available, up to the reserve at once or a sixteenth of the machine's memory, and more if
/// it comes again. So between giving back and
/// taking there is always a wide band in which nothing happens.</para>
/// <para>Memory is taken when there has been more than the reserve for three steps (one while the host is short), a sixteenth of the machine's memory
/// at a time, twice that while the host is short; not within half a minute after the guest needed memory, and after stalls twice as long each
/// time, up to ten minutes. The target is a wish: where the guest stops, the target follows.</para>
/// <para>Figures are the guest's word. A guest that lies gets what its floor and ceiling allow, and harms nobody else.</para>
/// </remarks>
public sealed class BalloonPolicy
{
    private const ulong MiB = 1 << 20, LeastStep = 16 * MiB;
    private const int IdleStepsBefore = 3;
    private const double MajorFaultsPerSecond = 100;
    private const ulong SwapInPerSecond = 1 * MiB;

    private static readonly TimeSpan s_quiet = TimeSpan.FromSeconds(30), s_longestQuiet = TimeSpan.FromMinutes(10), s_deadline = TimeSpan.FromSeconds(60),
        s_late = TimeSpan.FromSeconds(20), s_fresh = TimeSpan.FromSeconds(10);

    /// <summary>How often it should be asked.</summary>
    public static TimeSpan Interval { get; } = TimeSpan.FromSeconds(2);

    /// <param name="floor">The least that the guest may be left with.</param>
    /// <param name="ceiling">The most.</param>
    public BalloonPolicy(ulong floor, ulong ceiling)
    {
        ArgumentOutOfRangeException.ThrowIfGreaterThan(floor, ceiling);
        (Floor, Ceiling) = (floor, ceiling);
    }

    /// <summary>The least that the guest may be left with.</summary>
    public ulong Floor { get; }

    /// <summary>The most.</summary>
    public ulong Ceiling { get; }

    /// <summary>The stable name that programs see.</summary>
    public static string Code(PolicyReason reason) => reason switch
    {
        PolicyReason.Balanced => "balanced",
        PolicyReason.Idle => "idle",
        PolicyReason.HostPressure => "host-pressure",
        PolicyReason.GuestNeed => "guest-need",
        PolicyReason.Refaults => "refaults",
        PolicyReason.Stalled => "stalled",
        PolicyReason.Deadline => "deadline",
        PolicyReason.StatisticsLate => "statistics-late",
        PolicyReason.NoStatistics => "no-statistics",
        PolicyReason.NoDriver => "no-driver",
        PolicyReason.Waiting => "waiting",
        PolicyReason.CoolingDown => "cooling-down",
        PolicyReason.AtFloor => "at-floor",
        _ => "at-ceiling",
    };

    /// <summary>The next decision.</summary>
    public PolicyDecision Decide(PolicyState state, PolicyInputs inputs)
    {
        ArgumentNullException.ThrowIfNull(state);
        ArgumentNullException.ThrowIfNull(inputs);
        BalloonReport balloon = inputs.Balloon;
        ulong total = inputs.MemoryBytes, actual = Math.Min(balloon.ActualBytes, total), kept = total - actual;
        ulong least = total - Math.Min(Ceiling, total), most = total - Math.Min(Floor, total);
        ulong target = Math.Clamp(balloon.TargetBytes, least, most);
        ulong? available = balloon.Statistics[GuestFigure.Available] is { } a ? Math.Min(a, kept) : null;
        ulong? used = kept - available;
        bool isShort = inputs.Host.IsShort;
        ulong reserve = isShort ? Math.Max(32 * MiB, (used ?? 0) / 8) : Math.Max(64 * MiB, (used ?? 0) / 4);

        PolicyDecision Hold(PolicyReason reason, PolicyState next) => new(target, reason, kept, used, available, reserve, next);
        PolicyDecision Set(ulong bytes, PolicyReason reason, PolicyState next) => new(Math.Clamp(bytes, least, most), reason, kept, used, available, reserve, next);
        PolicyDecision GiveBack(ulong bytes, PolicyReason reason)
        {
            PolicyState next = state with { IdleSteps = 0, QuietUntil = Later(state.QuietUntil, inputs.Now + s_quiet), AskedAt = null };
            // From what it has given, not from what was still wanted of it.
            ulong from = Math.Min(target, actual);
            return from <= least ? Set(least, PolicyReason.AtCeiling, next) : Set(from - Math.Min(from, Math.Clamp(bytes, LeastStep, Math.Max(LeastStep, total / 4))), reason, next);
        }

        if (balloon.Reason is BalloonReason.NoDriver or BalloonReason.DriverFailed)
            return Hold(PolicyReason.NoDriver, PolicyState.Start);
        if (balloon.Statistics.Pending > s_late && actual > least)
            return state.QuietUntil > inputs.Now ? Hold(PolicyReason.CoolingDown, state) : GiveBack(total / 8, PolicyReason.StatisticsLate);
        if (used is not { } busy || available is not { } free || balloon.Statistics.Age is not { } age)
            return Hold(PolicyReason.NoStatistics, state);

        // Rates, where there are figures to compare.
        ulong swapIn = balloon.Statistics[GuestFigure.SwapIn] ?? 0, faults = balloon.Statistics[GuestFigure.MajorFaults] ?? 0;
        TimeSpan saidAt = inputs.Now - age;
        bool thrashes = false;
        if (state.Last is { } last && saidAt > last.At)
        {
            double seconds = (saidAt - last.At).TotalSeconds;
            thrashes = seconds >= 0.5 && ((swapIn > last.SwapIn && (swapIn - last.SwapIn) / seconds > SwapInPerSecond)
                || (faults > last.MajorFaults && (faults - last.MajorFaults) / seconds > MajorFaultsPerSecond));
        }
        if (state.Last is null || saidAt > state.Last.Value.At)
            state = state with { Last = (saidAt, swapIn, faults) };

        if (age <= s_fresh && free < Math.Max(24 * MiB, busy / 16))
        {
            // What it lacks shows only up to what it has: who comes again at once gets more each time.
            ulong more = state.Needs switch
            {
                0 => total / 16,
                1 => total / 8,
                _ => total / 4,
            };
            state = state with { Needs = Math.Min(state.Needs + 1, 2) };
            return GiveBack(Math.Max(more, reserve - Math.Min(reserve, free)), PolicyReason.GuestNeed);
        }
        state = state with { Needs = 0 };
        // What a balloon cannot help is not its fault: with nothing given, nothing is given back.
        if (thrashes && actual > least)
            return GiveBack(total / 16, PolicyReason.Refaults);

        if (balloon.Reason is BalloonReason.Stalled or BalloonReason.DeflatedOnOom or BalloonReason.Refused && actual < target)
        {
            TimeSpan quiet = Min(Later(state.QuietTime, s_quiet / 2) * 2, s_longestQuiet);
            return Set(actual, PolicyReason.Stalled, state with { IdleSteps = 0, QuietTime = quiet, QuietUntil = Later(state.QuietUntil, inputs.Now + quiet), AskedAt = null });
        }
        if (actual < target && balloon.Reason == BalloonReason.Working)
        {
            TimeSpan asked = state.AskedAt ?? inputs.Now;
            return inputs.Now - asked < s_deadline
                ? Hold(PolicyReason.Waiting, state with { AskedAt = asked, IdleSteps = 0 })
                : Set(actual, PolicyReason.Deadline, state with { AskedAt = null, IdleSteps = 0, QuietUntil = Later(state.QuietUntil, inputs.Now + s_quiet) });
        }
        state = state with { AskedAt = null };
        if (age > s_fresh)
            return Hold(PolicyReason.NoStatistics, state);

        ulong spare = free - Math.Min(free, reserve);
        if (spare < LeastStep)
            return Hold(PolicyReason.Balanced, state with { IdleSteps = 0 });
        state = state with { IdleSteps = Math.Min(state.IdleSteps + 1, IdleStepsBefore) };
        if (target >= most)
            return Hold(PolicyReason.AtFloor, state);
        if (state.QuietUntil > inputs.Now)
            return Hold(PolicyReason.CoolingDown, state);
        if (state.IdleSteps < (isShort ? 1 : IdleStepsBefore))
            return Hold(PolicyReason.Balanced, state);
        // It has been quiet long enough: the next stall starts from the shortest time again.
        if (state.QuietUntil + s_longestQuiet < inputs.Now)
            state = state with { QuietTime = default };
        ulong step = Math.Min(spare, Math.Max(LeastStep, total / 16) * (isShort ? 2UL : 1));
        return Set(target + step, isShort ? PolicyReason.HostPressure : PolicyReason.Idle, state with { IdleSteps = 0, AskedAt = inputs.Now });
    }

    private static TimeSpan Later(TimeSpan a, TimeSpan b) => a > b ? a : b;

    private static TimeSpan Min(TimeSpan a, TimeSpan b) => a < b ? a : b;
}
