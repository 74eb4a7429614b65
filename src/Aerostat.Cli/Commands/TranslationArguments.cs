using System.Globalization;
using Aerostat.Machine;
using Aerostat.Processors;

namespace Aerostat.Cli;

/// <summary>What <c>--perf-map</c>, <c>--system-map</c> and <c>--dump-blocks</c> ask a translator to write down.</summary>
internal static class TranslationArguments
{
    /// <summary>The options together; null when there are none.</summary>
    /// <exception cref="ConfigurationException">They do not fit.</exception>
    public static TranslationRecordOptions? Parse(bool wantsMap, string? mapPath, string? systemMap, string? dumpBlocks)
    {
        if (systemMap is not null && !wantsMap)
            throw new ConfigurationException("--system-map: the symbols are for the map of --perf-map; give that too");
        if (!wantsMap && dumpBlocks is null)
            return null;
        // The runtime writes a file of that name as well, and each would overwrite the other's lines.
        if (wantsMap && mapPath is null && Environment.GetEnvironmentVariable("DOTNET_PerfMapEnabled") is "1" or "3")
            throw new ConfigurationException($"--perf-map: DOTNET_PerfMapEnabled writes the same file; unset it, or give --perf-map FILE and append that to /tmp/perf-PID.map after the run");
        string[] parts = dumpBlocks?.Split(',') ?? [];
        return new TranslationRecordOptions
        {
            PerfMapPath = wantsMap ? mapPath ?? $"/tmp/perf-{Environment.ProcessId}.map" : null,
            SymbolsPath = systemMap,
            ListingPath = parts is [{ Length: > 0 } path, ..] ? path : dumpBlocks is null ? null : throw new ConfigurationException("--dump-blocks: the path is empty; write FILE or FILE,ADDR,..."),
            ListedAddresses = [.. parts.Skip(1).Select(ParseAddress)],
        };
    }

    private static ulong ParseAddress(string text)
    {
        ReadOnlySpan<char> digits = text.StartsWith("0x", StringComparison.OrdinalIgnoreCase) ? text.AsSpan(2) : text;
        return ulong.TryParse(digits, NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture, out ulong address)
            ? address
            : throw new ConfigurationException($"--dump-blocks: '{text}' is not an address; write it in hexadecimal, such as 0xffffffff81000000");
    }
}
