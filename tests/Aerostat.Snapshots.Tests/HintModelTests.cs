using System.Reflection;
using Aerostat.Virtio;
using Xunit;

namespace Aerostat.Snapshots.Tests;

/// <summary>
/// Free page hints, a driver, programs and two snapshots as a small model, whose every order of events is tried: after each pause what a restored guest
/// would read is compared, byte by byte, with what it has written. The state machine and the bookkeeping are the product's own
/// (<see cref="HintProtocol"/>, <see cref="PassPages"/>). The same exploration finds what is wrong with every one of a list of broken ways.
/// </summary>
public sealed class HintModelTests
{
    /// <summary>What the guest's kernel does to pages as they change hands.</summary>
    public enum Guest
    {
        Plain,
        InitOnAlloc,
        InitOnFree,
        Poison,
    }

    /// <summary>A way to do it wrong.</summary>
    public enum Fault
    {
        None,
        /// <summary>A hint counts though the page has been written since.</summary>
        WritesDoNotCount,
        /// <summary>A hint takes the page out of the log.</summary>
        HintClearsLog,
        /// <summary>Only writes since the last look count against a hint.</summary>
        LooksForget,
        /// <summary>The id is published before writes are logged.</summary>
        LogComesLate,
        /// <summary>Hints count whatever run they belong to.</summary>
        AnyHint,
        /// <summary>The host drops a page when it is named.</summary>
        DropAtOnce,
        /// <summary>The log is not looked at in the pause.</summary>
        NoLastLook,
        /// <summary>Pages are copied, then the log is looked at.</summary>
        CopyThenLook,
        /// <summary>The second run has the first one's id.</summary>
        SameId,
    }

    /// <summary>What the guest does to pages, and how much may happen: moves of programs, pages named, resets of the device, snapshots.</summary>
    public static TheoryData<Guest, int, int, int, int> Explorations { get; } = Bounds();

    private static TheoryData<Guest, int, int, int, int> Bounds()
    {
        TheoryData<Guest, int, int, int, int> all = [];
        foreach (Guest guest in Enum.GetValues<Guest>())
        {
            all.Add(guest, guest == Guest.Plain ? 3 : 2, 2, 0, 1);
            all.Add(guest, 2, 1, 1, 1);
            all.Add(guest, guest == Guest.Plain ? 2 : 1, 1, 0, 2);
        }
        return all;
    }

    [Theory]
    [MemberData(nameof(Explorations))]
    public void NoWriteIsEverLost(Guest guest, int moves, int named, int resets, int passes)
    {
        Exploration all = new(guest, Fault.None, moves, named, resets, passes);
        all.Run();
        TestContext.Current.TestOutputHelper?.WriteLine($"{all.States} states, {all.Pauses} pauses, {all.Skipped} bytes skipped");
        Assert.Null(all.Violation);
        // That this is not for want of anything happening.
        Assert.InRange(all.States, 5_000, int.MaxValue);
        Assert.True(all.Pauses > 100, $"{all.Pauses} pauses");
        // The others have zeros in all pages they name.
        Assert.Equal(guest is Guest.Plain or Guest.Poison, all.Skipped > 0);
    }

    [Theory]
    [InlineData(Fault.WritesDoNotCount)]
    [InlineData(Fault.HintClearsLog)]
    [InlineData(Fault.LooksForget)]
    [InlineData(Fault.LogComesLate)]
    [InlineData(Fault.AnyHint)]
    [InlineData(Fault.DropAtOnce)]
    [InlineData(Fault.NoLastLook)]
    [InlineData(Fault.CopyThenLook)]
    [InlineData(Fault.SameId)]
    public void EveryFaultLosesOne(Fault fault)
    {
        Exploration all = new(Guest.Plain, fault, 3, 1, 0, fault is Fault.AnyHint or Fault.SameId ? 2 : 1);
        all.Run();
        TestContext.Current.TestOutputHelper?.WriteLine($"found after {all.States} states: {all.Violation}");
        Assert.True(all.Violation is not null, $"nothing was found in {all.States} states");
    }

