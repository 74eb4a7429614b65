using System.Buffers.Binary;

namespace Aerostat.Storage;

/// <summary>
/// Reads Zstandard frames (RFC 8878) into a buffer whose size is known. Anything may be in the source: what is not a frame is answered, never thrown.
/// <para>Not done: dictionaries, and the checksum of the contents is passed over.</para>
/// </summary>
public sealed class ZstdDecoder
{
    private const uint FrameMagic = 0xFD2FB528, SkippableMagic = 0x184D2A50;
    private const int MostBlock = 128 << 10;
    private const int LiteralLengthLog = 9, OffsetLog = 8, MatchLengthLog = 9;

    // RFC 8878, 3.1.1.3.2.1.1: what a code of a length stands for, and how many bits follow it.
    private static readonly int[] s_literalBase = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 18, 20, 22, 24, 28, 32, 40, 48, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536];
    private static readonly byte[] s_literalBits = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];
    private static readonly int[] s_matchBase =
    [
        3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 37, 39, 41, 43, 47, 51, 59, 67, 83, 99, 131, 259, 515,
        1027, 2051, 4099, 8195, 16387, 32771, 65539,
    ];
    private static readonly byte[] s_matchBits =
    [
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16,
    ];

    // 3.1.1.3.2.2: the distributions that need not be sent.
    private static readonly short[] s_literalDefault = [4, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 2, 1, 1, 1, 1, 1, -1, -1, -1, -1];
    private static readonly short[] s_matchDefault =
    [
        1, 4, 3, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1,
    ];
    private static readonly short[] s_offsetDefault = [1, 1, 1, 1, 1, 1, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1];

    private readonly FseTable _literalLengths = new(LiteralLengthLog), _offsets = new(OffsetLog), _matchLengths = new(MatchLengthLog);
    private readonly HuffmanTable _huffman = new();
    private readonly byte[] _literals = new byte[MostBlock];
    private readonly int[] _recent = new int[3];
    private int _literalCount;

    private ZstdDecoder()
    {
    }

    /// <summary>Decodes frames until the destination is full; what is behind that is not looked at.</summary>
    /// <returns>Whether the destination was filled.</returns>
    public static bool TryDecode(ReadOnlySpan<byte> source, Span<byte> destination)
    {
        int written = 0;
        while (written < destination.Length)
        {
            if (source.Length < 4)
                return false;
            uint magic = BinaryPrimitives.ReadUInt32LittleEndian(source);
            if ((magic & ~0xFu) == SkippableMagic)
            {
                if (source.Length < 8 || BinaryPrimitives.ReadUInt32LittleEndian(source[4..]) is var skipped && skipped > source.Length - 8)
                    return false;
                source = source[(8 + (int)BinaryPrimitives.ReadUInt32LittleEndian(source[4..]))..];
                continue;
            }
            if (magic != FrameMagic || !new ZstdDecoder().Frame(ref source, destination[written..], out int got))
                return false;
            written += got;
        }
        return true;
    }

    private bool Frame(ref ReadOnlySpan<byte> source, Span<byte> output, out int written)
    {
        written = 0;
        // 3.1.1.1: descriptor, window unless it is one segment, dictionary, size of the contents.
        if (source.Length < 6)
            return false;
        int descriptor = source[4];
        bool single = (descriptor & 0x20) != 0, checksum = (descriptor & 4) != 0;
        int dictionary = (descriptor & 3) switch { 3 => 4, var n => n };
        int size = (descriptor >> 6) switch { 0 => single ? 1 : 0, 1 => 2, 2 => 4, _ => 8 };
        int header = 5 + (single ? 0 : 1) + dictionary + size;
        if ((descriptor & 8) != 0 || source.Length < header || source.Slice(header - size - dictionary, dictionary).ContainsAnyExcept((byte)0))
            return false;
        source = source[header..];
        (_recent[0], _recent[1], _recent[2]) = (1, 4, 8);
        while (true)
        {
            if (source.Length < 3)
                return false;
            int block = source[0] | source[1] << 8 | source[2] << 16, length = block >> 3;
            source = source[3..];
            if (length > MostBlock)
                return false;
            switch (block >> 1 & 3)
            {
                case 0:
                    if (length > source.Length || length > output.Length - written)
                        return false;
                    source[..length].CopyTo(output[written..]);
                    written += length;
                    source = source[length..];
                    break;
                case 1:
                    if (source.IsEmpty || length > output.Length - written)
                        return false;
                    output.Slice(written, length).Fill(source[0]);
                    written += length;
                    source = source[1..];
                    break;
                case 2:
                    if (length > source.Length || !Block(source[..length], output, ref written))
                        return false;
                    source = source[length..];
                    break;
                default:
                    return false;
            }
            if ((block & 1) != 0)
                break;
        }
        if (checksum)
            source = source[Math.Min(4, source.Length)..];
        return true;
    }

    private bool Block(ReadOnlySpan<byte> source, Span<byte> output, ref int written)
    {
        if (!Literals(ref source) || source.IsEmpty)
            return false;
        // 3.1.1.3.2: how many sequences.
        int count = source[0], used = 1;
        if (count >= 128)
        {
            if (source.Length < (count == 255 ? 3 : 2))
                return false;
            used = count == 255 ? 3 : 2;
            count = count == 255 ? (source[1] | source[2] << 8) + 0x7F00 : (count - 128 << 8) + source[1];
        }
        source = source[used..];
        int literal = 0;
        if (count > 0)
        {
            if (source.IsEmpty)
                return false;
            int modes = source[0];
            source = source[1..];
            if ((modes & 3) != 0
                || !_literalLengths.Read(modes >> 6 & 3, ref source, s_literalDefault, 6, LiteralLengthLog, s_literalBase.Length)
                || !_offsets.Read(modes >> 4 & 3, ref source, s_offsetDefault, 5, OffsetLog, 32)
                || !_matchLengths.Read(modes >> 2 & 3, ref source, s_matchDefault, 6, MatchLengthLog, s_matchBase.Length)
                || !Sequences(source, count, output, ref written, ref literal))
                return false;
        }
        int rest = _literalCount - literal;
        if (rest > output.Length - written)
            return false;
        _literals.AsSpan(literal, rest).CopyTo(output[written..]);
        written += rest;
        return true;
    }

    private bool Sequences(ReadOnlySpan<byte> source, int count, Span<byte> output, ref int written, ref int literal)
    {
        if (!BackwardBits.TryOpen(source, out BackwardBits bits))
            return false;
        int literalState = (int)bits.Read(_literalLengths.Log), offsetState = (int)bits.Read(_offsets.Log), matchState = (int)bits.Read(_matchLengths.Log);
        for (int i = 0; i < count; i++)
        {
            FseEntry literalEntry = _literalLengths[literalState], offsetEntry = _offsets[offsetState], matchEntry = _matchLengths[matchState];
            if (offsetEntry.Symbol > 31)
                return false;
            ulong offsetValue = (1UL << offsetEntry.Symbol) + bits.Read(offsetEntry.Symbol);
            long matchLength = s_matchBase[matchEntry.Symbol] + (long)bits.Read(s_matchBits[matchEntry.Symbol]);
            long literalLength = s_literalBase[literalEntry.Symbol] + (long)bits.Read(s_literalBits[literalEntry.Symbol]);
            if (i + 1 < count)
            {
                literalState = literalEntry.Base + (int)bits.Read(literalEntry.Bits);
                matchState = matchEntry.Base + (int)bits.Read(matchEntry.Bits);
                offsetState = offsetEntry.Base + (int)bits.Read(offsetEntry.Bits);
            }
            long offset = Offset(offsetValue, literalLength == 0);
            if (bits.Overrun || literalLength > _literalCount - literal || literalLength + matchLength > output.Length - written)
                return false;
            _literals.AsSpan(literal, (int)literalLength).CopyTo(output[written..]);
            literal += (int)literalLength;
            written += (int)literalLength;
            if (offset <= 0 || offset > written)
                return false;
            Copy(output, written, (int)offset, (int)matchLength);
            written += (int)matchLength;
        }
        return bits.AtEnd;
    }

    // 3.1.1.5: the last three offsets have short names, which shift by one after no literals.
    private long Offset(ulong value, bool noLiterals)
    {
        if (value > 3)
        {
            if (value - 3 > int.MaxValue)
                return 0;
            (_recent[2], _recent[1], _recent[0]) = (_recent[1], _recent[0], (int)(value - 3));
            return _recent[0];
        }
        int index = (int)value - 1 + (noLiterals ? 1 : 0);
        int offset = index < 3 ? _recent[index] : _recent[0] - 1;
        if (index >= 2)
            _recent[2] = _recent[1];
        if (index >= 1)
            (_recent[1], _recent[0]) = (_recent[0], offset);
        return offset;
    }

    // What is copied can be what this copy has just written.
    private static void Copy(Span<byte> output, int at, int offset, int length)
    {
        Span<byte> from = output.Slice(at - offset, Math.Min(offset, length));
        while (length > 0)
        {
            int part = Math.Min(from.Length, length);
            from[..part].CopyTo(output[at..]);
            at += part;
            length -= part;
        }
    }

    // 3.1.1.3.1.
    private bool Literals(ref ReadOnlySpan<byte> source)
    {
        if (source.IsEmpty)
            return false;
        int type = source[0] & 3, format = source[0] >> 2 & 3;
        if (type < 2)
        {
            int header = format switch { 1 => 2, 3 => 3, _ => 1 };
            if (source.Length < header)
                return false;
            _literalCount = format switch { 1 => source[0] >> 4 | source[1] << 4, 3 => source[0] >> 4 | source[1] << 4 | source[2] << 12, _ => source[0] >> 3 };
            int stored = type == 0 ? _literalCount : 1;
            if (_literalCount > MostBlock || source.Length - header < stored)
                return false;
            if (type == 0)
                source.Slice(header, stored).CopyTo(_literals);
            else
                _literals.AsSpan(0, _literalCount).Fill(source[header]);
            source = source[(header + stored)..];
            return true;
        }
        int bytes = format switch { 2 => 4, 3 => 5, _ => 3 }, bits = format switch { 2 => 14, 3 => 18, _ => 10 };
        if (source.Length < bytes)
            return false;
        ulong head = 0;
        for (int i = 0; i < bytes; i++)
            head |= (ulong)source[i] << (8 * i);
        _literalCount = (int)(head >> 4 & (1UL << bits) - 1);
        int packed = (int)(head >> (4 + bits) & (1UL << bits) - 1);
        source = source[bytes..];
        if (_literalCount > MostBlock || packed > source.Length)
            return false;
        ReadOnlySpan<byte> streams = source[..packed];
        source = source[packed..];
        if (type == 2 && !_huffman.Read(ref streams))
            return false;
        return _huffman.Decode(streams, format == 0 ? 1 : 4, _literals.AsSpan(0, _literalCount));
    }
}
