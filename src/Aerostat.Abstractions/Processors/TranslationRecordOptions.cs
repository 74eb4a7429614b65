namespace Aerostat.Processors;

/// <summary>What a processor that translates writes down while it works: for people who look for where time goes, or for a wrong translation.</summary>
public sealed record TranslationRecordOptions
{
    /// <summary>
    /// Where to write a map for the Linux profiler, a line for each block: address and size in hexadecimal, and the guest's address or symbol. perf looks
    /// for <c>/tmp/perf-PID.map</c>. Null: none is written.
    /// </summary>
    public string? PerfMapPath { get; init; }

    /// <summary>A System.map of the guest's kernel, whose symbols name blocks in the map; null: addresses only. A kernel that moves itself does not match it.</summary>
    public string? SymbolsPath { get; init; }

    /// <summary>Where to write guest and host code of blocks side by side as they are made; null: nowhere.</summary>
    public string? ListingPath { get; init; }

    /// <summary>Only blocks that contain an instruction at one of these linear addresses are listed; empty: all.</summary>
    public IReadOnlyList<ulong> ListedAddresses { get; init; } = [];
}
