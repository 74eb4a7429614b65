using System.Numerics;

namespace Aerostat.Interrupts;

/// <summary>
/// The interrupts of a vCPU that has no interrupt controller: 256 pending bits with a summary of the words that are not empty. For machines
/// made from the library that need no more than "interrupt N is to come".
/// </summary>
/// <remarks>
/// <see cref="Raise"/> sets a bit and asserts the processor's INTR wire. The processor calls <see cref="Acknowledge"/>, by way of the exit
/// handler, at the moment it can deliver: interrupts are on and no STI or MOV SS shadow holds. Until then it waits for that moment by itself
/// (a KVM processor by an interrupt-window exit). The lowest vector goes first. Any thread may call any member.
/// </remarks>
/// <param name="pins">The processor's inputs.</param>
public sealed class PendingInterrupts(IProcessorPins pins)
{
    /// <summary>Vectors there are.</summary>
    public const int Vectors = 256;

    private const int BitsPerWord = 64;

    private readonly Lock gate = new();
    private readonly ulong[] pending = new ulong[Vectors / BitsPerWord];
    // Bit n: word n is not empty.
    private uint summary;

    /// <summary>Whether any interrupt is pending.</summary>
    public bool Any => Volatile.Read(ref summary) != 0;

    /// <summary>Makes an interrupt pending. One that is pending already stays one.</summary>
    /// <exception cref="ArgumentOutOfRangeException">Not 0..255; nothing has changed.</exception>
    public void Raise(int vector)
    {
        Check(vector);
        lock (gate)
        {
            pending[vector / BitsPerWord] |= 1UL << (vector % BitsPerWord);
            summary |= 1u << (vector / BitsPerWord);
        }
        pins.SetInterruptRequest(true);
    }

    /// <summary>Whether one interrupt is pending.</summary>
    /// <exception cref="ArgumentOutOfRangeException">Not 0..255.</exception>
    public bool IsPending(int vector)
    {
        Check(vector);
        lock (gate)
            return (pending[vector / BitsPerWord] >> (vector % BitsPerWord) & 1) != 0;
    }

    /// <summary>
    /// The acknowledge cycle: takes the lowest pending vector, or answers -1 when there is none. What
    /// <see cref="Aerostat.Processors.IExitHandler.AcknowledgeInterrupt"/> returns.
    /// </summary>
    public int Acknowledge()
    {
        int vector = -1;
        bool more;
        lock (gate)
        {
            if (summary != 0)
            {
                int word = BitOperations.TrailingZeroCount(summary);
                vector = (word * BitsPerWord) + BitOperations.TrailingZeroCount(pending[word]);
                pending[word] &= pending[word] - 1;
                if (pending[word] == 0)
                    summary &= ~(1u << word);
            }
            more = summary != 0;
            // Under the lock, against a Raise that has set its bit but not yet the wire: that comes afterwards.
            if (!more)
                pins.SetInterruptRequest(false);
        }
        return vector;
    }

    /// <summary>Forgets all that is pending, as a reset does.</summary>
    public void Clear()
    {
        lock (gate)
        {
            Array.Clear(pending);
            summary = 0;
            pins.SetInterruptRequest(false);
        }
    }

    private static void Check(int vector)
    {
        if ((uint)vector >= Vectors)
            throw new ArgumentOutOfRangeException(nameof(vector), vector, $"interrupt vectors are 0..{Vectors - 1}");
    }
}
