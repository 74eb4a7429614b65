using System.Globalization;
using System.Runtime.CompilerServices;
using System.Text;
using System.Text.RegularExpressions;
using Aerostat.Hosting;
using Aerostat.Machine;
using Xunit;

namespace Aerostat.Snapshots.Tests;

/// <summary>
/// Manifests and page maps with values that nobody wrote, and checksums that fit: a machine comes of them that starts and stops, or a
/// <see cref="SnapshotException"/>. A manifest that does something else is kept in <c>corpus</c>, and every later run tries it again.
/// </summary>
public sealed partial class FuzzTests
{
    private const int Manifests = 150, Maps = 4000;

    private static readonly string[] s_values =
    [
        "0", "1", "-1", "2", "63", "64", "65", "255", "256", "65535", "65536", "2147483647", "2147483648", "4294967295", "4294967296", "9223372036854775807",
        "-9223372036854775808", "18446744073709551615", "1e300", "0.5", "null", "true", "false", "\"\"", "\"x\"", "\"../../..\"", "[]", "{}", "[null]", "\"AAAA\"",
        "\"9999-12-31T23:59:59.9999999+00:00\"", "\"0001-01-01T00:00:00+00:00\"",
    ];

    [Fact]
    public async Task ManifestsOfNoMachine()
    {
        using TestFolder folder = new();
        await SmallMachine.SaveAsync(folder["s"]);
        string file = folder["s/manifest.json"], good = File.ReadAllText(file);
        MatchCollection values = Value().Matches(good);
        int seed = Environment.GetEnvironmentVariable("AEROSTAT_FUZZ_SEED") is { } given ? int.Parse(given, CultureInfo.InvariantCulture) : 20;
        Random random = new(seed);
        int refused = 0, ran = 0;
        for (int i = 0; i < Manifests; i++)
        {
            StringBuilder bad = new(good);
            foreach (int pick in Enumerable.Range(0, random.Next(1, 3)).Select(_ => random.Next(values.Count)).Distinct().OrderDescending())
            {
                Group value = values[pick].Groups[1];
                bad.Remove(value.Index, value.Length);
                if (random.Next(8) != 0)
                    bad.Insert(value.Index, s_values[random.Next(s_values.Length)]);
                else
                    bad.Insert(value.Index, good.AsSpan(values[random.Next(values.Count)].Groups[1].Index, 8));
            }
            if (await TryAsync(folder["s"], FormatTests.Sealed(bad.ToString()), keep: true))
                ran++;
            else
                refused++;
        }
        Assert.True(refused > 0 && ran > 0, $"{refused} refused, {ran} ran");
    }

    [Fact]
    public async Task ManifestsThatOnceDidHarm()
    {
        using TestFolder folder = new();
        await SmallMachine.SaveAsync(folder["s"]);
        foreach (string kept in Directory.Exists(Corpus()) ? Directory.GetFiles(Corpus(), "*.json").Order(StringComparer.Ordinal).ToArray() : [])
            await TryAsync(folder["s"], File.ReadAllBytes(kept), keep: false);
    }

    [Fact]
    public async Task PageMapsOfNoMemory()
    {
        using TestFolder folder = new();
        await SmallMachine.SaveAsync(folder["s"]);
        byte[] good = File.ReadAllBytes(folder["s/pages.map"]);
        Random random = new(31);
        for (int i = 0; i < Maps; i++)
        {
            byte[] bad = random.Next(4) == 0 ? good[..random.Next(good.Length)] : [.. good];
            for (int n = random.Next(1, 4); n > 0 && bad.Length > 8; n--)
            {
                int at = random.Next(8, bad.Length);
                if (random.Next(2) == 0)
                    bad[at] = (byte)random.Next(256);
                else if (at + 8 <= bad.Length)
                    BitConverter.TryWriteBytes(bad.AsSpan(at & ~7), ulong.MaxValue >> random.Next(64));
            }
            if (bad.Length > Checksum.Size)
            {
                Checksum sum = Checksum.Of(bad.AsSpan(0, bad.Length - Checksum.Size));
                BitConverter.TryWriteBytes(bad.AsSpan(bad.Length - 16), sum.High);
                BitConverter.TryWriteBytes(bad.AsSpan(bad.Length - 8), sum.Low);
            }
            try
            {
                PageMap map = PageMap.Parse(bad, SmallMachine.Bytes >> 12, "p");
                Assert.Equal(SmallMachine.Bytes >> 12, map.PageCount);
                Assert.Equal(map.CountOf(PageKind.Data), (ulong)map.Blocks().Sum(b => b.Pages));
            }
            catch (SnapshotException)
            {
                // As it should be.
            }
        }
    }

    // True: a machine came of it.
    private static async Task<bool> TryAsync(string directory, byte[] manifest, bool keep)
    {
        File.WriteAllBytes(Path.Combine(directory, "manifest.json"), manifest);
        try
        {
            Snapshot snapshot = Snapshot.Open(directory);
            snapshot.Verify();
            await using VirtualMachine machine = Machines.Restore(snapshot, "interpreter", verify: false);
            await machine.StartAsync();
            await machine.PauseAsync();
            await machine.ResumeAsync();
            await machine.StopAsync();
            return true;
        }
        catch (SnapshotException)
        {
            return false;
        }
        catch (Exception)
        {
            if (keep)
            {
                Directory.CreateDirectory(Corpus());
                File.WriteAllBytes(Path.Combine(Corpus(), $"{Checksum.Of(manifest)}.json"), manifest);
            }
            throw;
        }
    }

    private static string Corpus([CallerFilePath] string here = "") => Path.Combine(Path.GetDirectoryName(here)!, "corpus");

    // What stands behind a name, or alone in a list.
    [GeneratedRegex("""(?:": |^\s+)("[^"]*"|-?\d[\d.eE+-]*|true|false|null|\[\])(?=,?$)""", RegexOptions.Multiline)]
    private static partial Regex Value();
}
