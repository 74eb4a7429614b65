using System.Buffers.Binary;
using System.Numerics;

namespace Aerostat.Storage;

/// <summary>Bits from the end of a buffer to its beginning (RFC 8878, 4.1): the last byte's highest set bit only marks the end.</summary>
internal ref struct BackwardBits
{
    private readonly ReadOnlySpan<byte> _source;
    // Bits that are left; negative: more were read than there are, which read as zeros.
    private long _left;

    private BackwardBits(ReadOnlySpan<byte> source)
    {
        _source = source;
        _left = source.Length * 8L - BitOperations.LeadingZeroCount((uint)source[^1]) + 24 - 1;
    }

    public static bool TryOpen(ReadOnlySpan<byte> source, out BackwardBits bits)
    {
        bits = default;
        if (source.IsEmpty || source[^1] == 0)
            return false;
        bits = new BackwardBits(source);
        return true;
    }

    public readonly bool Overrun => _left < 0;

    public readonly bool AtEnd => _left == 0;

    public readonly long Left => _left;

    public ulong Read(int count)
    {
        ulong value = Peek(count);
        _left -= count;
        return value;
    }

    public void Skip(int count) => _left -= count;

    /// <summary>The next bits, up to 32; those before the beginning are zeros.</summary>
    public readonly ulong Peek(int count)
    {
        long from = _left - count;
        if (count == 0 || from <= -64)
            return 0;
        int missing = from < 0 ? (int)-from : 0;
        if (missing >= count)
            return 0;
        long first = from < 0 ? 0 : from;
        return (Window(first) & ((1UL << (count - missing)) - 1)) << missing;
    }

    private readonly ulong Window(long bit)
    {
        int at = (int)(bit >> 3);
        ReadOnlySpan<byte> rest = _source[at..];
        ulong value = 0;
        if (rest.Length >= 8)
            value = BinaryPrimitives.ReadUInt64LittleEndian(rest);
        else
            for (int i = 0; i < rest.Length; i++)
                value |= (ulong)rest[i] << (8 * i);
        return value >> (int)(bit & 7);
    }
}

/// <summary>A state of a decoding table: its symbol, and the next state as a base and a number of bits to be added.</summary>
internal readonly record struct FseEntry(byte Symbol, byte Bits, ushort Base);

/// <summary>A table of finite state entropy (RFC 8878, 4.1).</summary>
internal sealed class FseTable(int mostLog)
{
    private const int Predefined = 0, RunLength = 1, Compressed = 2;

    private readonly FseEntry[] _entries = new FseEntry[1 << mostLog];
    private bool _valid;

    /// <summary>Bits of a state.</summary>
    public int Log { get; private set; }

    public FseEntry this[int state] => _entries[state];

    /// <summary>Makes the table of a block by one of four modes (3.1.1.3.2.1).</summary>
    public bool Read(int mode, ref ReadOnlySpan<byte> source, ReadOnlySpan<short> predefined, int predefinedLog, int most, int symbols)
    {
        switch (mode)
        {
            case Predefined:
                Build(predefined, predefinedLog);
                return true;
            case RunLength:
                if (source.IsEmpty || source[0] >= symbols)
                    return false;
                Log = 0;
                _entries[0] = new FseEntry(source[0], 0, 0);
                source = source[1..];
                return _valid = true;
            case Compressed:
                return ReadDistribution(ref source, most, symbols);
            default:
                return _valid;
        }
    }

    /// <summary>Reads a distribution of probabilities (4.1.1) and builds its table.</summary>
    public bool ReadDistribution(ref ReadOnlySpan<byte> source, int most, int symbols)
    {
        Span<short> counts = stackalloc short[256];
        long bit = 0;
        ReadOnlySpan<byte> bytes = source;
        int log = (int)Take(bytes, 4) + 5;
        if (log > most)
            return false;
        int remaining = (1 << log) + 1, symbol = 0;
        while (remaining > 1)
        {
            if (symbol >= symbols || bit > bytes.Length * 8L)
                return false;
            // Values below a threshold take a bit less.
            int width = BitOperations.Log2((uint)remaining) + 1, top = 1 << width, spared = top - 1 - remaining;
            int value = (int)Take(bytes, width - 1);
            if (value >= spared)
            {
                value |= (int)Take(bytes, 1) << (width - 1);
                if (value >= top >> 1)
                    value -= spared;
            }
            int count = value - 1;
            remaining -= Math.Abs(count);
            counts[symbol++] = (short)count;
            if (count != 0)
                continue;
            // How many more zeros: by twos, three means that there are further ones.
            int more;
            do
            {
                more = (int)Take(bytes, 2);
                symbol += more;
            }
            while (more == 3 && symbol < symbols && bit <= bytes.Length * 8L);
            if (symbol > symbols)
                return false;
        }
        int used = (int)((bit + 7) / 8);
        if (remaining != 1 || used > bytes.Length)
            return false;
        source = source[used..];
        Build(counts[..symbol], log);
        return true;

        uint Take(ReadOnlySpan<byte> from, int count)
        {
            uint result = 0;
            for (int i = 0; i < count; i++, bit++)
                if (bit >> 3 < from.Length && (from[(int)(bit >> 3)] >> (int)(bit & 7) & 1) != 0)
                    result |= 1u << i;
            return result;
        }
    }

