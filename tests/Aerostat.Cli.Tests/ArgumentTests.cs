using Xunit;

namespace Aerostat.Cli.Tests;

/// <summary>Command lines that are wrong or only ask: exit status, and one line that says what, why and what to do.</summary>
public sealed class ArgumentTests
{
    private static (int Status, string Output, string Error) Run(params string[] args)
    {
        using StringWriter output = new(), error = new();
        int status = CommandTree.Invoke(args, output, error);
        return (status, output.ToString(), error.ToString());
    }

    /// <summary>Each verb is made alone when a command line begins with it, and is the same that the whole tree has.</summary>
    [Fact]
    public void EveryVerbIsTheCommandOfItsName()
    {
        Assert.Equal(CommandTree.Verbs, CommandTree.Create().Subcommands.Select(c => c.Name));
        foreach (string verb in CommandTree.Verbs)
            Assert.Contains($" {verb}", Run(verb, "--help").Output.Split("Usage:")[1], StringComparison.Ordinal);
    }

    public static TheoryData<string, string> Errors => new()
    {
        { "", "no command given" },
        { "fly", "'fly'" },
        { "run", "--kernel" },
        { "run --kernel", "--kernel" },
        { "run --nonsense", "'--nonsense'" },
        { "run --kernel k --memory", "--memory" },
        { "run --kernel k --memory lots", "'lots' is not a size" },
        { "run --kernel k --memory -1", "--memory" },
        { "run --kernel k --memory 99999999999999999999", "is not a size" },
        { "run --kernel k --memory 99999999999T", "64 bits" },
        { "run --kernel k --memory 1M", "too little" },
        { "run --kernel k --memory 512", "512M was probably meant" },
        { "demo --kernel k --busybox b --memory 2048", "2048M was probably meant" },
        { "run --kernel k --memory 0", "too little" },
        { "run --kernel k --memory 4T", "too much" },
        { "run --kernel k --memory 5000001", "multiple of 4096" },
        { "run --kernel k --cpus 0", "1 to 64" },
        { "run --kernel k --cpus 65", "1 to 64" },
        { "run --kernel k --cpus two", "'two' is not a number" },
        { "run --kernel k --accel xen", "there is no accelerator 'xen'" },
        { "run --kernel k --accel warp", "no accelerator 'warp'" },
        { "run --kernel k --cpu pentium", "no model 'pentium'" },
        { "run --kernel k --device hyperv-testdev", "needs --personality hyperv" },
        { "run --kernel k --device vsock", "later version" },
        { "run --kernel k --device teapot", "no device 'teapot'" },
        { "run --kernel k --device debug-exit,port=high", "not a port" },
        { "run --kernel k --device debug-exit,iobase=1", "unknown key" },
        { "run --kernel k --timeout 0", "--timeout" },
        { "run --kernel k --timeout soon", "--timeout" },
        { "run --kernel k --timeout 1000001", "up to 1000000" },
        { "run --kernel k --memory 1G --memory 2G", "--memory is there 2 times; give it once" },
        { "run --kernel k --stats", "--stats needs a value (FILE)" },
        { "run --kernel k --accel interpreter --perf-map", "translates nothing" },
        { "run --kernel k --accel translator --dump-blocks f,xyz", "'xyz' is not an address" },
        { "run --kernel k --accel translator --dump-blocks ,10", "--dump-blocks: the path is empty" },
        { "run --kernel k --accel translator --system-map m", "give that too" },
        { "run --kernel /dev/zero", "a device or a pipe" },
        { "run --kernel k --name a/b", "--name" },
        { "run --kernel k --disk d.img,format=vmdk", "no format" },
        { "run --kernel k --disk d.img,bus=ide", "there is no bus 'ide'" },
        { "run --kernel k --disk ,ro", "the path is empty" },
        { "run --kernel k --disk d.img,queues=17", "1 to 16" },
        { "run --kernel k --disk d.img,colour=red", "unknown key 'colour=red'" },
        { "run --kernel k --device rng,transport=usb", "pci or mmio" },
        { "run --kernel k --balloon target=1G", "cannot give 1G" },
        { "run --kernel k --balloon target=much", "'much' is not a size" },
        { "run --kernel k --balloon stats=0", "1 to 86400" },
        { "run --kernel k --personality hyperv --balloon spare=100M", "a multiple of 128M" },
        { "run --kernel k --personality hyperv --balloon spare=512M", "could not start" },
        { "run --kernel k --balloon spare=256M", "--personality hyperv" },
        { "run --kernel k --balloon size=3", "unknown key 'size=3'" },
        { "run --kernel k --gdb here", "'here' is no place to listen" },
        { "run --kernel k --gdb 70000", "a port (0..65535)" },
        { "run --kernel k --gdb-wait", "give --gdb PORT too" },
        { "run --kernel /nowhere/bzImage", "no such file" },
        { "completion tcsh", "tcsh" },
        { "bench boot --runs 0", "--runs" },
        { "bench", "bench" },
    };

    [Theory]
    [MemberData(nameof(Errors))]
    public void WrongUsageIsOneLineAndStatus2(string line, string expected)
    {
        (int status, string output, string error) = Run(line.Split(' ', StringSplitOptions.RemoveEmptyEntries));
        Assert.Equal(2, status);
        Assert.Equal("", output);
        Assert.Contains(expected, error, StringComparison.Ordinal);
        Assert.Single(error.TrimEnd('\n').Split('\n'));
        Assert.StartsWith("aerostat", error, StringComparison.Ordinal);
    }

