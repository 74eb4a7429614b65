using System.Globalization;

namespace Aerostat.Machine;

/// <summary>Sizes as users write them: bytes, or a number with K, M, G or T (powers of 1024).</summary>
public static class MemorySize
{
    /// <summary>Reads a size.</summary>
    /// <param name="text">"512M", "2G", "1073741824".</param>
    /// <param name="what">Option's name, for the error.</param>
    /// <exception cref="ConfigurationException">It is not a size, or does not fit 64 bits.</exception>
    public static ulong Parse(string text, string what)
    {
        ReadOnlySpan<char> digits = text.AsSpan().Trim();
        if (digits.EndsWith("iB", StringComparison.OrdinalIgnoreCase))
            digits = digits[..^2];
        else if (digits.Length > 1 && digits[^1] is 'B' or 'b')
            digits = digits[..^1];
        int shift = digits.IsEmpty ? 0 : char.ToUpperInvariant(digits[^1]) switch
        {
            'K' => 10,
            'M' => 20,
            'G' => 30,
            'T' => 40,
            _ => 0,
        };
        if (shift > 0)
            digits = digits[..^1];
        if (!ulong.TryParse(digits, NumberStyles.None, CultureInfo.InvariantCulture, out ulong number))
            throw new ConfigurationException($"{what}: '{text}' is not a size; write a number of bytes, or one with K, M, G or T such as 512M");
        if (number > ulong.MaxValue >> shift)
            throw new ConfigurationException($"{what}: {text} is more than 64 bits can count; write a smaller size");
        return number << shift;
    }

    /// <summary>The shortest exact form: "512M", "1536K", "4097".</summary>
    public static string Format(ulong bytes)
    {
        foreach ((int shift, string unit) in ((int, string)[])[(40, "T"), (30, "G"), (20, "M"), (10, "K")])
            if (bytes != 0 && (bytes & ((1UL << shift) - 1)) == 0)
                return $"{bytes >> shift}{unit}";
        return $"{bytes}";
    }
}
