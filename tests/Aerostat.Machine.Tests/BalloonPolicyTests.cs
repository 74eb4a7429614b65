using Aerostat.Devices;
using Xunit;

namespace Aerostat.Machine.Tests;

/// <summary>The memory policy, by traces: a model of a guest gives the figures, time is counted.</summary>
public sealed class BalloonPolicyTests
{
    private const ulong MiB = 1 << 20, Total = 1024 * MiB;

    private static readonly HostPressure s_calm = new(16384 * MiB, 8192 * MiB, 0), s_short = new(16384 * MiB, 800 * MiB, 12);

    /// <summary>A guest that uses so much, gives what it has free, and answers at once.</summary>
    private sealed class Model(BalloonPolicy policy)
    {
        private PolicyState _state = PolicyState.Start;

        public ulong Used { get; set; } = 100 * MiB;

        public HostPressure Host { get; set; } = s_calm;

        /// <summary>Where the guest gives no more; null: it gives what it has.</summary>
        public ulong? Limit { get; set; }

        public bool Gives { get; set; } = true;

        public TimeSpan Age { get; set; } = TimeSpan.FromSeconds(1);

        public TimeSpan? Pending { get; set; }

        public BalloonReason? Says { get; set; }

        public ulong SwapIn { get; set; }

        public ulong MajorFaults { get; set; }

        public ulong Target { get; private set; }

        public ulong Actual { get; private set; }

        public TimeSpan Now { get; private set; } = TimeSpan.FromSeconds(100);

        public ulong Kept => Total - Actual;

        public PolicyDecision Step()
        {
            Now += BalloonPolicy.Interval;
            Dictionary<string, ulong> figures = new()
            {
                [GuestFigure.Available] = Kept - Math.Min(Kept, Used),
                [GuestFigure.SwapIn] = SwapIn,
                [GuestFigure.MajorFaults] = MajorFaults,
            };
            BalloonReason reason = Says ?? (Target == Actual ? BalloonReason.Reached : BalloonReason.Working);
            BalloonReport report = new(Target, Actual, Actual, reason, "", 0, 0, new BalloonStatistics(figures, Age, Pending));
            PolicyInputs inputs = new(Now, Total, report, Host);
            PolicyDecision decision = policy.Decide(_state, inputs);
            // A function: the same again.
            Assert.Equal(decision, policy.Decide(_state, inputs));
            _state = decision.State;
            Target = decision.TargetBytes;
            if (Gives)
                Actual = Math.Min(Target, Limit ?? ulong.MaxValue);
            return decision;
        }

        public List<PolicyDecision> Steps(int count) => [.. Enumerable.Range(0, count).Select(_ => Step())];
    }

    [Fact]
    public void AnIdleGuestShrinksStepByStepAndThenNothingHappens()
    {
        Model guest = new(new BalloonPolicy(64 * MiB, Total));
        ulong before = 0;
        List<ulong> steps = [];
        for (int i = 0; i < 200; i++)
        {
            PolicyDecision d = guest.Step();
            if (d.TargetBytes == before)
                continue;
            Assert.Equal(PolicyReason.Idle, d.Reason);
            steps.Add(d.TargetBytes - before);
            before = d.TargetBytes;
        }
        // 100 MiB in use, 64 in reserve.
        Assert.Equal(164 * MiB, guest.Kept);
        Assert.All(steps, s => Assert.InRange(s, 16 * MiB, 64 * MiB));
        Assert.Equal(14, steps.Count);
        Assert.All(guest.Steps(100), d => Assert.Equal((PolicyReason.Balanced, 860 * MiB), (d.Reason, d.TargetBytes)));
        // Small changes of its needs move nothing.
        for (ulong used = 90 * MiB; used <= 120 * MiB; used += MiB)
        {
            guest.Used = used;
            Assert.Equal(860 * MiB, guest.Step().TargetBytes);
        }
    }

