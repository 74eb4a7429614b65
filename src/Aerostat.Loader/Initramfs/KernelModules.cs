using System.Text;

namespace Aerostat.Loader;

/// <summary>
/// The modules of one kernel: lib/modules/RELEASE as a package has it. Dependencies come from modules.dep when depmod has run, else
/// from each module's own .modinfo section.
/// </summary>
public sealed class KernelModules
{
    private const int LargestModule = 64 << 20;

    private static readonly string[] Suffixes = [".ko", ".ko.xz", ".ko.zst", ".ko.gz"];

    private readonly Dictionary<string, string> pathOf = new(StringComparer.Ordinal);
    private readonly Dictionary<string, string[]>? dependencies;
    private readonly HashSet<string> builtIn = new(StringComparer.Ordinal);

    private KernelModules(string root, Dictionary<string, string[]>? dependencies)
    {
        Root = root;
        this.dependencies = dependencies;
    }

    /// <summary>The directory lib/modules/RELEASE on the host.</summary>
    public string Root { get; }

    /// <summary>The kernel's release: the last part of <see cref="Root"/>.</summary>
    public string Release => Path.GetFileName(Root);

    /// <summary>Reads what modules there are.</summary>
    /// <exception cref="BootException">There is no such directory, or it cannot be read.</exception>
    public static KernelModules Open(string directory)
    {
        ArgumentNullException.ThrowIfNull(directory);
        string root = Path.TrimEndingDirectorySeparator(Path.GetFullPath(directory));
        try
        {
            string list = Path.Combine(root, "modules.dep");
            KernelModules modules = File.Exists(list) ? FromDependencyList(root, list) : FromFiles(root);
            string builtInList = Path.Combine(root, "modules.builtin");
            if (File.Exists(builtInList))
                modules.builtIn.UnionWith(File.ReadLines(builtInList).Select(NameOf));
            return modules;
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            throw new BootException($"could not read kernel modules in {directory}: {BootFile.OneLine(e)}; give the lib/modules/RELEASE of the kernel", e);
        }
    }

    /// <summary>Name of a module as the kernel says it: file name without suffix, dashes as underscores.</summary>
    public static string NameOf(string path)
    {
        ArgumentNullException.ThrowIfNull(path);
        string file = path[(path.LastIndexOf('/') + 1)..];
        foreach (string suffix in Suffixes)
            if (file.EndsWith(suffix, StringComparison.Ordinal))
                file = file[..^suffix.Length];
        return file.Replace('-', '_');
    }

    /// <summary>
    /// The modules and all they depend on, each once and after what it needs, as paths relative to <see cref="Root"/>. Names that are
    /// built into the kernel are left out.
    /// </summary>
    /// <exception cref="BootException">A module is neither there nor built in, or dependencies go in a circle.</exception>
    public IReadOnlyList<string> LoadOrder(IEnumerable<string> names)
    {
        ArgumentNullException.ThrowIfNull(names);
        List<string> order = [];
        Dictionary<string, bool> state = new(StringComparer.Ordinal); // false: being visited, true: placed
        foreach (string name in names)
            Visit(NameOf(name), null);
        return order;

        void Visit(string name, string? neededBy)
        {
            if (state.TryGetValue(name, out bool placed))
            {
                if (!placed)
                    throw new BootException($"kernel module {name} depends on itself in {Root}; run depmod again");
                return;
            }
            if (!pathOf.TryGetValue(name, out string? path))
            {
                if (builtIn.Contains(name))
                    return;
                throw new BootException($"kernel module {name}{(neededBy is null ? "" : $", which {neededBy} needs,")} is neither in {Root} nor built in; leave it out or give another kernel");
            }
            state[name] = false;
            foreach (string needed in DependenciesOf(name, path))
                Visit(needed, name);
            state[name] = true;
            order.Add(path);
        }
    }

    /// <summary>Names a module needs directly (or, from modules.dep, at any depth).</summary>
    public IReadOnlyList<string> DependenciesOf(string name)
    {
        string key = NameOf(name);
        return pathOf.TryGetValue(key, out string? path)
            ? DependenciesOf(key, path)
            : throw new BootException($"kernel module {key} is not in {Root}; check its name");
    }

    private string[] DependenciesOf(string name, string path) =>
        dependencies is not null ? dependencies.GetValueOrDefault(name, []) : ReadModuleInformation(Path.Combine(Root, path));

    private static KernelModules FromDependencyList(string root, string list)
    {
        Dictionary<string, string[]> needs = new(StringComparer.Ordinal);
        KernelModules modules = new(root, needs);
        foreach (string line in File.ReadLines(list))
        {
            int colon = line.IndexOf(':');
            if (colon <= 0)
                continue;
            string name = NameOf(line[..colon]);
            modules.pathOf[name] = line[..colon];
            needs[name] = [.. line[(colon + 1)..].Split(' ', StringSplitOptions.RemoveEmptyEntries).Select(NameOf).Reverse()];
        }
        return modules;
    }

    private static KernelModules FromFiles(string root)
    {
        KernelModules modules = new(root, null);
        foreach (string file in Directory.EnumerateFiles(root, "*.ko*", SearchOption.AllDirectories).Order(StringComparer.Ordinal))
            if (Suffixes.Any(s => file.EndsWith(s, StringComparison.Ordinal)))
                modules.pathOf[NameOf(file)] = Path.GetRelativePath(root, file);
        return modules;
    }

    // .modinfo is a run of "key=value" texts with zero bytes between; "depends=" lists names by comma.
    private static string[] ReadModuleInformation(string path)
    {
        if (!path.EndsWith(".ko", StringComparison.Ordinal))
            throw new BootException($"kernel module {path} is compressed and there is no modules.dep; run depmod for that directory");
        try
        {
            if (new FileInfo(path).Length > LargestModule)
                throw new BootException($"kernel module {path} is larger than 64 MiB; leave it out");
            ReadOnlySpan<byte> all = File.ReadAllBytes(path);
            ReadOnlySpan<byte> key = "\0depends="u8;
            int at = all.IndexOf(key);
            if (at < 0)
                return [];
            ReadOnlySpan<byte> value = all[(at + key.Length)..];
            int end = value.IndexOf((byte)0);
            return end <= 0 ? [] : [.. Encoding.ASCII.GetString(value[..end]).Split(',', StringSplitOptions.RemoveEmptyEntries).Select(NameOf)];
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            throw new BootException($"could not read kernel module {path}: {BootFile.OneLine(e)}; unpack the kernel package again", e);
        }
    }
}
