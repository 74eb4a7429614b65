using System.Runtime.CompilerServices;

namespace Aerostat.Cpu.Tests;

/// <summary>
/// Keeps what random tests find: a failing case becomes a line of a file in the corpus folder of the source tree, which every later run
/// replays. Where there is no source tree, or it cannot be written, the folder next to the program takes it.
/// </summary>
/// <remarks>
/// One kind of case is one file name: <c>forms-*.txt</c> instructions against the host (in the form of <see cref="Corpus"/>),
/// <c>programs-*.txt</c> seeds of programs for the translator, <c>noise-*.txt</c> seeds of hostile guests. A line that begins with '#' says
/// what was seen.
/// </remarks>
internal sealed class CaseStore(string source, string beside)
{
    /// <summary>The one of this project.</summary>
    public static CaseStore Default { get; } = new(SourceFolder(), Path.Combine(AppContext.BaseDirectory, "corpus"));

    /// <summary>Saves a case unless it is there already. Answers a sentence that says where.</summary>
    /// <param name="kind">"forms", "programs" or "noise".</param>
    /// <param name="line">The case.</param>
    /// <param name="seen">What was seen; any text.</param>
    public string Save(string kind, string line, string seen)
    {
        if (Lines(kind).Any(l => l.Line == line))
            return "the corpus has it already";
        string comment = "# " + seen.ReplaceLineEndings(" ").Trim();
        foreach (string folder in (string[])[source, beside])
        {
            // The folder next to the program is made; a source tree is there or not.
            if (folder == source && !Directory.Exists(folder))
                continue;
            string file = Path.Combine(folder, $"{kind}-found.txt");
            try
            {
                Directory.CreateDirectory(folder);
                File.AppendAllLines(file, [comment, line]);
                return $"saved in {file}";
            }
            catch (Exception e) when (e is IOException or UnauthorizedAccessException)
            {
                // Perhaps the next one.
            }
        }
        return "could not be saved: add it to the corpus by hand";
    }

    /// <summary>All cases of a kind, with the names of their files; those of the source tree first.</summary>
    public IEnumerable<(string File, string Line)> Lines(string kind)
    {
        HashSet<string> known = new(StringComparer.Ordinal);
        foreach (string folder in (string[])[source, beside])
            if (Directory.Exists(folder))
                foreach (string file in Directory.EnumerateFiles(folder, $"{kind}-*.txt").Order(StringComparer.Ordinal))
                    foreach (string line in File.ReadAllLines(file))
                        if (line.Length > 0 && line[0] != '#' && known.Add(line))
                            yield return (Path.GetFileName(file), line);
    }

    private static string SourceFolder([CallerFilePath] string here = "") =>
        Path.Combine(Path.GetDirectoryName(Path.GetDirectoryName(here)) ?? "/", "corpus");
}