    [Fact]
    public void AShortHostGetsMoreAndSooner()
    {
        Model calm = new(new BalloonPolicy(64 * MiB, Total)), shorter = new(new BalloonPolicy(64 * MiB, Total)) { Host = s_short };
        Assert.Equal(PolicyReason.HostPressure, shorter.Step().Reason);
        Assert.Equal(128 * MiB, shorter.Target);
        calm.Step();
        Assert.Equal(0UL, calm.Target);
        shorter.Steps(100);
        Assert.Equal(132 * MiB, shorter.Kept);
        // Pressure is not needed for that: little memory left is enough, and figures that the host does not have are not missed.
        Assert.True(new HostPressure(1000, 99, null).IsShort);
        Assert.False(new HostPressure(1000, 500, null).IsShort);
    }

    [Fact]
    public void NeedIsMetAtOnceAndNothingIsTakenForAWhile()
    {
        Model guest = new(new BalloonPolicy(64 * MiB, Total));
        guest.Steps(200);
        guest.Used = 150 * MiB;
        PolicyDecision d = guest.Step();
        Assert.Equal(PolicyReason.GuestNeed, d.Reason);
        Assert.Equal(796 * MiB, d.TargetBytes);
        guest.Used = 900 * MiB;
        // More each time, but no more than a quarter of the memory at once.
        Assert.Equal(668 * MiB, guest.Step().TargetBytes);
        Assert.Equal(412 * MiB, guest.Step().TargetBytes);
        Assert.Equal(156 * MiB, guest.Step().TargetBytes);
        Assert.Equal(0UL, guest.Step().TargetBytes);
        TimeSpan needed = guest.Now;
        guest.Used = 100 * MiB;
        List<PolicyDecision> after = guest.Steps(40);
        int first = after.FindIndex(a => a.Reason == PolicyReason.Idle);
        Assert.All(after.Take(first), a => Assert.Equal(PolicyReason.CoolingDown, a.Reason));
        Assert.True(first * BalloonPolicy.Interval.TotalSeconds >= 28, $"{first}");
        Assert.True(guest.Now > needed);
    }

    [Fact]
    public void FloorAndCeilingHold()
    {
        Model guest = new(new BalloonPolicy(512 * MiB, 768 * MiB)) { Used = 10 * MiB };
        Assert.Equal(256 * MiB, guest.Step().TargetBytes);
        guest.Steps(100);
        Assert.Equal(512 * MiB, guest.Kept);
        Assert.Equal(PolicyReason.AtFloor, guest.Step().Reason);
        guest.Used = 2000 * MiB;
        guest.Steps(100);
        Assert.Equal(768 * MiB, guest.Kept);
        Assert.Equal(PolicyReason.AtCeiling, guest.Step().Reason);
    }

    [Fact]
    public void ATargetThatIsNotReachedFollowsTheGuest()
    {
        Model guest = new(new BalloonPolicy(64 * MiB, Total)) { Limit = 200 * MiB };
        PolicyDecision stalled;
        do
        {
            stalled = guest.Step();
            if (guest.Target > guest.Actual)
                guest.Says = BalloonReason.Stalled;
        }
        while (stalled.Reason != PolicyReason.Stalled);
        Assert.Equal(200 * MiB, stalled.TargetBytes);
        guest.Says = null;
        // Asked again after half a minute, then one, then two: each stall makes the quiet time twice as long.
        List<double> waits = [];
        TimeSpan at = guest.Now;
        for (int i = 0; i < 3000 && waits.Count < 7; i++)
        {
            if (guest.Step().Reason == PolicyReason.Idle)
            {
                waits.Add((guest.Now - at).TotalSeconds);
                guest.Says = BalloonReason.Stalled;
                Assert.Equal(PolicyReason.Stalled, guest.Step().Reason);
                guest.Says = null;
                at = guest.Now;
            }
        }
        Assert.Equal([30, 60, 120, 240, 480, 600, 600], waits.Select(w => Math.Floor(w / 10) * 10));
    }