    // 4.1.1: symbols that are rarer than one state are at the end, the others are spread.
    private void Build(ReadOnlySpan<short> counts, int log)
    {
        int size = 1 << log, high = size;
        Span<byte> symbols = stackalloc byte[size];
        Span<ushort> next = stackalloc ushort[counts.Length];
        for (int s = 0; s < counts.Length; s++)
        {
            next[s] = (ushort)Math.Abs(counts[s]);
            if (counts[s] == -1)
                symbols[--high] = (byte)s;
        }
        int step = (size >> 1) + (size >> 3) + 3, at = 0;
        for (int s = 0; s < counts.Length; s++)
        {
            for (int i = 0; i < counts[s]; i++)
            {
                symbols[at] = (byte)s;
                do
                    at = (at + step) & (size - 1);
                while (at >= high);
            }
        }
        for (int state = 0; state < size; state++)
        {
            int number = next[symbols[state]]++, bits = log - BitOperations.Log2((uint)number);
            _entries[state] = new FseEntry(symbols[state], (byte)bits, (ushort)((number << bits) - size));
        }
        Log = log;
        _valid = true;
    }
}

/// <summary>The prefix code of literals (RFC 8878, 4.2).</summary>
internal sealed class HuffmanTable
{
    private const int MostBits = 11, MostWeightLog = 6, MostSymbols = 256;

    private readonly (byte Symbol, byte Bits)[] _entries = new (byte, byte)[1 << MostBits];
    private readonly FseTable _weightTable = new(MostWeightLog);
    private int _bits;

    /// <summary>Reads the description of a code.</summary>
    public bool Read(ref ReadOnlySpan<byte> source)
    {
        Span<byte> weights = stackalloc byte[MostSymbols];
        if (source.IsEmpty)
            return false;
        int head = source[0], count;
        source = source[1..];
        if (head >= 128)
        {
            count = head - 127;
            if (source.Length < (count + 1) / 2)
                return false;
            for (int i = 0; i < count; i++)
                weights[i] = (byte)((i & 1) == 0 ? source[i / 2] >> 4 : source[i / 2] & 15);
            source = source[((count + 1) / 2)..];
        }
        else
        {
            if (head > source.Length)
                return false;
            ReadOnlySpan<byte> packed = source[..head];
            source = source[head..];
            if (!_weightTable.ReadDistribution(ref packed, MostWeightLog, MostBits + 2) || !ReadWeights(packed, weights, out count))
                return false;
        }
        return Build(weights, count);
    }

    /// <summary>Decodes one stream or four.</summary>
    public bool Decode(ReadOnlySpan<byte> source, int streams, Span<byte> output)
    {
        if (_bits == 0)
            return false;
        if (streams == 1)
            return Stream(source, output);
        if (source.Length < 6)
            return false;
        int part = (output.Length + 3) / 4;
        ReadOnlySpan<byte> sizes = source;
        source = source[6..];
        for (int i = 0; i < 3; i++)
        {
            int size = BinaryPrimitives.ReadUInt16LittleEndian(sizes[(2 * i)..]);
            if (size > source.Length || part > output.Length || !Stream(source[..size], output[..part]))
                return false;
            source = source[size..];
            output = output[part..];
        }
        return Stream(source, output);
    }

    private bool Stream(ReadOnlySpan<byte> source, Span<byte> output)
    {
        if (!BackwardBits.TryOpen(source, out BackwardBits bits))
            return false;
        for (int i = 0; i < output.Length; i++)
        {
            (output[i], byte used) = _entries[bits.Peek(_bits)];
            bits.Skip(used);
            if (bits.Overrun)
                return false;
        }
        return bits.AtEnd;
    }

    // 4.2.1.2: two states take turns until the bits are used up.
    private bool ReadWeights(ReadOnlySpan<byte> packed, Span<byte> weights, out int count)
    {
        count = 0;
        if (!BackwardBits.TryOpen(packed, out BackwardBits bits))
            return false;
        Span<int> states = [(int)bits.Read(_weightTable.Log), (int)bits.Read(_weightTable.Log)];
        if (bits.Overrun)
            return false;
        for (int turn = 0; ; turn ^= 1)
        {
            FseEntry entry = _weightTable[states[turn]];
            // One is implied, so 255 are most.
            if (count >= MostSymbols - 2)
                return false;
            weights[count++] = entry.Symbol;
            if (entry.Bits > bits.Left)
            {
                weights[count++] = _weightTable[states[turn ^ 1]].Symbol;
                return true;
            }
            states[turn] = entry.Base + (int)bits.Read(entry.Bits);
        }
    }

    private bool Build(Span<byte> weights, int count)
    {
        // The last weight is what makes the sum a power of two.
        int sum = 0;
        for (int i = 0; i < count; i++)
        {
            if (weights[i] > MostBits)
                return false;
            sum += 1 << weights[i] >> 1;
        }
        if (sum == 0 || count >= MostSymbols)
            return false;
        int bits = BitOperations.Log2((uint)sum) + 1, rest = (1 << bits) - sum;
        if (bits > MostBits || !BitOperations.IsPow2(rest))
            return false;
        weights[count++] = (byte)(BitOperations.Log2((uint)rest) + 1);
        int at = 0;
        for (int weight = 1; weight <= bits; weight++)
        {
            for (int s = 0; s < count; s++)
            {
                if (weights[s] != weight)
                    continue;
                int entries = 1 << (weight - 1);
                _entries.AsSpan(at, entries).Fill(((byte)s, (byte)(bits + 1 - weight)));
                at += entries;
            }
        }
        _bits = bits;
        return true;
    }
}
