using System.Globalization;

namespace Aerostat.Platform;

/// <summary>Reading of the host's small text files.</summary>
internal static class ProcFile
{
    /// <summary>The text of a file, or null when it is not there or may not be read.</summary>
    public static string? Read(string root, string path)
    {
        try
        {
            return File.ReadAllText(Path.Combine(root, path));
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            return null;
        }
    }

    /// <summary>The first number of a file, or null ("max" included).</summary>
    public static ulong? ReadNumber(string root, string path) =>
        Read(root, path) is { } text && ulong.TryParse(text.AsSpan().Trim(), CultureInfo.InvariantCulture, out ulong value) ? value : null;

    /// <summary>Lines "Name:   number [kB]", in bytes where kB is given.</summary>
    public static Dictionary<string, ulong> ParseKilobytes(string text)
    {
        Dictionary<string, ulong> values = [];
        foreach (string line in text.Split('\n'))
        {
            int colon = line.IndexOf(':');
            if (colon < 0)
                continue;
            string[] parts = line[(colon + 1)..].Split((char[]?)null, StringSplitOptions.RemoveEmptyEntries);
            if (parts.Length > 0 && ulong.TryParse(parts[0], CultureInfo.InvariantCulture, out ulong value))
                values.TryAdd(line[..colon], parts.Length > 1 && parts[1] == "kB" ? value << 10 : value);
        }
        return values;
    }

    /// <summary>A path's text for people: "never [madvise] always" gives "madvise".</summary>
    public static string? Selected(string? text)
    {
        if (text is null)
            return null;
        int start = text.IndexOf('['), stop = text.IndexOf(']');
        return start >= 0 && stop > start ? text[(start + 1)..stop] : text.Trim();
    }
}
