using System.Text;
using Aerostat.Loader;
using Xunit;

namespace Aerostat.Boot.Tests;

/// <summary>Guests whose user space is real programs, unpacked from Debian's packages, as an initramfs.</summary>
internal static class ProgramGuest
{
    /// <summary>Lines of an /init that load the modules.</summary>
    public const string LoadModules = "while read -r m; do busybox insmod $m || echo FAILED=$m; done < /modules/order";

    /// <summary>Writes the archive.</summary>
    /// <param name="path">Where.</param>
    /// <param name="script">/init.</param>
    /// <param name="roots">Folders with the programs; they become one tree.</param>
    /// <param name="modules">Modules of the stock cloud kernel, for <see cref="LoadModules"/>.</param>
    /// <param name="files">Further files.</param>
    public static async Task WriteInitramfsAsync(string path, string script, IReadOnlyList<string> roots, IReadOnlyList<string>? modules = null, IReadOnlyList<InitramfsFile>? files = null)
    {
        await using FileStream file = new(path, FileMode.Create, FileAccess.Write, FileShare.None, 1 << 20);
        CpioArchive archive = new(file);
        archive.AddFile("init", Encoding.UTF8.GetBytes(script.Replace("\r", "", StringComparison.Ordinal) + "\n"), 0x1ED);
        foreach (string folder in (string[])["dev", "proc", "sys", "tmp", "run", "mnt", "modules"])
            archive.AddDirectory(folder);
        if (modules is not null)
            AddModules(archive, modules);
        archive.AddCharacterDevice("dev/console", 5, 1);
        foreach (string root in roots)
            archive.AddTree(root);
        foreach (InitramfsFile extra in files ?? [])
            archive.AddFile(extra.Path, await File.ReadAllBytesAsync(extra.Source, TestContext.Current.CancellationToken), extra.Executable ? 0x1ED : 0x1A4);
        archive.Finish();
    }

    private static void AddModules(CpioArchive archive, IReadOnlyList<string> names)
    {
        KernelModules kernel = KernelModules.Open(Directory.EnumerateDirectories(Path.Combine(Guest.Cache, "cloud", "lib", "modules")).Order(StringComparer.Ordinal).Last());
        StringBuilder order = new();
        foreach (string path in kernel.LoadOrder(names))
        {
            string name = $"modules/{Path.GetFileName(path)}";
            archive.AddFile(name, File.ReadAllBytes(Path.Combine(kernel.Root, path)));
            order.Append('/').Append(name).Append('\n');
        }
        archive.AddFile("modules/order", Encoding.UTF8.GetBytes(order.ToString()));
    }
}
