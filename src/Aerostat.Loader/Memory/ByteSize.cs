using System.Globalization;

namespace Aerostat.Loader;

/// <summary>Sizes in errors.</summary>
internal static class ByteSize
{
    /// <summary>Bytes in the largest unit that keeps one decimal honest: "512 MiB", "1.5 KiB".</summary>
    public static string Format(ulong bytes)
    {
        (ulong unit, string name) = bytes switch
        {
            >= 1UL << 30 => (1UL << 30, "GiB"),
            >= 1UL << 20 => (1UL << 20, "MiB"),
            >= 1UL << 10 => (1UL << 10, "KiB"),
            _ => (1UL, "bytes"),
        };
        return ((double)bytes / unit).ToString(bytes % unit == 0 ? "0" : "0.0", CultureInfo.InvariantCulture) + " " + name;
    }

    /// <summary>Bytes rounded up to whole MiB, as a value for --memory.</summary>
    public static string Megabytes(ulong bytes) => $"{(bytes + (1UL << 20) - 1) >> 20}M";
}