    private enum Owner : byte
    {
        Program,
        Free,
        Driver,
    }

    private enum Host : byte
    {
        Arm,
        Publish,
        Ask,
        Look,
        Copy,
        Pause,
        Over,
    }

    private sealed class State
    {
        public const int Pages = 2, Bytes = 2;

        public byte[] Contents = new byte[Pages * Bytes], Saved = new byte[Pages * Bytes];
        public bool[] Cares = new bool[Pages * Bytes];
        public Owner[] Owners = new Owner[Pages];
        // Bit masks of pages: the log, and what PassPages knows.
        public ulong Log, ToDo, Written, Hinted, SkippedPages;
        public bool Logging, Asked;
        public List<int> Ring = [];
        public int Seen, Active, Values = 2, Moves, Named, Resets, Copying = -1, Passes, Looks;
        public bool Running;
        public Host Step;
        public HintProtocol Protocol = new();

        public State Clone() => new()
        {
            Contents = [.. Contents],
            Saved = [.. Saved],
            Cares = [.. Cares],
            Owners = [.. Owners],
            Log = Log,
            ToDo = ToDo,
            Written = Written,
            Hinted = Hinted,
            SkippedPages = SkippedPages,
            Logging = Logging,
            Asked = Asked,
            Ring = [.. Ring],
            Seen = Seen,
            Active = Active,
            Values = Values,
            Moves = Moves,
            Named = Named,
            Resets = Resets,
            Copying = Copying,
            Passes = Passes,
            Looks = Looks,
            Running = Running,
            Step = Step,
            Protocol = (HintProtocol)s_clone.Invoke(Protocol, null)!,
        };

        /// <summary>All of it in 128 bits.</summary>
        public UInt128 Key()
        {
            UInt128 key = 0;
            void Put(ulong value, int bits)
            {
                if (value >> bits != 0)
                    throw new InvalidOperationException($"{value} does not fit into {bits} bits");
                key = key << bits | value;
            }
            for (int i = 0; i < Contents.Length; i++)
            {
                Put(Contents[i], 4);
                Put(Saved[i], 4);
                Put(Cares[i] ? 1UL : 0, 1);
            }
            foreach (Owner owner in Owners)
                Put((ulong)owner, 2);
            foreach (ulong mask in (ReadOnlySpan<ulong>)[Log, ToDo, Written, Hinted, SkippedPages])
                Put(mask, Pages);
            foreach (bool flag in (ReadOnlySpan<bool>)[Logging, Asked, Running, Protocol.TakesHints, Requested()])
                Put(flag ? 1UL : 0, 1);
            foreach (int number in (ReadOnlySpan<int>)[Seen, Active, Moves, Looks, Copying + 1, (int)Step, (int)Protocol.CommandId, (int)Protocol.LastCommandId])
                Put((ulong)number, 3);
            Put((ulong)Values, 4);
            foreach (int number in (ReadOnlySpan<int>)[Named, Resets, Passes])
                Put((ulong)number, 2);
            // Stop, hints and starts, behind a mark.
            ulong ring = 1;
            foreach (int what in Ring)
                ring = ring << 3 | (what < 0 ? 0UL : what >= 100 ? 1UL + (ulong)(what - 100) : 2UL + (ulong)what);
            Put(ring, 30);
            return key;
        }

        // Whether a start command would be taken.
        private bool Requested() => ((HintProtocol)s_clone.Invoke(Protocol, null)!).Take(Protocol.CommandId, null) == HintCommand.Started;

        private static readonly MethodInfo s_clone = typeof(object).GetMethod("MemberwiseClone", BindingFlags.Instance | BindingFlags.NonPublic)!;
    }

    private sealed class Exploration(Guest guest, Fault fault, int mostMoves, int mostNamed, int mostResets, int passes)
    {
        private const int MostLooks = 2, StopCommand = -1, HintBase = 100;
        private const byte Garbage = 1, PoisonByte = 9;