    [Fact]
    public void ATargetHasADeadline()
    {
        Model guest = new(new BalloonPolicy(64 * MiB, Total));
        guest.Steps(3);
        Assert.Equal(64 * MiB, guest.Target);
        guest.Gives = false;
        guest.Steps(3);
        List<PolicyDecision> waiting = guest.Steps(60);
        int end = waiting.FindIndex(d => d.Reason == PolicyReason.Deadline);
        Assert.InRange(end, 25, 31);
        Assert.All(waiting.Take(end), d => Assert.Equal(PolicyReason.Waiting, d.Reason));
        Assert.Equal(guest.Actual, waiting[end].TargetBytes);
    }

    [Fact]
    public void AGuestThatOwesStatisticsGetsMemory()
    {
        Model guest = new(new BalloonPolicy(64 * MiB, Total));
        guest.Steps(100);
        ulong before = guest.Target;
        (guest.Age, guest.Pending) = (TimeSpan.FromSeconds(15), TimeSpan.FromSeconds(14));
        Assert.Equal((PolicyReason.NoStatistics, before), (guest.Step().Reason, guest.Target));
        (guest.Age, guest.Pending) = (TimeSpan.FromSeconds(25), TimeSpan.FromSeconds(24));
        Assert.Equal((PolicyReason.StatisticsLate, before - (128 * MiB)), (guest.Step().Reason, guest.Target));
        Assert.Equal(PolicyReason.CoolingDown, guest.Step().Reason);
    }

    [Theory]
    [InlineData(0UL, 400UL)]
    [InlineData(8 * MiB, 0UL)]
    public void AGuestThatReadsBackWhatItDroppedGetsMemory(ulong swapIn, ulong majorFaults)
    {
        Model guest = new(new BalloonPolicy(64 * MiB, Total));
        guest.Steps(100);
        ulong before = guest.Target;
        guest.SwapIn += swapIn;
        guest.MajorFaults += majorFaults;
        Assert.Equal((PolicyReason.Refaults, before - (64 * MiB)), (guest.Step().Reason, guest.Target));
        Assert.Equal(before - (64 * MiB), guest.Step().TargetBytes);
    }

    [Fact]
    public void WithoutADriverOrFiguresNothingIsDone()
    {
        Model guest = new(new BalloonPolicy(64 * MiB, Total)) { Says = BalloonReason.NoDriver };
        Assert.All(guest.Steps(20), d => Assert.Equal((PolicyReason.NoDriver, 0UL), (d.Reason, d.TargetBytes)));
        BalloonReport silent = new(0, 0, 0, BalloonReason.Reached, "", 0, 0, BalloonStatistics.None);
        PolicyDecision d = new BalloonPolicy(64 * MiB, Total).Decide(PolicyState.Start, new PolicyInputs(default, Total, silent, s_calm));
        Assert.Equal((PolicyReason.NoStatistics, 0UL), (d.Reason, d.TargetBytes));
    }

    /// <summary>Any figures, true or not: floor, ceiling and step limits hold, and nothing is thrown.</summary>
    [Fact]
    public void WhateverTheGuestSays()
    {
        for (int seed = 0; seed < 200; seed++)
        {
            Random random = new(seed);
            ulong Any() => random.Next(4) switch
            {
                0 => 0,
                1 => ulong.MaxValue - (ulong)random.Next(3),
                _ => (ulong)random.NextInt64((long)(Total * 2)),
            };
            ulong floor = (ulong)random.NextInt64((long)Total), ceiling = floor + (ulong)random.NextInt64((long)(Total - floor) + 1), target = 0, actual = 0;
            BalloonPolicy policy = new(floor, ceiling);
            PolicyState state = PolicyState.Start;
            TimeSpan now = default;
            for (int i = 0; i < 300; i++)
            {
                now += TimeSpan.FromSeconds(random.Next(5));
                Dictionary<string, ulong> figures = [];
                foreach (string name in (string[])[GuestFigure.Available, GuestFigure.Free, GuestFigure.SwapIn, GuestFigure.MajorFaults])
                    if (random.Next(8) != 0)
                        figures[name] = Any();
                BalloonStatistics statistics = new(
                    figures, random.Next(8) == 0 ? null : TimeSpan.FromSeconds(random.Next(20)), random.Next(4) == 0 ? TimeSpan.FromSeconds(random.Next(40)) : null);
                BalloonReport report = new(target, actual, Any(), (BalloonReason)random.Next(8), "", 0, 0, statistics);
                HostPressure host = new(Any(), Any(), random.Next(2) == 0 ? null : random.Next(100));
                PolicyDecision d = policy.Decide(state, new PolicyInputs(now, Total, report, host));
                Assert.InRange(d.TargetBytes, Total - ceiling, Total - floor);
                if (i > 0 && d.TargetBytes > target)
                    Assert.True(d.TargetBytes - target <= Total / 8, $"seed {seed}, step {i}: {target} -> {d.TargetBytes}");
                (state, target) = (d.State, d.TargetBytes);
                actual = random.Next(3) == 0 ? target : (ulong)random.NextInt64((long)Total + 1);
            }
        }
    }

