using System.Globalization;

namespace Aerostat.Guest.Tests;

/// <summary>
/// Tries orders of events: the one without deviations, each with one (all of them), those in which one actor stands still for a while, and a number of those with
/// several deviations, which a seed picks. A run is made anew for
/// each order, for neither devices nor drivers can be copied in the middle.
/// </summary>
/// <remarks>Tests/Aerostat.Snapshots.Tests' HintModelTests explores a model whose states can be copied and compared, so it has all orders; here the product itself runs.</remarks>
internal sealed class Exploration
{
    private const int MostDeviations = 6, Actors = 3, AbsentEvery = 10, AbsentFor = 150, AbsentForLong = 500;

    /// <summary>Orders that were tried.</summary>
    public int Runs { get; private set; }

    /// <summary>Places in the order without deviations.</summary>
    public int Places { get; private set; }

    /// <summary>What went wrong first, and in which order; or null.</summary>
    public string? Violation { get; private set; }

    /// <summary>Explores.</summary>
    /// <param name="world">Makes what happens: adds actors to a scheduler, and returns what is to be disposed of afterwards.</param>
    /// <param name="tail">How many orders with several deviations.</param>
    /// <param name="seed">Picks those.</param>
    public static Exploration Of(Func<Scheduler, IDisposable> world, int tail, int seed)
    {
        Exploration all = new();
        List<int> choices = all.Try(world, new Dictionary<int, int>());
        all.Places = choices.Count;
        for (int place = 0; place < choices.Count; place++)
            for (int choice = 1; choice < choices[place]; choice++)
                all.Try(world, new Dictionary<int, int> { [place] = choice });
        // The last one is a device, which may stand still in the middle of anything.
        for (int place = 0; place < choices.Count; place++)
            for (int actor = 0; actor < Actors; actor++)
                if (place % (actor == Actors - 1 ? 2 : AbsentEvery) == 0)
                    all.Try(world, new Dictionary<int, int>(), (actor, place, place + (place / AbsentEvery % 2 == 0 ? AbsentFor : AbsentForLong)));
        Random random = new(seed);
        for (int i = 0; i < tail && choices.Count > 0; i++)
        {
            Dictionary<int, int> deviations = [];
            for (int n = random.Next(2, MostDeviations + 1); n > 0; n--)
                deviations[random.Next(choices.Count)] = random.Next(1, 3);
            int from = random.Next(choices.Count);
            all.Try(world, deviations, random.Next(2) == 0 ? null : (random.Next(Actors), from, from + random.Next(AbsentForLong)));
        }
        return all;
    }

    private List<int> Try(Func<Scheduler, IDisposable> world, IReadOnlyDictionary<int, int> deviations, (int Actor, int From, int To)? absent = null)
    {
        if (Violation is not null)
            return [];
        Runs++;
        Scheduler scheduler = new(deviations, absent);
        using (world(scheduler))
            scheduler.Run();
        if (scheduler.Failure is { } failure)
            Violation = $"order {{{string.Join(", ", deviations.OrderBy(d => d.Key).Select(d => string.Create(CultureInfo.InvariantCulture, $"[{d.Key}] = {d.Value}")))}}}{(absent is null ? "" : $", absent {absent}")}: {failure}";
        return scheduler.Choices;
    }
}