        private readonly HashSet<UInt128> seen = [];
        private readonly Stack<State> open = new();

        public string? Violation { get; private set; }

        public int States => seen.Count;

        public int Pauses { get; private set; }

        public int Skipped { get; private set; }

        public void Run()
        {
            State first = new();
            first.Owners[1] = Owner.Free;
            byte free = guest switch { Guest.InitOnFree => 0, Guest.Poison => PoisonByte, _ => Garbage };
            for (int i = 0; i < first.Contents.Length; i++)
            {
                bool used = first.Owners[i / State.Bytes] == Owner.Program;
                first.Contents[i] = used ? Garbage : free;
                first.Cares[i] = used || guest is Guest.InitOnFree or Guest.Poison;
            }
            Add(first);
            while (Violation is null && open.TryPop(out State? state))
                Expand(state);
        }

        private void Add(State state)
        {
            if (seen.Add(state.Key()))
                open.Push(state);
        }

        private void Try(State from, Action<State> move)
        {
            State to = from.Clone();
            move(to);
            Add(to);
        }

        private void Expand(State s)
        {
            ExpandHost(s);
            if (s.Step == Host.Over)
                return;
            if (s.Ring.Count > 0)
                Try(s, Take);
            ExpandDriver(s);
            if (s.Moves >= mostMoves)
                return;
            for (int p = 0; p < State.Pages; p++)
            {
                int page = p;
                switch (s.Owners[p])
                {
                    case Owner.Program:
                        for (int b = 0; b < State.Bytes; b++)
                        {
                            int at = (page * State.Bytes) + b;
                            Try(s, t =>
                            {
                                t.Moves++;
                                Store(t, at, (byte)t.Values++);
                                t.Cares[at] = true;
                            });
                        }
                        Try(s, t =>
                        {
                            t.Moves++;
                            Release(t, page);
                        });
                        break;
                    case Owner.Free:
                        Try(s, t =>
                        {
                            t.Moves++;
                            t.Owners[page] = Owner.Program;
                            Allocate(t, page, cares: guest is Guest.InitOnAlloc or Guest.InitOnFree or Guest.Poison);
                        });
                        break;
                    case Owner.Driver:
                        // The shrinker.
                        Try(s, t =>
                        {
                            t.Moves++;
                            Release(t, page);
                        });
                        break;
                }
            }
        }

        private static void Store(State t, int at, byte value)
        {
            t.Contents[at] = value;
            if (t.Logging)
                t.Log |= 1UL << (at / State.Bytes);
        }

        private void Allocate(State t, int page, bool cares)
        {
            for (int b = 0; b < State.Bytes; b++)
            {
                int at = (page * State.Bytes) + b;
                if (guest == Guest.InitOnAlloc)
                    Store(t, at, 0);
                t.Cares[at] = cares;
            }
        }

        private void Release(State t, int page)
        {
            t.Owners[page] = Owner.Free;
            for (int b = 0; b < State.Bytes; b++)
            {
                int at = (page * State.Bytes) + b;
                if (guest is Guest.InitOnFree or Guest.Poison)
                    Store(t, at, guest == Guest.Poison ? PoisonByte : (byte)0);
                // Who takes the page next relies on what was put there.
                t.Cares[at] = guest is Guest.InitOnFree or Guest.Poison;
            }
        }

