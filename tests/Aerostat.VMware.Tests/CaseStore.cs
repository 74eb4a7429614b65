using System.Runtime.CompilerServices;

namespace Aerostat.VMware.Tests;

/// <summary>
/// Keeps what the fuzzer finds: the seed of a failing case becomes a line of a file in this project's corpus folder, which every later run
/// replays. Where there is no source tree that can be written, the folder next to the program takes it.
/// </summary>
internal static class CaseStore
{
    public static string Save(string kind, string line, string seen)
    {
        foreach (string folder in Folders())
        {
            try
            {
                if (folder == SourceFolder() && !Directory.Exists(folder))
                    continue;
                Directory.CreateDirectory(folder);
                string file = Path.Combine(folder, $"{kind}-found.txt");
                File.AppendAllLines(file, ["# " + seen.ReplaceLineEndings(" ").Trim(), line]);
                return $"saved in {file}";
            }
            catch (Exception e) when (e is IOException or UnauthorizedAccessException)
            {
                // Perhaps the next one.
            }
        }
        return "could not be saved: add it to the corpus by hand";
    }

    public static IEnumerable<string> Lines(string kind) => Folders().Where(Directory.Exists)
        .SelectMany(f => Directory.EnumerateFiles(f, $"{kind}-*.txt").Order(StringComparer.Ordinal))
        .SelectMany(File.ReadAllLines).Where(l => l.Length > 0 && l[0] != '#').Distinct();

    private static IEnumerable<string> Folders() => [SourceFolder(), Path.Combine(AppContext.BaseDirectory, "corpus")];

    private static string SourceFolder([CallerFilePath] string here = "") => Path.Combine(Path.GetDirectoryName(here) ?? "/", "corpus");
}
