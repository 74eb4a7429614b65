using Aerostat.Machine;
using Xunit;

namespace Aerostat.Cli.Tests;

/// <summary>The reader of unittests.cfg.</summary>
public sealed class UnitTestListTests : IDisposable
{
    private readonly string path = Path.GetTempFileName();

    public void Dispose() => File.Delete(path);

    [Fact]
    public void KeysAndParametersAreRead()
    {
        File.WriteAllText(path, """
            # a comment
            [plain]
            file = a.flat

            [full]
            file = b.flat
            smp = 2
            arch = x86_64
            accel = kvm
            timeout = 30
            groups = one two
            check = /sys/nothing=Y
            test_args = "x y"
            qemu_params = -cpu qemu64,+pcid,-x2apic,vendor=GenuineIntel -m 4g -device edu,addr=3 -M q35,vmport=on
            """);
        IReadOnlyList<UnitTest> tests = UnitTest.ReadAll(path);
        Assert.Equal(["plain", "full"], tests.Select(t => t.Name));
        Assert.Equal((1, 128UL << 20, "", null, null), (tests[0].Cpus, tests[0].MemoryBytes, tests[0].Arguments, tests[0].Timeout, tests[0].CpuModel));
        UnitTest full = tests[1];
        Assert.Equal(("b.flat", 2, "x86_64", "kvm", "x y"), (full.File, full.Cpus, full.Architecture, full.Accelerator, full.Arguments));
        Assert.Equal(TimeSpan.FromSeconds(30), full.Timeout);
        Assert.Equal(["one", "two"], full.Groups);
        Assert.Equal(("qemu64", 4UL << 30), (full.CpuModel, full.MemoryBytes));
        Assert.Equal(["+pcid", "-x2apic", "vendor=GenuineIntel"], full.CpuFlags);
        Assert.Equal(["edu"], full.Devices);
        Assert.Equal(["q35", "vmport=on"], full.Machine);
    }

    [Theory]
    [InlineData("kvm", 90, 30)]
    [InlineData("translator", 900, 300)]
    [InlineData("interpreter", 3600, 1200)]
    public void SoftwareProcessorsGetMoreTime(string accelerator, int usual, int own)
    {
        File.WriteAllText(path, "[a]\nfile = a.flat\n[b]\nfile = b.flat\ntimeout = 30\n");
        Assert.Equal([TimeSpan.FromSeconds(usual), TimeSpan.FromSeconds(own)], UnitTest.ReadAll(path).Select(t => UnitTestRunner.LimitOf(t, accelerator)));
    }

    [Fact]
    public void TheDateIsThatOfTheRun()
    {
        File.WriteAllText(path, "[a]\nfile = a.flat\ntest_args = \"100 `date +%s`\"\n");
        UnitTest test = Assert.Single(UnitTest.ReadAll(path));
        Assert.Equal("100 90", test.ArgumentsAt(DateTimeOffset.UnixEpoch.AddSeconds(90)));
        Assert.Equal("100 95", test.ArgumentsAt(DateTimeOffset.UnixEpoch.AddSeconds(95)));
    }

    [Theory]
    [InlineData("file = a.flat")]
    [InlineData("[a]\nnonsense")]
    [InlineData("[a]\nsmp = many")]
    public void WhatCannotBeReadNamesItsLine(string text)
    {
        File.WriteAllText(path, text);
        Assert.Contains($"{path}:", Assert.Throws<ConfigurationException>(() => UnitTest.ReadAll(path)).Message, StringComparison.Ordinal);
    }
}
