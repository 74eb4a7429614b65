using Aerostat.Machine;

namespace Aerostat.Control;

/// <summary>Arguments of <c>events</c>.</summary>
/// <param name="Since">Only events after this number.</param>
/// <param name="Follow">Send what happens from then on, until the client sends something or closes.</param>
public sealed record EventsArguments(long Since = 0, bool Follow = false);

/// <summary>The answer to <c>events</c>.</summary>
/// <param name="Events">What happened, oldest first.</param>
/// <param name="Last">Number of the latest event, for the next <paramref name="Events"/>' <c>since</c>.</param>
/// <param name="Dropped">How many events after <c>since</c> are no longer known.</param>
public sealed record EventsAnswer(IReadOnlyList<MachineEvent> Events, long Last, long Dropped);

/// <summary>A line that follows the answer.</summary>
/// <param name="Event">What happened.</param>
/// <param name="Dropped">Instead: how many events were not sent because the client was too slow.</param>
public sealed record EventLine(MachineEvent? Event, long? Dropped = null);

/// <summary><c>events</c>: what happened, and what happens.</summary>
internal sealed class EventsVerb : ControlVerb
{
    public override string Name => "events";

    public override Task<ControlAnswer> AnswerAsync(ControlRequest request, CancellationToken cancellation)
    {
        EventsArguments arguments = request.Read(ControlJson.Default.EventsArguments);
        if (arguments.Since < 0)
            throw new ControlException(ControlErrorKind.Usage, "events: 'since' is the number of an event, or 0");
        MachineJournal journal = request.Machine.Machine.Journal;
        IReadOnlyList<MachineEvent> events = journal.Read(arguments.Since);
        long last = events.Count > 0 ? events[^1].Sequence : Math.Min(arguments.Since, journal.Last);
        long dropped = events.Count > 0 ? events[0].Sequence - arguments.Since - 1 : 0;
        return Task.FromResult(ControlAnswer.Of(
            new EventsAnswer(events, last, dropped), ControlJson.Default.EventsAnswer,
            arguments.Follow ? (stream, over) => FollowAsync(journal, last, stream, over) : null));
    }

    // The journal is the queue: a client that is slower than it is wide misses events, and is told how many.
    private static async Task FollowAsync(MachineJournal journal, long last, IControlStream stream, CancellationToken over)
    {
        bool goesOn = true;
        while (goesOn)
        {
            try
            {
                await journal.WaitAsync(last, over).ConfigureAwait(false);
            }
            catch (OperationCanceledException)
            {
                // What happened last is still said.
                goesOn = false;
            }
            foreach (MachineEvent one in journal.Read(last))
            {
                if (one.Sequence > last + 1)
                    await stream.WriteAsync(new EventLine(null, one.Sequence - last - 1), ControlJson.Default.EventLine).ConfigureAwait(false);
                await stream.WriteAsync(new EventLine(one), ControlJson.Default.EventLine).ConfigureAwait(false);
                last = one.Sequence;
            }
        }
    }
}
