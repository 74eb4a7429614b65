using System.Numerics;

namespace Aerostat.Memory;

/// <summary>
/// A set of page frame numbers below a bound, as balloons keep of what guests have given: a bit for each, made when the first comes. Runs are set and asked
/// about by words. One thread at a time.
/// </summary>
/// <param name="frames">The bound.</param>
public sealed class FrameSet(ulong frames)
{
    private ulong[]? _bits;

    /// <summary>How many there are.</summary>
    public ulong Count { get; private set; }

    /// <summary>How many of a run are members. The run is below the bound.</summary>
    public ulong CountIn(ulong first, ulong count)
    {
        ulong sum = 0;
        for (ulong at = first, stop = first + count; at < stop && _bits is not null;)
        {
            (ulong mask, ulong next) = Word(at, stop);
            sum += (ulong)BitOperations.PopCount(_bits[at >> 6] & mask);
            at = next;
        }
        return sum;
    }

    /// <summary>Makes all of a run members, or none. The run is below the bound.</summary>
    public void Set(ulong first, ulong count, bool member)
    {
        if (_bits is null && !member)
            return;
        _bits ??= new ulong[(frames + 63) / 64];
        long change = 0;
        for (ulong at = first, stop = first + count; at < stop;)
        {
            (ulong mask, ulong next) = Word(at, stop);
            ref ulong word = ref _bits[at >> 6];
            ulong changed = member ? word | mask : word & ~mask;
            change += BitOperations.PopCount(changed) - BitOperations.PopCount(word);
            word = changed;
            at = next;
        }
        Count += (ulong)change;
    }

    /// <summary>Empties the set.</summary>
    public void Clear()
    {
        _bits = null;
        Count = 0;
    }

    /// <summary>The first run of members at or after a frame; false: there is none.</summary>
    /// <param name="from">Where to look.</param>
    /// <param name="most">The most frames of interest: a longer run is cut.</param>
    /// <param name="first">Its first frame.</param>
    /// <param name="count">Its frames.</param>
    public bool TryFindRun(ulong from, ulong most, out ulong first, out ulong count)
    {
        first = count = 0;
        if (_bits is null || Count == 0)
            return false;
        for (ulong at = from; at < frames;)
        {
            ulong word = _bits[at >> 6] >> (int)(at & 63);
            if (word != 0)
            {
                first = at + (ulong)BitOperations.TrailingZeroCount(word);
                for (at = first; at < frames && count < most;)
                {
                    ulong rest = ~(_bits[at >> 6] >> (int)(at & 63));
                    ulong here = Math.Min((ulong)BitOperations.TrailingZeroCount(rest), 64 - (at & 63));
                    count += here;
                    at += here;
                    if (here == 0 || (at & 63) != 0)
                        break;
                }
                count = Math.Min(count, most);
                return true;
            }
            at = (at | 63) + 1;
        }
        return false;
    }

    /// <summary>First frame and number of frames of each run, one behind the other.</summary>
    public ulong[] ToRuns()
    {
        List<ulong> runs = [];
        for (int i = 0; _bits is not null && i < _bits.Length; i++)
        {
            ulong first = (ulong)i << 6;
            for (ulong word = _bits[i], at = 0; word >> (int)at != 0;)
            {
                at += (ulong)BitOperations.TrailingZeroCount(word >> (int)at);
                ulong length = (ulong)BitOperations.TrailingZeroCount(~(word >> (int)at));
                length = Math.Min(length, 64 - at);
                if (runs.Count > 0 && runs[^2] + runs[^1] == first + at)
                    runs[^1] += length;
                else
                    runs.AddRange([first + at, length]);
                at += length;
                if (at == 64)
                    break;
            }
        }
        return [.. runs];
    }

    /// <summary>Replaces the contents. What is not below the bound is left out.</summary>
    public void FromRuns(ReadOnlySpan<ulong> runs)
    {
        Clear();
        for (int i = 0; i + 1 < runs.Length; i += 2)
        {
            ulong first = Math.Min(runs[i], frames);
            Set(first, Math.Min(runs[i + 1], frames - first), member: true);
        }
    }

    private static (ulong Mask, ulong Next) Word(ulong at, ulong stop)
    {
        ulong next = Math.Min((at | 63) + 1, stop);
        return (ulong.MaxValue >> (int)(64 - (next - at)) << (int)(at & 63), next);
    }
}
