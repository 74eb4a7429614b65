using System.Text;

namespace Aerostat.Loader.Tests;

/// <summary>The demo initramfs and its kernel modules.</summary>
public sealed class InitramfsBuilderTests
{
    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void ModulesComeAfterWhatTheyNeed(bool withDependencyList)
    {
        using Tools.Scratch scratch = new();
        string root = Modules(scratch, withDependencyList);
        KernelModules modules = KernelModules.Open(root);
        Assert.Equal("6.1.0-x", modules.Release);
        Assert.Equal(["kernel/a/base.ko", "kernel/b/mid-dle.ko", "kernel/top.ko"], modules.LoadOrder(["top"]));
        Assert.Equal(["kernel/a/base.ko", "kernel/b/mid-dle.ko"], modules.LoadOrder(["mid_dle", "base", "mid-dle"]));
        Assert.Equal([], modules.LoadOrder(["inside"]));
        Assert.Contains("absent", Assert.Throws<BootException>(() => modules.LoadOrder(["absent"])).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void CirclesAndMissingDependenciesAreBootExceptions()
    {
        using Tools.Scratch scratch = new();
        scratch.File("m/a.ko", Module("b"));
        scratch.File("m/b.ko", Module("c"));
        scratch.File("m/c.ko", Module("a"));
        scratch.File("m/d.ko", Module("nowhere"));
        scratch.File("m/e.ko.xz", [1]);
        KernelModules modules = KernelModules.Open(Path.Combine(scratch.Path, "m"));
        Assert.Contains("itself", Assert.Throws<BootException>(() => modules.LoadOrder(["a"])).Message, StringComparison.Ordinal);
        Assert.Contains("which d needs", Assert.Throws<BootException>(() => modules.LoadOrder(["d"])).Message, StringComparison.Ordinal);
        Assert.Contains("depmod", Assert.Throws<BootException>(() => modules.LoadOrder(["e"])).Message, StringComparison.Ordinal);
        Assert.Throws<BootException>(() => KernelModules.Open(Path.Combine(scratch.Path, "absent")));
    }

    [Fact]
    public void ArchiveHoldsInitBusyboxModulesAndExtras()
    {
        Tools.Require("cpio", "cpio");
        using Tools.Scratch scratch = new();
        byte[] busybox = [.. Enumerable.Range(0, 100_000).Select(i => (byte)i)];
        InitramfsBuilder builder = new()
        {
            BusyboxPath = scratch.File("in/busybox", busybox),
            InitScript = "#!/bin/sh\nexec sh\n",
            Modules = KernelModules.Open(Modules(scratch, withDependencyList: false)),
            ModuleNames = ["top", "inside"],
            ExtraFiles = [new("etc/motd", scratch.File("in/motd", "hi"u8.ToArray()), false)],
        };
        string archive = Path.Combine(scratch.Path, "out.cpio");
        builder.Build(archive);
        builder.Build(archive); // replaces
        Assert.Equal(["in", "lib", "out.cpio"], Directory.EnumerateFileSystemEntries(scratch.Path).Select(Path.GetFileName).Order(StringComparer.Ordinal));

        string tree = Directory.CreateDirectory(Path.Combine(scratch.Path, "tree")).FullName;
        // Device nodes need root; the rest does not.
        (int status, string output) = Tools.Run(tree, "cpio", ["-i", "--quiet", "-f", "dev/*"], File.ReadAllBytes(archive));
        Assert.True(status == 0, output);
        Assert.Equal("#!/bin/sh\nexec sh\n", File.ReadAllText(Path.Combine(tree, "init")));
        Assert.True((File.GetUnixFileMode(Path.Combine(tree, "init")) & UnixFileMode.UserExecute) != 0);
        Assert.Equal(busybox, File.ReadAllBytes(Path.Combine(tree, "bin/busybox")));
        Assert.Equal("busybox", new FileInfo(Path.Combine(tree, "bin/sh")).LinkTarget);
        Assert.Equal("hi", File.ReadAllText(Path.Combine(tree, "etc/motd")));
        string root = Path.Combine(tree, "lib/modules/6.1.0-x");
        Assert.Equal(
            "kernel/a/base.ko:\nkernel/b/mid-dle.ko: kernel/a/base.ko\nkernel/top.ko: kernel/b/mid-dle.ko kernel/a/base.ko\n",
            File.ReadAllText(Path.Combine(root, "modules.dep")));
        foreach (string line in File.ReadLines(Path.Combine(tree, "etc/modules")))
            Assert.True(File.Exists(tree + line), line);
    }

    [Fact]
    public void WhatIsMissingIsSaidAndNothingIsLeftBehind()
    {
        using Tools.Scratch scratch = new();
        string archive = Path.Combine(scratch.Path, "out.cpio");
        InitramfsBuilder builder = new() { BusyboxPath = Path.Combine(scratch.Path, "absent"), InitScript = "" };
        Assert.Contains("absent", Assert.Throws<BootException>(() => builder.Build(archive)).Message, StringComparison.Ordinal);
        Assert.Empty(Directory.EnumerateFileSystemEntries(scratch.Path));
        InitramfsBuilder fine = new() { BusyboxPath = scratch.File("busybox", [1]), InitScript = "" };
        Assert.Contains("could not write", Assert.Throws<BootException>(() => fine.Build(Path.Combine(scratch.Path, "no", "place"))).Message, StringComparison.Ordinal);
        Assert.Contains("no module directory", Assert.Throws<BootException>(() => new InitramfsBuilder { BusyboxPath = "", InitScript = "", ModuleNames = ["x"] }.Build(Stream.Null)).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void RealModulesFindWhatTheyNeed()
    {
        string modules = Path.Combine(Tools.DebianKernelPackage(), "lib", "modules");
        Assert.SkipUnless(Directory.Exists(modules), $"no kernel modules in {modules}");
        KernelModules real = KernelModules.Open(Directory.EnumerateDirectories(modules).First());
        List<string> order = [.. real.LoadOrder(["virtio_balloon", "virtio_mmio", "virtio_blk"]).Select(KernelModules.NameOf)];
        foreach (string name in order)
            foreach (string needed in real.DependenciesOf(name))
                Assert.True(order.IndexOf(needed) < order.IndexOf(name), $"{name} before {needed}");
        Assert.Contains("virtio_balloon", order);
    }

    private static string Modules(Tools.Scratch scratch, bool withDependencyList)
    {
        scratch.File("lib/modules/6.1.0-x/kernel/a/base.ko", Module(""));
        scratch.File("lib/modules/6.1.0-x/kernel/b/mid-dle.ko", Module("base,inside"));
        scratch.File("lib/modules/6.1.0-x/kernel/top.ko", Module("mid-dle"));
        scratch.File("lib/modules/6.1.0-x/modules.builtin", Encoding.ASCII.GetBytes("kernel/inside.ko\n"));
        if (withDependencyList)
            scratch.File("lib/modules/6.1.0-x/modules.dep", Encoding.ASCII.GetBytes("kernel/top.ko: kernel/b/mid-dle.ko kernel/a/base.ko\nkernel/b/mid-dle.ko: kernel/a/base.ko\nkernel/a/base.ko:\n"));
        return Path.Combine(scratch.Path, "lib/modules/6.1.0-x") + "/";
    }

    private static byte[] Module(string depends) => Encoding.ASCII.GetBytes($"\u007FELF....\0license=GPL\0depends={depends}\0name=x\0");
}
