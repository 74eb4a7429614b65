using System.Numerics;

namespace Aerostat.Chipset;

/// <summary>256 bits that any thread may set and clear: IRR, ISR or TMR of a local APIC.</summary>
internal sealed class Bits256
{
    private readonly ulong[] _words = new ulong[4];

    /// <summary>Sets a bit with a full fence; true if it was clear.</summary>
    public bool Set(int bit) => (Interlocked.Or(ref _words[bit >> 6], 1UL << bit) & 1UL << bit) == 0;

    /// <summary>Clears a bit with a full fence.</summary>
    public void Clear(int bit) => Interlocked.And(ref _words[bit >> 6], ~(1UL << bit));

    /// <summary>Sets a bit of a set that only one thread writes.</summary>
    public void SetOwned(int bit) => _words[bit >> 6] |= 1UL << bit;

    /// <summary>Clears a bit of a set that only one thread writes.</summary>
    public void ClearOwned(int bit) => _words[bit >> 6] &= ~(1UL << bit);

    /// <summary>Reads a bit.</summary>
    public bool this[int bit] => (Volatile.Read(ref _words[bit >> 6]) & 1UL << bit) != 0;

    /// <summary>Whether a bit is set and no other.</summary>
    public bool HoldsOnly(int bit)
    {
        for (int i = 0; i < 4; i++)
        {
            if (Volatile.Read(ref _words[i]) != (i == bit >> 6 ? 1UL << bit : 0))
                return false;
        }
        return true;
    }

    /// <summary>The highest set bit, or -1.</summary>
    public int Highest
    {
        get
        {
            for (int i = 3; i >= 0; i--)
            {
                ulong word = Volatile.Read(ref _words[i]);
                if (word != 0)
                    return i * 64 + 63 - BitOperations.LeadingZeroCount(word);
            }
            return -1;
        }
    }

    /// <summary>One of the eight 32-bit registers that show the set.</summary>
    public uint Register(int index) => (uint)(Volatile.Read(ref _words[index >> 1]) >> (32 * (index & 1)));

    /// <summary>Clears everything.</summary>
    public void Clear()
    {
        for (int i = 0; i < 4; i++)
            Interlocked.Exchange(ref _words[i], 0);
    }

    /// <summary>A copy of the four words.</summary>
    public ulong[] ToArray() => [.. _words];

    /// <summary>Replaces everything; missing words are zero.</summary>
    public void Load(ulong[]? words)
    {
        for (int i = 0; i < 4; i++)
            Interlocked.Exchange(ref _words[i], words is not null && i < words.Length ? words[i] : 0);
    }
}
