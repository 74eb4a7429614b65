using System.Runtime.CompilerServices;

namespace Aerostat.Virtio.Tests;

/// <summary>
/// Keeps what the fuzzer finds: the seed of a failing case becomes a line of a file in the corpus folder beside the test, which every later run
/// replays. Where there is no source tree that can be written, the folder next to the program takes it.
/// </summary>
internal static class CaseStore
{
    public static string Save(string kind, string line, string seen, [CallerFilePath] string test = "")
    {
        foreach (string folder in Folders(test))
        {
            try
            {
                if (folder == SourceFolder(test) && !Directory.Exists(folder))
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

    public static IEnumerable<string> Lines(string kind, [CallerFilePath] string test = "") => Folders(test).Where(Directory.Exists)
        .SelectMany(f => Directory.EnumerateFiles(f, $"{kind}-*.txt").Order(StringComparer.Ordinal))
        .SelectMany(File.ReadAllLines).Where(l => l.Length > 0 && l[0] != '#').Distinct();

    private static IEnumerable<string> Folders(string test) => [SourceFolder(test), Path.Combine(AppContext.BaseDirectory, "corpus")];

    private static string SourceFolder(string test) => Path.Combine(Path.GetDirectoryName(test) ?? "/", "corpus");
}