    [Fact]
    public void AFileThatIsNoKernelIsRefusedWithAReason()
    {
        string file = Path.GetTempFileName();
        try
        {
            File.WriteAllText(file, "this is a text");
            (int status, _, string error) = Run("run", "--kernel", file);
            Assert.Equal(2, status);
            Assert.Contains(file, error, StringComparison.Ordinal);
            Assert.Single(error.TrimEnd('\n').Split('\n'));
        }
        finally
        {
            File.Delete(file);
        }
    }

    [Theory]
    [InlineData("/nowhere/stats.json")]
    [InlineData("/proc/stats.json")]
    [InlineData("/tmp")]
    [InlineData("")]
    public void StatisticsThatCannotBeWrittenAreRefusedBeforeTheBoot(string path)
    {
        string kernel = Path.GetTempFileName();
        try
        {
            File.WriteAllBytes(kernel, TinyKernel.Image(TinyKernel.Forever));
            (int status, _, string error) = Run("run", "--kernel", kernel, "--stats", path);
            Assert.Equal(2, status);
            Assert.Contains(path, error, StringComparison.Ordinal);
        }
        finally
        {
            File.Delete(kernel);
        }
    }

    [Theory]
    [InlineData("run")]
    [InlineData("demo")]
    [InlineData("doctor")]
    [InlineData("bench")]
    [InlineData("bench boot")]
    [InlineData("bench soak")]
    [InlineData("completion")]
    public void EveryVerbHasHelp(string verb)
    {
        (int status, string output, string error) = Run([.. verb.Split(' '), "--help"]);
        Assert.Equal(0, status);
        Assert.Contains("Usage:", output, StringComparison.Ordinal);
        Assert.Equal("", error);
    }

    [Fact]
    public void OptionsOfLaterVersionsAreNotInTheHelp() =>
        Assert.DoesNotContain("--net", Run("run", "--help").Output, StringComparison.Ordinal);

    [Fact]
    public void CpuHelpListsTheModels()
    {
        (int status, string output, _) = Run("run", "--cpu", "help");
        Assert.Equal(0, status);
        Assert.Contains("aerostat-v2-1", output, StringComparison.Ordinal);
        Assert.Contains("aerostat-v3-1", output, StringComparison.Ordinal);
        Assert.Contains("max", output, StringComparison.Ordinal);
    }

    [Fact]
    public void DeviceHelpListsTheDevices() =>
        Assert.Contains("debug-exit", Run("run", "--device", "help").Output, StringComparison.Ordinal);

    [Fact]
    public void DoctorSaysWhatAutoIs()
    {
        (int status, string output, _) = Run("doctor");
        Assert.Equal(0, status);
        Assert.Contains("--accel auto", output, StringComparison.Ordinal);
        Assert.Contains("interpreter", output, StringComparison.Ordinal);
        Assert.Contains("/dev/kvm", output, StringComparison.Ordinal);
    }

    [Fact]
    public void DoctorWritesJson()
    {
        using System.Text.Json.JsonDocument json = System.Text.Json.JsonDocument.Parse(Run("doctor", "--json").Output);
        // KVM where it runs guests at full speed, the translator elsewhere.
        System.Text.Json.JsonElement kvm = json.RootElement.GetProperty("kvm");
        Assert.Equal(kvm.GetProperty("verdict").GetString() == "usable" ? "kvm" : "translator", json.RootElement.GetProperty("auto").GetProperty("name").GetString());
        Assert.Equal(3, json.RootElement.GetProperty("accelerators").GetArrayLength());
        Assert.Equal(kvm.GetProperty("usable").GetBoolean(), json.RootElement.GetProperty("accelerators")[0].GetProperty("usable").GetBoolean());
        Assert.NotEmpty(kvm.GetProperty("explanation").GetString()!);
    }

    [Theory]
    [InlineData("bash", "complete ")]
    [InlineData("zsh", "bashcompinit")]
    [InlineData("fish", "complete -c aerostat")]
    public void CompletionKnowsVerbsAndOptions(string shell, string mark)
    {
        string script = Run("completion", shell).Output;
        Assert.Contains(mark, script, StringComparison.Ordinal);
        Assert.Contains("doctor", script, StringComparison.Ordinal);
        Assert.Contains("no-reboot", script, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("run --mem", "--memory")]
    [InlineData("run --accel tr", "translator")]
    [InlineData("run --accel = tr", "translator")]
    [InlineData("run --accel =", "auto kvm translator interpreter")]
    [InlineData("run --personality k", "kvm")]
    [InlineData("run --append --", "")]
    [InlineData("bench boot --ru", "--runs")]
    public void BashCompletes(string line, string expected)
    {
        string words = string.Join(' ', line.Split(' ').Prepend("aerostat"));
        string script = $"{Run("completion", "bash").Output}\nCOMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); COMPREPLY=(); _aerostat; echo \"${{COMPREPLY[*]}}\"\n";
        Assert.SkipUnless(File.Exists("/bin/bash"), "there is no bash");
        using System.Diagnostics.Process bash = System.Diagnostics.Process.Start(new System.Diagnostics.ProcessStartInfo("/bin/bash", ["--norc"])
        {
            RedirectStandardInput = true,
            RedirectStandardOutput = true,
        })!;
        bash.StandardInput.Write(script);
        bash.StandardInput.Close();
        Assert.Equal(expected, bash.StandardOutput.ReadToEnd().TrimEnd('\n'));
    }

    [Fact]
    public void AKernelCommandLineIsTakenAsItIs()
    {
        // No response files, no bundles: the error is about the kernel, not about the text.
        (_, _, string error) = Run("run", "--kernel", "/nowhere/k", "--append", "@file -x --memory=1");
        Assert.Contains("/nowhere/k", error, StringComparison.Ordinal);
    }
}
