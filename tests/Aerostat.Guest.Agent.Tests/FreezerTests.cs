namespace Aerostat.Guest.Agent.Tests;

/// <summary>Whatever happens, nothing stays frozen, and the host hears of it.</summary>
public sealed class FreezerTests
{
    private const int InputOutput = 5, NotSupported = 95, Busy = 16;
    private static readonly TimeSpan s_long = TimeSpan.FromHours(1);

    private readonly World world = new();
    private readonly Freezer freezer;

    public FreezerTests() => freezer = new Freezer(world, world);

    [Fact]
    public void AllAreFrozenAndThawedTheOtherWayRound()
    {
        Assert.Equal(0, freezer.Freeze(s_long));
        Assert.Equal((true, true), (freezer.IsFrozen, world.Marked));
        Assert.Equal(Busy, freezer.Freeze(s_long));
        Assert.Equal(0, freezer.Thaw());
        Assert.Equal(["freeze /c", "freeze /b", "freeze /", "thaw /", "thaw /b", "thaw /c"], world.Done);
        Assert.Equal((0, false, false), (world.OpenCount, freezer.IsFrozen, world.Marked));
        Assert.Equal(0, freezer.Thaw());
    }

    [Theory]
    [InlineData("/c"), InlineData("/b"), InlineData("/")]
    public void AFailureThawsWhatWasFrozen(string failing)
    {
        world.Errors[failing] = InputOutput;
        Assert.Equal(InputOutput, freezer.Freeze(s_long));
        AssertNothingIsLeft();
        Assert.Contains(world.Log, l => l.StartsWith($"{failing} could not be frozen", StringComparison.Ordinal));
    }

    [Theory]
    [InlineData("/c"), InlineData("/")]
    public void NothingIsFrozenWhenOneCannotBeOpened(string failing)
    {
        world.OpenErrors[failing] = InputOutput;
        Assert.Equal(InputOutput, freezer.Freeze(s_long));
        Assert.Empty(world.Done);
        AssertNothingIsLeft();
    }

    [Fact]
    public void TypesThatCannotBeFrozenAreLeftAlone()
    {
        world.Errors["/b"] = NotSupported;
        Assert.Equal(0, freezer.Freeze(s_long));
        Assert.Equal(0, freezer.Thaw());
        Assert.Equal(["freeze /c", "freeze /", "thaw /", "thaw /c"], world.Done);
    }

    [Fact]
    public void ARehearsalFreezesNothing()
    {
        world.OpenErrors["/b"] = InputOutput;
        Rehearsal.Run(world, s_long);
        // Both calls, of no file, for each of the three.
        Assert.Equal(6, world.Rehearsed);
        AssertNothingIsLeft();
        Assert.Empty(world.Done);
        Assert.Empty(world.Log);
    }

    [Fact]
    public void WhoHasFrozenOneAlreadyKeepsIt()
    {
        world.Errors["/b"] = Busy;
        Assert.Equal(Busy, freezer.Freeze(s_long));
        Assert.Equal(["freeze /c", "thaw /c"], world.Done);
        AssertNothingIsLeft();
    }

    /// <summary>The watchdog's thaw is not a success to the host.</summary>
    [Fact]
    public void TheWatchdogThaws()
    {
        Assert.Equal(0, freezer.Freeze(TimeSpan.FromMilliseconds(1)));
        Assert.True(SpinWait.SpinUntil(() => world.FrozenCount == 0, TimeSpan.FromSeconds(60)));
        Assert.NotEqual(0, freezer.Thaw());
        Assert.Equal(0, freezer.Thaw());
        AssertNothingIsLeft();
    }

    /// <summary>A freeze that hangs: what was frozen before it is thawed meanwhile, and it itself when it comes back.</summary>
    [Fact]
    public void AnAbandonedFreezeFails()
    {
        int frozen = -1;
        world.During["/b"] = () =>
        {
            freezer.Abandon("test");
            frozen = world.FrozenCount;
        };
        Assert.NotEqual(0, freezer.Freeze(s_long));
        Assert.Equal(0, frozen);
        AssertNothingIsLeft();
    }

    [Fact]
    public void OneThatCannotBeThawedDoesNotKeepTheOthersFrozen()
    {
        Assert.Equal(0, freezer.Freeze(s_long));
        world.ThawErrors["/b"] = InputOutput;
        Assert.Equal(InputOutput, freezer.Thaw());
        Assert.Equal(["thaw /", "thaw /c"], world.Done.Where(d => d.StartsWith("thaw", StringComparison.Ordinal)));
    }

    /// <summary>What a killed agent left: thawed, and the host's thaw is told once that it was too early.</summary>
    [Fact]
    public void LeftoversAreThawed()
    {
        Assert.Equal(0, freezer.Freeze(s_long));
        Freezer next = new(world, world);
        next.ThawLeftovers();
        Assert.Equal((0, false), (world.FrozenCount, world.Marked));
        Assert.NotEqual(0, next.Thaw());
        Assert.Equal(0, next.Thaw());
    }

    [Fact]
    public void RequestsAreAnswered()
    {
        Hooks hooks = new("/nonexistent", s_long, world);
        Agent agent = new(freezer, hooks, s_long, world);
        using Script channel = new(agent, Operation.HotBackup, Operation.Freeze, Operation.Thaw, 77, Operation.Freeze);
        Assert.Equal(0, agent.Serve(channel));
        // The end came before the last answer, so that it is none of success.
        Assert.Equal([0, 0, 0, 0x80004005, 0x80004005], channel.Replies);
        AssertNothingIsLeft();
    }