        // Linux' virtio_balloon: what it reads of the configuration it may act on much later.
        private void ExpandDriver(State s)
        {
            if (s.Seen != (int)s.Protocol.CommandId)
                Try(s, t => t.Seen = (int)t.Protocol.CommandId);
            if (!s.Running && s.Seen >= (int)HintProtocol.First && s.Seen != s.Active)
                Try(s, t =>
                {
                    (t.Active, t.Running) = (t.Seen, true);
                    t.Ring.Add(t.Active);
                });
            if (!s.Running && s.Seen == (int)HintProtocol.Done && s.Owners.Contains(Owner.Driver))
                Try(s, t =>
                {
                    for (int page = 0; page < State.Pages; page++)
                        if (t.Owners[page] == Owner.Driver)
                            Release(t, page);
                });
            if (s.Running)
            {
                Try(s, t =>
                {
                    t.Running = false;
                    t.Ring.Add(StopCommand);
                });
                for (int p = 0; p < State.Pages; p++)
                {
                    int page = p;
                    if (s.Owners[p] == Owner.Free && s.Named < mostNamed)
                        Try(s, t =>
                        {
                            t.Named++;
                            t.Owners[page] = Owner.Driver;
                            Allocate(t, page, cares: false);
                            t.Ring.Add(HintBase + page);
                        });
                }
            }
            if (s.Resets < mostResets && s.Ring.Count > 0)
                Try(s, t =>
                {
                    t.Resets++;
                    t.Ring.Clear();
                    (t.Running, t.Seen, t.Active) = (false, 0, 0);
                    t.Protocol.Reset();
                    t.Asked = false;
                    On(t, pass => pass.DropHints());
                    for (int page = 0; page < State.Pages; page++)
                        if (t.Owners[page] == Owner.Driver)
                            Release(t, page);
                });
        }

        // The device takes the next buffer.
        private void Take(State t)
        {
            int what = t.Ring[0];
            t.Ring.RemoveAt(0);
            if (what < HintBase)
            {
                if (t.Protocol.Take(what == StopCommand ? HintProtocol.Stop : (uint)what, null) == HintCommand.Finished)
                    t.Asked = false;
                return;
            }
            if (fault != Fault.AnyHint && (!t.Protocol.TakesHints || !t.Asked))
                return;
            int page = what - HintBase;
            if (fault == Fault.HintClearsLog)
                t.Log &= ~(1UL << page);
            if (fault == Fault.DropAtOnce)
                t.Contents.AsSpan(page * State.Bytes, State.Bytes).Clear();
            On(t, pass => pass.Hint((ulong)page, 1));
        }

        private void ExpandHost(State s)
        {
            switch (s.Step)
            {
                case Host.Arm:
                    Try(s, t =>
                    {
                        if (fault == Fault.LogComesLate)
                            Publish(t);
                        else
                            Arm(t);
                        t.Step = Host.Publish;
                    });
                    break;
                case Host.Publish:
                    Try(s, t =>
                    {
                        if (fault == Fault.LogComesLate)
                            Arm(t);
                        else
                            Publish(t);
                        t.Step = Host.Ask;
                    });
                    break;
                case Host.Ask:
                    // It is over, or takes too long.
                    Try(s, t =>
                    {
                        if (t.Asked)
                            t.Protocol.End(HintProtocol.Stop);
                        t.Asked = false;
                        t.Step = fault == Fault.CopyThenLook ? Host.Copy : Host.Look;
                    });
                    // The algorithm does without: hints may go on to be taken up to the pause.
                    Try(s, t => t.Step = fault == Fault.CopyThenLook ? Host.Copy : Host.Look);
                    break;
                case Host.Look:
                    Try(s, t =>
                    {
                        Look(t);
                        t.Looks++;
                        t.Step = fault == Fault.CopyThenLook ? Host.Pause : Host.Copy;
                        if (fault == Fault.CopyThenLook)
                            t.ToDo = 0;
                    });
                    break;
                case Host.Copy:
                    Try(s, CopyByte);
                    if (s.Copying < 0 && s.Looks < MostLooks)
                        Try(s, t => t.Step = Host.Look);
                    break;
                case Host.Pause:
                    Try(s, Pause);
                    break;
                default:
                    return;
            }
        }

        private static void Arm(State t)
        {
            t.Logging = true;
            t.Log = 0;
            PassPages pass = new(State.Pages);
            pass.Begin([], all: true);
            Read(t, pass);
            Array.Clear(t.Saved);
            (t.SkippedPages, t.Copying, t.Looks) = (0, -1, 0);
        }

