using System.Diagnostics.CodeAnalysis;
using System.Globalization;
using System.Numerics;
using System.Runtime.InteropServices;

namespace Aerostat.Snapshots;

/// <summary>
/// What contents are checked by: four CRC-32C (Castagnoli), of which number n takes every fourth 64-bit little-endian word from word n on.
/// Bytes beyond the last whole word go into number 0, and then the length. Four chains keep the processor's CRC unit busy.
/// </summary>
/// <param name="High">CRC 0 and 1.</param>
/// <param name="Low">CRC 2 and 3.</param>
internal readonly record struct Checksum(ulong High, ulong Low)
{
    /// <summary>Bytes of it.</summary>
    public const int Size = 16;

    /// <summary>The checksum of some bytes.</summary>
    public static Checksum Of(ReadOnlySpan<byte> bytes)
    {
        ReadOnlySpan<ulong> words = MemoryMarshal.Cast<byte, ulong>(bytes);
        uint a = uint.MaxValue, b = a, c = a, d = a;
        int i = 0;
        for (; i + 4 <= words.Length; i += 4)
        {
            a = BitOperations.Crc32C(a, words[i]);
            b = BitOperations.Crc32C(b, words[i + 1]);
            c = BitOperations.Crc32C(c, words[i + 2]);
            d = BitOperations.Crc32C(d, words[i + 3]);
        }
        int left = words.Length - i;
        if (left > 0)
            a = BitOperations.Crc32C(a, words[i]);
        if (left > 1)
            b = BitOperations.Crc32C(b, words[i + 1]);
        if (left > 2)
            c = BitOperations.Crc32C(c, words[i + 2]);
        foreach (byte tail in bytes[(words.Length * sizeof(ulong))..])
            a = BitOperations.Crc32C(a, tail);
        a = BitOperations.Crc32C(a, (ulong)bytes.Length);
        return new Checksum((ulong)~a << 32 | ~b, (ulong)~c << 32 | ~d);
    }

    /// <summary>Reads what <see cref="ToString"/> writes.</summary>
    public static bool TryParse(string text, [NotNullWhen(true)] out Checksum? value)
    {
        value = null;
        if (text.Length != 2 * Size || text.Any(char.IsAsciiLetterUpper)
            || !ulong.TryParse(text.AsSpan(0, 16), NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture, out ulong high)
            || !ulong.TryParse(text.AsSpan(16), NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture, out ulong low))
            return false;
        value = new Checksum(high, low);
        return true;
    }

    /// <summary>32 hexadecimal digits.</summary>
    public override string ToString() => $"{High:x16}{Low:x16}";
}
