using System.Text.RegularExpressions;
using Xunit;

namespace Aerostat.House.Tests;

/// <summary>The rules of CONTRIBUTING.md that can be read off the source text.</summary>
public sealed partial class SourceTests
{
    private static readonly string[] s_unsafeProjects = ["Aerostat.Platform", "Aerostat.Memory", "Aerostat.Cpu", "Aerostat.Kvm"];

    [Fact]
    public void FilesStayShort()
    {
        string[] tooLong = [.. Repository.SourceFiles("src", "guest").Select(f => (f, n: File.ReadLines(f).Count())).Where(f => f.n >= 800).Select(f => $"{Repository.Relative(f.f)}: {f.n} lines")];
        Assert.Empty(tooLong);
    }

    [Fact]
    public void FoldersAreOneLevelDeep()
    {
        string[] tooDeep = [.. Repository.SourceFiles("src").Select(Repository.Relative).Where(f => f.Split('/').Length > 4)];
        Assert.Empty(tooDeep);
    }

    [Fact]
    public void UnsafeStaysWhereItBelongs()
    {
        string[] found = [.. Repository.SourceFiles("src")
            .Where(f => !s_unsafeProjects.Contains(Repository.Relative(f).Split('/')[1]))
            .Where(f => File.ReadLines(f).Any(l => UnsafeWord().IsMatch(l) && !l.TrimStart().StartsWith("//", StringComparison.Ordinal)))
            .Select(Repository.Relative)];
        Assert.Empty(found);
    }

    [Fact]
    public void NothingIsLeftUnfinishedByItsOwnWord()
    {
        string[] found = [.. Repository.SourceFiles("src", "samples", "guest")
            .Where(f => UnfinishedWord().IsMatch(File.ReadAllText(f)))
            .Select(Repository.Relative)];
        Assert.Empty(found);
    }

    [Fact]
    public void NoMutableStaticFieldsOutsideConstants()
    {
        // Two machines in one process must not meet. [ThreadStatic] and caches would be found here too.
        string[] found = [.. Repository.SourceFiles("src")
            .SelectMany(f => File.ReadLines(f).Where(l => MutableStatic().IsMatch(l)).Select(l => $"{Repository.Relative(f)}: {l.Trim()}"))];
        Assert.Empty(found);
    }

    [GeneratedRegex(@"\bunsafe\b")]
    private static partial Regex UnsafeWord();

    [GeneratedRegex(@"\b(TODO|FIXME|HACK|NotImplementedException)\b")]
    private static partial Regex UnfinishedWord();

    [GeneratedRegex(@"^\s*(private|internal|public|protected)\s+static\s+(?!readonly|partial|extern|event|class|implicit|explicit|unsafe|async|ref|delegate)[\w<>\[\],?*. ]+\s+\w+\s*(=(?!>)[^;]*)?;\s*(//.*)?$")]
    private static partial Regex MutableStatic();
}