        private void Publish(State t)
        {
            if (fault == Fault.SameId && t.Passes > 0)
                t.Protocol.Restore(HintProtocol.First - 1, negotiated: true);
            t.Protocol.Start();
            t.Asked = true;
        }

        private void Look(State t)
        {
            ulong fresh = t.Log;
            t.Log = 0;
            if (fault == Fault.LooksForget)
                t.Written = 0;
            On(t, pass => pass.Wrote([fresh]));
        }

        // A page that is on the list, a byte at a time: the guest writes in between.
        private void CopyByte(State t)
        {
            if (t.Copying < 0)
            {
                ulong page = 0;
                PassPages pass = Make(t);
                if (!pass.TryTake(ref page, out ulong _))
                {
                    t.Step = fault == Fault.CopyThenLook ? Host.Look : Host.Pause;
                    return;
                }
                // TryTake may take several; only the first is copied now.
                t.ToDo &= ~(1UL << (int)page);
                if (IsDisowned(t, (int)page))
                {
                    t.SkippedPages |= 1UL << (int)page;
                    t.Saved.AsSpan((int)page * State.Bytes, State.Bytes).Clear();
                    return;
                }
                t.SkippedPages &= ~(1UL << (int)page);
                t.Copying = (int)page * State.Bytes;
            }
            t.Saved[t.Copying] = t.Contents[t.Copying];
            t.Copying = (t.Copying + 1) % State.Bytes == 0 ? -1 : t.Copying + 1;
        }

        private void Pause(State t)
        {
            if (fault != Fault.NoLastLook)
            {
                Look(t);
                while (t.Copying >= 0 || t.ToDo != 0)
                    CopyByte(t);
            }
            Pauses++;
            for (int at = 0; at < t.Contents.Length; at++)
            {
                bool skipped = (t.SkippedPages >> (at / State.Bytes) & 1) != 0;
                if (skipped && t.Contents[at] != 0)
                    Skipped++;
                if (t.Cares[at] && t.Saved[at] != t.Contents[at])
                    Violation ??= $"byte {at} is {t.Contents[at]} and was saved as {t.Saved[at]}{(skipped ? " (skipped)" : "")}";
            }
            t.Protocol.End(HintProtocol.Done);
            t.Asked = false;
            t.Passes++;
            // The log goes on from one snapshot to the next, but its bits are this one's.
            t.Step = t.Passes == passes ? Host.Over : Host.Arm;
        }

        private bool IsDisowned(State t, int page) =>
            fault == Fault.WritesDoNotCount ? (t.Hinted >> page & 1) != 0 : Make(t).IsDisowned((ulong)page);

        // The product's bookkeeping, made anew of what is known of it, and read back.
        private static PassPages Make(State t)
        {
            PassPages pass = new(State.Pages);
            pass.Wrote([t.Written]);
            pass.Begin([t.ToDo], all: false);
            for (int page = 0; page < State.Pages; page++)
                if ((t.Hinted >> page & 1) != 0)
                    pass.Hint((ulong)page, 1);
            return pass;
        }

        private void On(State t, Action<PassPages> what)
        {
            ulong before = t.Hinted;
            PassPages pass = Make(t);
            what(pass);
            Read(t, pass);
            if (fault == Fault.WritesDoNotCount)
                t.Hinted |= before;
        }

        private static void Read(State t, PassPages pass)
        {
            t.ToDo = pass.ToDo[0];
            (t.Hinted, t.Written) = (0, 0);
            for (int page = 0; page < State.Pages; page++)
                if (pass.IsDisowned((ulong)page))
                    t.Hinted |= 1UL << page;
            pass.Hint(0, State.Pages);
            for (int page = 0; page < State.Pages; page++)
                if (!pass.IsDisowned((ulong)page))
                    t.Written |= 1UL << page;
        }
    }
}
