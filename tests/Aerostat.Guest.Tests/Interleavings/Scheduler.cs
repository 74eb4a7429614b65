namespace Aerostat.Guest.Tests;

/// <summary>
/// Runs some actors one at a time, each on a thread of its own, and switches between them only where they say: so the order of all that happens is decided here.
/// Without deviations an actor goes on until it waits; a deviation is a switch at one of the places where nobody would have.
/// </summary>
/// <param name="deviations">At which place, counted from 0, which of the other choices is taken, counted from 1.</param>
/// <param name="absent">Which actor does nothing from which place to which, as long as another one can go on; the actors are numbered as they were added.</param>
internal sealed class Scheduler(IReadOnlyDictionary<int, int> deviations, (int Actor, int From, int To)? absent = null)
{
    // An actor that polls for something lets the others on after so many places.
    private const int MostInARow = 40, MostPlaces = 50_000;
    private static readonly TimeSpan s_limit = TimeSpan.FromMinutes(1);

    private readonly List<Actor> actors = [];
    private readonly SemaphoreSlim over = new(0);
    private Actor? current;
    private int inARow;
    private bool ending;

    private sealed class Actor(string name, Action body, Func<bool>? ready)
    {
        public string Name => name;

        public Action Body => body;

        /// <summary>Its end is waited for; the others only serve.</summary>
        public bool Counts => ready is null;

        public bool IsReady => !Done && (ready is null || Inside || ready());

        /// <summary>In the middle of something.</summary>
        public bool Inside { get; set; }

        public bool Done { get; set; }

        public SemaphoreSlim Go { get; } = new(0);
    }

    // What ends an actor when the run is over.
    private sealed class OverException : Exception;

    /// <summary>How many choices there were at each place.</summary>
    public List<int> Choices { get; } = [];

    /// <summary>What went wrong first, or null.</summary>
    public Exception? Failure { get; private set; }

    /// <summary>Called whenever another actor is about to go on.</summary>
    public Action? Check { get; set; }

    /// <summary>Somebody who has a beginning and an end.</summary>
    public void Add(string name, Action body) => actors.Add(new Actor(name, body, null));

    /// <summary>Somebody who does a piece of work whenever there is one.</summary>
    public void AddServer(string name, Func<bool> ready, Action serve) => actors.Add(new Actor(name, serve, ready));

    /// <summary>Runs until all that have an end have come to it, or something went wrong.</summary>
    public void Run()
    {
        List<Thread> threads = [.. actors.Select(actor => new Thread(() => Live(actor)) { Name = actor.Name, IsBackground = true })];
        threads.ForEach(thread => thread.Start());
        current = actors[0];
        current.Go.Release();
        if (!over.Wait(s_limit))
            Failure ??= new TimeoutException($"{current.Name} stands still");
        ending = true;
        actors.ForEach(actor => actor.Go.Release());
        threads.ForEach(thread => thread.Join(s_limit));
    }

    /// <summary>Somebody else may go on here.</summary>
    /// <param name="wait">There is nothing to do for now: somebody else does, unless nobody is ready.</param>
    public void Step(bool wait = false)
    {
        if (ending)
            throw new OverException();
        if (Choices.Count >= MostPlaces)
            throw new InvalidOperationException("the run does not end");
        Actor me = current!;
        int at = actors.IndexOf(me);
        List<Actor> choices = [.. Enumerable.Range(1, actors.Count - 1).Select(i => actors[(at + i) % actors.Count]).Where(a => a.IsReady)];
        bool leave = wait || inARow >= MostInARow;
        if (me.IsReady)
            choices.Insert(leave ? choices.Count : 0, me);
        if (absent is { } away && choices.Count > 1 && Choices.Count >= away.From && Choices.Count < away.To)
            choices.Remove(actors[away.Actor % actors.Count]);
        if (choices.Count == 0)
            throw new InvalidOperationException("nobody can go on");
        int place = Choices.Count;
        Choices.Add(choices.Count);
        Actor next = deviations.TryGetValue(place, out int choice) ? choices[choice % choices.Count] : choices[0];
        inARow = next == me ? inARow + 1 : 0;
        if (next == me)
            return;
        Check?.Invoke();
        current = next;
        next.Go.Release();
        me.Go.Wait();
        if (ending)
            throw new OverException();
    }

    private void Live(Actor me)
    {
        me.Go.Wait();
        try
        {
            while (!ending)
            {
                me.Inside = true;
                me.Body();
                me.Inside = false;
                if (me.Counts)
                {
                    me.Done = true;
                    if (actors.TrueForAll(a => a.Done || !a.Counts))
                    {
                        over.Release();
                        return;
                    }
                }
                Step(wait: true);
            }
        }
        catch (OverException)
        {
        }
        catch (Exception e)
        {
            Failure ??= e;
            over.Release();
        }
    }
}
