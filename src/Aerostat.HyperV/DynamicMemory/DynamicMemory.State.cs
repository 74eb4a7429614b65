using System.Text.Json;
using Aerostat.State;

namespace Aerostat.HyperV;

/// <content>Dynamic memory at rest, also in the middle of a request: the answer to it is still to come.</content>
public sealed partial class DynamicMemory
{
    /// <inheritdoc/>
    protected internal override string? Save()
    {
        lock (gate)
        {
            return JsonSerializer.Serialize(
                new DynamicMemorySavedState
                {
                    Version = version,
                    Number = number,
                    Ready = ready,
                    CanBalloon = canBalloon,
                    CanAdd = canAdd,
                    AddRefused = addRefused,
                    AddShift = addShift,
                    Target = target,
                    Request = (int)request,
                    Asked = asked,
                    Got = got,
                    SpareNext = spareNext,
                    Added = added,
                    Given = given.ToRuns(),
                },
                HyperVStates.Default.DynamicMemorySavedState);
        }
    }

    /// <inheritdoc/>
    /// <exception cref="FormatException">The state makes no sense.</exception>
    protected internal override void Restore(string? saved)
    {
        DynamicMemorySavedState? state;
        try
        {
            state = JsonSerializer.Deserialize(saved ?? "", HyperVStates.Default.DynamicMemorySavedState);
        }
        catch (JsonException e)
        {
            throw new FormatException($"the state of {Name} makes no sense: {e.Message}");
        }
        if (state is null || !Enum.IsDefined((Request)state.Request) || state.AddShift is < 0 or > 23 || state.Got > state.Asked || state.Asked > 1UL << 24
            || state.SpareNext < spareFirst || state.SpareNext > spareEnd || state.Added > state.SpareNext - spareFirst)
            throw new FormatException($"the state of {Name} makes no sense");
        lock (gate)
        {
            version = state.Version;
            number = state.Number;
            ready = state.Ready;
            canBalloon = state.CanBalloon;
            canAdd = state.CanAdd;
            addRefused = state.AddRefused;
            addShift = state.AddShift;
            target = Math.Min(state.Target, memory.TotalBytes >> PageShift);
            request = (Request)state.Request;
            asked = state.Asked;
            got = state.Got;
            spareNext = state.SpareNext;
            added = state.Added;
            given.FromRuns(state.Given);
            for (int i = 0; i + 1 < state.Given.Length; i += 2)
                _ = TakeAway(state.Given[i], state.Given[i + 1]);
            held.Clear();
            statusAt = null;
            progressAt = clock.GetTimestamp();
        }
    }
}

/// <summary>Dynamic memory at rest.</summary>
[SavedState("hyperv-dynamic-memory", 1)]
public sealed record DynamicMemorySavedState
{
    /// <summary>Version agreed on.</summary>
    public uint Version { get; init; }
    /// <summary>Number of the last request.</summary>
    public uint Number { get; init; }
    /// <summary>The guest has said what it can.</summary>
    public bool Ready { get; init; }
    /// <summary>It gives pages.</summary>
    public bool CanBalloon { get; init; }
    /// <summary>It takes more memory.</summary>
    public bool CanAdd { get; init; }
    /// <summary>It has said that it never will.</summary>
    public bool AddRefused { get; init; }
    /// <summary>Base-two logarithm of the pages that it wants at a time.</summary>
    public int AddShift { get; init; }
    /// <summary>Pages that the host wants.</summary>
    public ulong Target { get; init; }
    /// <summary>What the guest is at: 0 nothing, 1 giving pages, 2 taking them back, 3 adding memory.</summary>
    public int Request { get; init; }
    /// <summary>Pages of that.</summary>
    public ulong Asked { get; init; }
    /// <summary>Those that have come.</summary>
    public ulong Got { get; init; }
    /// <summary>First page of the spare memory that has not been offered.</summary>
    public ulong SpareNext { get; init; }
    /// <summary>Pages of it that the guest has.</summary>
    public ulong Added { get; init; }
    /// <summary>Pages that were given: first and number of each run.</summary>
    public ulong[] Given { get; init; } = [];
}
