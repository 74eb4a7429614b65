using System.Globalization;
using System.Text;
using Aerostat.Processors;

namespace Aerostat.Cpu;

/// <summary>
/// Writes down the blocks of all vCPUs as they are made: a map for the Linux profiler, listings, or both. Bounded: a guest that makes the translator
/// work for ever does not fill the disk.
/// </summary>
internal sealed class TranslationRecorder : IBlockObserver, IDisposable
{
    /// <summary>Most bytes of a map or of listings.</summary>
    public const long MostBytes = 256 << 20;

    private readonly Lock gate = new();
    private readonly HashSet<ulong> listed;
    private readonly (ulong Address, string Name)[] symbols = [];
    private readonly BlockListing listing = new();
    private StreamWriter? map, listings;

    /// <exception cref="IOException">A file cannot be written or read.</exception>
    /// <exception cref="UnauthorizedAccessException">The same.</exception>
    public TranslationRecorder(TranslationRecordOptions options)
    {
        listed = [.. options.ListedAddresses];
        if (options.SymbolsPath != null)
            symbols = ReadSymbols(File.ReadLines(options.SymbolsPath));
        try
        {
            map = Open(options.PerfMapPath);
            listings = Open(options.ListingPath);
        }
        catch
        {
            Dispose();
            throw;
        }
    }

    /// <inheritdoc/>
    public void Translated(BlockView block)
    {
        lock (gate)
        {
            try
            {
                bool together = block.Near == block.End;
                WriteLine(block, block.Start, together ? block.NearEnd : block.End);
                if (!together)
                    WriteLine(block, block.Near, block.NearEnd);
                WriteLine(block, block.SlowPaths, block.SlowPathsEnd);
                Bound(ref map);
            }
            catch (IOException)
            {
                // A full disk, say: what has been written stays, and the guest runs on.
                map = null;
            }
            try
            {
                if (listings != null && (listed.Count == 0 || ContainsListed(block)))
                    listing.Write(listings, block, header: true);
                Bound(ref listings);
            }
            catch (IOException)
            {
                listings = null;
            }
        }
    }

    private void WriteLine(BlockView block, nint start, nint end)
    {
        if (start != end)
            map?.WriteLine($"{start:x} {end - start:x} guest:{NameOf(symbols, block.Linear)}");
    }

    /// <summary>The symbol at or before an address with the distance from it, or the address.</summary>
    internal static string NameOf((ulong Address, string Name)[] symbols, ulong address)
    {
        int low = 0, high = symbols.Length;
        while (low < high)
        {
            int middle = (low + high) / 2;
            if (symbols[middle].Address <= address)
                low = middle + 1;
            else
                high = middle;
        }
        // Behind the last symbol may lie anything, modules for instance.
        if (low == 0 || low == symbols.Length)
            return $"0x{address:x}";
        (ulong start, string name) = symbols[low - 1];
        return start == address ? name : $"{name}+0x{address - start:x}";
    }

    // Lines of nm(1): address, type, name.
    private static (ulong Address, string Name)[] ReadSymbols(IEnumerable<string> lines)
    {
        List<(ulong Address, string Name)> found = [];
        foreach (string line in lines)
        {
            string[] parts = line.Split(' ', 3, StringSplitOptions.RemoveEmptyEntries | StringSplitOptions.TrimEntries);
            // Small addresses are offsets in per-processor data.
            if (parts.Length == 3 && parts[1] is "t" or "T" or "w" or "W" or "D" or "d" or "B" or "b" or "A"
                && ulong.TryParse(parts[0], NumberStyles.HexNumber, CultureInfo.InvariantCulture, out ulong address) && address > 1 << 20)
                found.Add((address, parts[2]));
        }
        return [.. found.OrderBy(s => s.Address)];
    }

    private bool ContainsListed(BlockView block)
    {
        foreach (ulong address in listed)
            if (block.Contains(address))
                return true;
        return false;
    }

    private static StreamWriter? Open(string? path) =>
        path == null ? null : new StreamWriter(new FileStream(path, FileMode.Create, FileAccess.Write, FileShare.Read), new UTF8Encoding(false)) { NewLine = "\n" };

    private static void Bound(ref StreamWriter? writer)
    {
        // Each block is in the file before it runs.
        writer?.Flush();
        if (writer == null || writer.BaseStream.Position <= MostBytes)
            return;
        writer.Dispose();
        writer = null;
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        lock (gate)
        {
            map?.Dispose();
            listings?.Dispose();
            map = listings = null;
        }
    }
}