    /// <summary>A channel that goes away, or does not take an answer, leaves nothing frozen.</summary>
    [Fact]
    public void ALostChannelThaws()
    {
        Agent agent = new(freezer, new Hooks("/nonexistent", s_long, world), s_long, world);
        using Script lost = new(null, Operation.Freeze, -InputOutput);
        Assert.Equal(-InputOutput, agent.Serve(lost));
        AssertNothingIsLeft();
        using Script late = new(null, Operation.Freeze) { ReplyError = -22 };
        Assert.Equal(-22, agent.Serve(late));
        AssertNothingIsLeft();
    }

    [Theory]
    [InlineData(0, false), InlineData(3, true)]
    public void AHookThatFailsKeepsTheFreezeFromHappening(int status, bool refused)
    {
        string folder = Directory.CreateTempSubdirectory("aerostat-hooks-").FullName;
        try
        {
            foreach ((string name, int result) in ((string, int)[])[("1", 0), ("2", status)])
            {
                string path = Path.Combine(folder, name);
                File.WriteAllText(path, $"#!/bin/sh\necho {name} $1 >> {folder}/log.txt\n[ $1 = thaw ] || exit {result}\n");
                File.SetUnixFileMode(path, UnixFileMode.UserRead | UnixFileMode.UserWrite | UnixFileMode.UserExecute);
            }
            Agent agent = new(freezer, new Hooks(folder, s_long, world), s_long, world);
            using Script channel = new(null, Operation.Freeze, Operation.Thaw, -InputOutput) { Replied = () => File.AppendAllText(Path.Combine(folder, "log.txt"), "answer\n") };
            agent.Serve(channel);
            Assert.Equal(refused ? 0x80004005u : 0u, channel.Replies[0]);
            Assert.Equal(refused ? 0 : 3, world.Done.Count(d => d.StartsWith("freeze", StringComparison.Ordinal)));
            // The host does not wait for what is brought back to work.
            Assert.Equal(refused ? ["1 freeze", "2 freeze", "2 thaw", "1 thaw", "answer", "answer"] : ["1 freeze", "2 freeze", "answer", "answer", "2 thaw", "1 thaw"], File.ReadAllLines(Path.Combine(folder, "log.txt")));
            AssertNothingIsLeft();
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
    }

    private void AssertNothingIsLeft() => Assert.Equal((0, 0, false, false), (world.FrozenCount, world.OpenCount, freezer.IsFrozen, world.Marked));

    /// <summary>Three file systems, and what was done to them.</summary>
    private sealed class World : IFileSystems, ILog
    {
        private static readonly string[] s_paths = ["/c", "/b", "/"];
        private readonly HashSet<string> _frozen = [];

        public List<string> Done { get; } = [];
        public List<string> Log { get; } = [];
        public Dictionary<string, int> Errors { get; } = [];
        public Dictionary<string, int> OpenErrors { get; } = [];
        public Dictionary<string, int> ThawErrors { get; } = [];
        public Dictionary<string, Action> During { get; } = [];
        public int OpenCount { get; private set; }
        public int Rehearsed { get; private set; }
        public bool Marked { get; private set; }

        public int FrozenCount
        {
            get
            {
                lock (_frozen)
                    return _frozen.Count;
            }
        }

        public IReadOnlyList<Freezable> List() => [.. s_paths.Select(p => new Freezable(p, "ext4", [p]))];

        public int Open(Freezable fileSystem)
        {
            if (OpenErrors.TryGetValue(fileSystem.Device, out int error))
                return -error;
            OpenCount++;
            return Array.IndexOf(s_paths, fileSystem.Device);
        }

        public int Freeze(int descriptor)
        {
            if (descriptor < 0)
            {
                Rehearsed++;
                return -9;
            }
            string path = s_paths[descriptor];
            if (Errors.TryGetValue(path, out int error))
                return -error;
            lock (_frozen)
            {
                _frozen.Add(path);
                Done.Add($"freeze {path}");
            }
            if (During.TryGetValue(path, out Action? action))
            {
                // As if the others were thawed while this one is not done yet.
                lock (_frozen)
                    _frozen.Remove(path);
                action();
                lock (_frozen)
                    _frozen.Add(path);
            }
            return 0;
        }

        public int Thaw(int descriptor)
        {
            if (descriptor < 0)
            {
                Rehearsed++;
                return -9;
            }
            string path = s_paths[descriptor];
            if (ThawErrors.TryGetValue(path, out int error))
                return -error;
            lock (_frozen)
            {
                if (!_frozen.Remove(path))
                    return -22;
                Done.Add($"thaw {path}");
            }
            return 0;
        }

        public void Close(int descriptor) => OpenCount--;

        public void Mark(bool frozen) => Marked = frozen;

        public void Write(LogLevel level, string text)
        {
            lock (Log)
                Log.Add(text);
        }
    }

    /// <summary>A host that asks for one thing after the other; with the last one comes the end of an agent.</summary>
    private sealed class Script(Agent? ending, params int[] operations) : IChannel
    {
        private int _next;

        public List<uint> Replies { get; } = [];

        public int ReplyError { get; init; }

        public Action? Replied { get; init; }

        public int Receive(int milliseconds)
        {
            if (_next + 1 == operations.Length)
                ending?.Stop();
            return _next < operations.Length ? operations[_next++] : 0;
        }

        public int Reply(uint status)
        {
            Replies.Add(status);
            Replied?.Invoke();
            return ReplyError;
        }

        public void Dispose()
        {
        }
    }
}
