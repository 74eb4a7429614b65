using System.Xml.Linq;
using Xunit;

namespace Aerostat.House.Tests;

/// <summary>References between projects go downward only (ARCHITECTURE.md, Layers).</summary>
public sealed class LayerTests
{
    private static readonly Dictionary<string, int> s_layers = new()
    {
        ["Aerostat.Platform"] = 0,
        ["Aerostat.X86"] = 0,
        ["Aerostat.Memory"] = 1,
        ["Aerostat.Abstractions"] = 2,
        ["Aerostat.Cpu"] = 3,
        ["Aerostat.Kvm"] = 3,
        ["Aerostat.Storage"] = 3,
        ["Aerostat.Loader"] = 3,
        ["Aerostat.Chipset"] = 3,
        ["Aerostat.Virtio"] = 4,
        ["Aerostat.HyperV"] = 4,
        ["Aerostat.VMware"] = 4,
        ["Aerostat.Machine"] = 5,
        ["Aerostat.Migration"] = 6,
        ["Aerostat.Backup"] = 6,
        ["Aerostat.Debugger"] = 6,
        ["Aerostat.Snapshots"] = 6,
        ["Aerostat.Control"] = 7,
        ["Aerostat.Hosting"] = 8,
        ["Aerostat.Server"] = 9,
        ["Aerostat.Cli"] = 9,
    };

    /// <summary>Projects of one layer do not know each other either, so the wiring stays in one place.</summary>
    [Fact]
    public void ReferencesGoDownward()
    {
        foreach (string project in Repository.ProjectNames)
        {
            Assert.True(s_layers.ContainsKey(project), $"{project} has no layer: add it to ARCHITECTURE.md and to this test");
            foreach (string reference in Repository.References(project))
                Assert.True(s_layers[reference] < s_layers[project], $"{project} (layer {s_layers[project]}) references {reference} (layer {s_layers[reference]})");
        }
    }

    /// <summary>Only the composition root knows more than one kind of processor; the machine knows none.</summary>
    [Fact]
    public void OnlyHostingNamesProcessors()
    {
        foreach (string project in Repository.ProjectNames.Where(p => p is not ("Aerostat.Hosting" or "Aerostat.Cpu" or "Aerostat.Kvm")))
            Assert.DoesNotContain(Repository.References(project), r => r is "Aerostat.Cpu" or "Aerostat.Kvm");
    }

    /// <summary>A project outside the solution is built by nobody.</summary>
    [Fact]
    public void EveryProjectIsInTheSolution()
    {
        HashSet<string> listed = XDocument.Load(Path.Combine(Repository.Root, "Aerostat.slnx")).Descendants("Project")
            .Select(p => p.Attribute("Path")!.Value).ToHashSet();
        foreach (string folder in (string[])["src", "tests", "samples", "bench", "guest"])
        {
            string path = Path.Combine(Repository.Root, folder);
            if (Directory.Exists(path))
                foreach (string file in Directory.EnumerateFiles(path, "*.csproj", SearchOption.AllDirectories))
                    Assert.Contains(Repository.Relative(file), listed);
        }
    }
}