    /// <summary>A balloon that reaches what it is told.</summary>
    private sealed class Obedient : IBalloon
    {
        public ulong Target { get; private set; }

        public int Asked { get; private set; }

        public ulong Used { get; set; } = 100 * MiB;

        public string Dialect => "test";

        public void SetTarget(ulong bytes) => Target = bytes;

        public void RequestStatistics() => Asked++;

        public BalloonReport GetReport() => new(
            Target, Target, Target, BalloonReason.Reached, "", 0, 0,
            new BalloonStatistics(new Dictionary<string, ulong> { [GuestFigure.Available] = Total - Target - Math.Min(Total - Target, Used) }, TimeSpan.FromSeconds(1), null));
    }

    [Fact]
    public void TheControllerTellsEveryDecisionWithItsInputs()
    {
        Obedient balloon = new();
        MachineJournal journal = new();
        // Its timer never comes: the clock stands still.
        using Aerostat.Platform.VmClock clock = new();
        using BalloonController controller = new(balloon, new BalloonPolicy(256 * MiB, Total), Total, journal, clock, () => s_short);
        for (int i = 0; i < 5; i++)
            controller.Step();
        Assert.Equal(640 * MiB, balloon.Target);
        Assert.Equal(5, balloon.Asked);
        IReadOnlyList<MachineEvent> events = journal.Read(0);
        Assert.Equal(5, events.Count);
        Assert.All(events, e => Assert.Equal("balloon-policy", e.Kind));
        Assert.Equal(
            "host-pressure: balloon target 128 MiB -> 256 MiB, actual 128 MiB (reached); guest keeps 896 MiB, uses 100 MiB, available 796 MiB, reserve 32 MiB; host available 800 MiB of 16384 MiB, pressure 12.0 %",
            events[1].Message);
        controller.Rest(true);
        balloon.SetTarget(0);
        controller.Step();
        Assert.Equal(0UL, balloon.Target);
        controller.Rest(false);
        controller.Step();
        Assert.Equal(128 * MiB, balloon.Target);
        balloon.Used = 2000 * MiB;
        controller.Step();
        Assert.Equal(PolicyReason.GuestNeed, controller.Last!.Reason);
    }

    [Theory]
    [InlineData("auto=1G..512M", "least above its most")]
    [InlineData("auto=1G..4G", "smaller MAX")]
    [InlineData("auto=1M..1G", "larger MIN")]
    [InlineData("auto=256M..1G,target=1M", "the policy sets the target")]
    [InlineData("auto=256M", "MIN..MAX")]
    [InlineData("target=3G", "smaller target")]
    public void WhatCannotBeIsSaidAtConfigurationTime(string text, string expected)
    {
        ConfigurationException e = Assert.Throws<ConfigurationException>(() =>
            new MachineOptions { MemoryBytes = 2048 * MiB, Boot = new KernelBootOptions("none"), Devices = [BalloonOptions.ParseBalloon(text)] }.Validate());
        Assert.Contains(expected, e.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void TheRangeIsPartOfWhatIsSaved()
    {
        BalloonOptions options = BalloonOptions.ParseBalloon("auto=256M..1G,deflate-on-oom");
        Assert.Equal(new BalloonRange(256 * MiB, 1024 * MiB), options.Auto);
        Assert.Equal(options, DeviceOptions.ParseSaved(options.Format()));
    }
}
