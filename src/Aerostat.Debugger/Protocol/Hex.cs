using System.Globalization;

namespace Aerostat.Debugger;

/// <summary>Hexadecimal as the protocol writes it.</summary>
internal static class Hex
{
    /// <summary>Value of a digit, or -1.</summary>
    public static int Digit(byte c) => c switch
    {
        >= (byte)'0' and <= (byte)'9' => c - '0',
        >= (byte)'a' and <= (byte)'f' => c - 'a' + 10,
        >= (byte)'A' and <= (byte)'F' => c - 'A' + 10,
        _ => -1,
    };

    /// <summary>Reads a number of 1 to 16 digits; nothing else may be there.</summary>
    public static bool TryNumber(ReadOnlySpan<char> text, out ulong value)
    {
        value = 0;
        return text.Length is >= 1 and <= 16 && ulong.TryParse(text, NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture, out value);
    }

    /// <summary>Reads pairs of digits; null when that is not what they are.</summary>
    public static byte[]? TryBytes(ReadOnlySpan<char> text)
    {
        if ((text.Length & 1) != 0)
            return null;
        foreach (char c in text)
            if (!char.IsAsciiHexDigit(c))
                return null;
        return Convert.FromHexString(text);
    }

    /// <summary>Two digits for each byte.</summary>
    public static string Of(ReadOnlySpan<byte> bytes) => Convert.ToHexStringLower(bytes);
}
