using Aerostat.Hosting;
using Aerostat.Loader;
using Aerostat.Machine;
using Xunit;

namespace Aerostat.Boot.Tests;

/// <summary>What one boot of a whole system gave.</summary>
/// <param name="Exit">How the run ended.</param>
/// <param name="Console">What the guest wrote.</param>
/// <param name="Statistics">The machine's figures.</param>
internal sealed record BootOutcome(MachineExit Exit, string Console, MachineStatistics Statistics)
{
    /// <summary>Value of a line "NAME=value" that the init script printed.</summary>
    public string Value(string name) =>
        Console.Split('\n').Select(l => l.TrimEnd('\r')).LastOrDefault(l => l.StartsWith(name + "=", StringComparison.Ordinal))?[(name.Length + 1)..]
        ?? throw new InvalidOperationException($"the guest did not say {name}; its console ends with:\n{Tail}");

    /// <summary>The end of the console, for messages.</summary>
    public string Tail => string.Join('\n', Console.Split('\n').TakeLast(30));
}

/// <summary>What devices complain of, among what the guest says.</summary>
internal sealed class TranscriptLog(SerialTranscript console) : Aerostat.Devices.IDeviceLog
{
    public void Warn(string device, string message) => console.Append(System.Text.Encoding.UTF8.GetBytes($"\nDEVICE {device}: {message}\n"));
}

/// <summary>
/// Boots a stock Debian kernel with an init script that says what it sees and powers off. The kernels and busybox are those that
/// <c>./dev kernels</c> put into the cache; a test that cannot have them is skipped.
/// </summary>
internal static class Guest
{
    /// <summary>Printed by every init script when it has got to its end.</summary>
    public const string Done = "GUEST-DONE";

    private static readonly TimeSpan s_limit = TimeSpan.FromMinutes(10);

    private const string Facts = """
        #!/bin/sh
        export PATH=/bin
        mount -t proc proc /proc
        mount -t sysfs sysfs /sys
        mount -t devtmpfs dev /dev
        echo CPUS=$(grep -c ^processor /proc/cpuinfo)
        echo MEMORY=$(awk '/^MemTotal/ { print $2 }' /proc/meminfo)
        echo CLOCK=$(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)
        echo RELEASE=$(uname -r)
        echo SHA=$(seq 1 2000 | sha256sum | cut -c1-16)

        """;

    /// <summary>Where <c>./dev</c> puts what it fetches.</summary>
    public static string Cache => Path.Combine(
        Environment.GetEnvironmentVariable("XDG_CACHE_HOME") is { Length: > 0 } cache ? cache : Path.Combine(Environment.GetEnvironmentVariable("HOME") ?? "/", ".cache"),
        "aerostat");

    /// <summary>Boots and waits for the end. Skips the test when the kernel is not there.</summary>
    /// <param name="kernel">"cloud" or "generic".</param>
    /// <param name="append">More of the command line.</param>
    /// <param name="cpus">vCPUs.</param>
    /// <param name="memory">Bytes.</param>
    /// <param name="script">What the guest does besides telling facts; a shell script.</param>
    /// <param name="modules">Kernel modules to load before.</param>
    /// <param name="companion">Runs beside the guest.</param>
    /// <param name="accelerator">Which processor.</param>
    /// <param name="devices">Devices besides those of every PC.</param>
    /// <param name="personality">Which hypervisor the guest sees.</param>
    /// <param name="files">More files of the initramfs.</param>
    public static async Task<BootOutcome> BootAsync(
        string kernel = "cloud", string append = "", int cpus = 1, ulong memory = 512UL << 20, string script = "", string[]? modules = null, Func<VirtualMachine, SerialTranscript, Task>? companion = null, string accelerator = "interpreter",
        IReadOnlyList<DeviceOptions>? devices = null, string personality = "kvm", IReadOnlyList<InitramfsFile>? files = null, bool reboots = false)
    {
        return await RunAsync(kernel, append, cpus, memory, accelerator, new KernelBootOptions("") { InitrdBytes = Initramfs(kernel, Busybox(), script, modules ?? [], files) }, companion, devices, personality, reboots: reboots);
    }

    /// <summary>As <see cref="BootAsync"/>, with an initramfs of the caller's; of <paramref name="initrd"/> only that is used.</summary>
    public static async Task<BootOutcome> RunAsync(
        string kernel, string append, int cpus, ulong memory, string accelerator, KernelBootOptions initrd, Func<VirtualMachine, SerialTranscript, Task>? companion = null,
        IReadOnlyList<DeviceOptions>? devices = null, string personality = "kvm", TimeSpan? limit = null, bool reboots = false)
    {
        string path = Image(kernel);
        SerialTranscript console = new();
        VirtualMachine machine = Machines.Create(new MachineOptions
        {
            MemoryBytes = memory,
            Cpus = cpus,
            Accelerator = accelerator,
            Personality = personality,
            NoReboot = !reboots,
            Serial = console.Append,
            Devices = devices ?? [],
            DeviceLog = new TranscriptLog(console),
            Boot = new KernelBootOptions(path)
            {
                Initrd = initrd.Initrd,
                InitrdBytes = initrd.InitrdBytes,
                CommandLine = $"console=ttyS0 panic=-1 {append}".TrimEnd(),
            },
        });
        await using (machine)
        {
            await machine.StartAsync();
            Task beside = companion is null ? Task.CompletedTask : GoAlongAsync(companion, machine, console);
            MachineExit exit = await machine.WaitForExitAsync(limit ?? s_limit);
            console.Close();
            await beside;
            return new BootOutcome(exit, console.Text, machine.GetStatistics());
        }
    }

    // A test that fails on the way does not wait for its guest's end.
    private static async Task GoAlongAsync(Func<VirtualMachine, SerialTranscript, Task> companion, VirtualMachine machine, SerialTranscript console)
    {
        try
        {
            await companion(machine, console);
        }
        catch
        {
            await machine.StopAsync();
            throw;
        }
    }

    /// <summary>A static busybox; skips the test when there is none.</summary>
    public static string Busybox()
    {
        string busybox = Path.Combine(Cache, "busybox", "bin", "busybox");
        Assert.SkipUnless(File.Exists(busybox), $"no static busybox at {busybox}: './dev kernels' fetches it, and could not");
        return busybox;
    }

    /// <summary>A stock kernel, "cloud" or "generic"; skips the test when there is none.</summary>
    public static string Image(string kernel)
    {
        string boot = Path.Combine(Cache, kernel, "boot");
        string? path = Directory.Exists(boot) ? Directory.EnumerateFiles(boot, "vmlinuz-*").Order(StringComparer.Ordinal).LastOrDefault() : null;
        Assert.SkipWhen(path is null, $"no stock {kernel} kernel in {boot}: './dev kernels' fetches it, and could not");
        return path!;
    }

    /// <summary>Waits until the guest has written a text.</summary>
    public static async Task ReachAsync(VirtualMachine machine, SerialTranscript console, string text, TimeSpan limit)
    {
        Task found = console.WaitForAsync(text, TestContext.Current.CancellationToken);
        Task over = await Task.WhenAny(found, machine.Exit, Task.Delay(limit, TestContext.Current.CancellationToken));
        Assert.True(over == found, $"the guest did not get to '{text}':\n{console.Text}");
    }

    /// <summary>The guest got to its end and powered off by itself.</summary>
    public static void AssertPoweredOff(BootOutcome outcome)
    {
        Assert.True(outcome.Exit.Kind == MachineExitKind.PoweredOff, $"{outcome.Exit.Kind}: {outcome.Exit.Report}\n{outcome.Tail}");
        Assert.True(outcome.Console.Contains(Done, StringComparison.Ordinal), $"the init script did not get to its end:\n{outcome.Tail}");
        foreach (string trouble in (string[])["Kernel panic", "BUG:", "WARNING:", "Oops", "soft lockup", "rcu_sched detected", "Call Trace"])
            Assert.DoesNotContain(trouble, outcome.Console, StringComparison.Ordinal);
        // What the host computes for the same input.
        Assert.Equal(ExpectedHash, outcome.Value("SHA"));
    }

    private static string ExpectedHash { get; } = Convert.ToHexStringLower(System.Security.Cryptography.SHA256.HashData(
        System.Text.Encoding.ASCII.GetBytes(string.Concat(Enumerable.Range(1, 2000).Select(i => $"{i}\n")))))[..16];

    internal static byte[] Initramfs(string kernel, string busybox, string script, string[] modules, IReadOnlyList<InitramfsFile>? files = null)
    {
        string? folder = null;
        if (modules.Length > 0)
        {
            folder = ((string[])["lib/modules", "usr/lib/modules"]).Select(f => Path.Combine(Cache, kernel, f)).Where(Directory.Exists)
                .SelectMany(f => Directory.EnumerateDirectories(f)).Order(StringComparer.Ordinal).LastOrDefault();
            Assert.SkipWhen(folder is null, $"no modules of the stock {kernel} kernel in {Cache}");
        }
        using MemoryStream archive = new();
        new InitramfsBuilder
        {
            BusyboxPath = busybox,
            InitScript = $"{Facts}{script}\necho {Done}\npoweroff -f\n",
            Modules = folder is null ? null : KernelModules.Open(folder),
            ModuleNames = modules,
            ExtraFiles = files ?? [],
        }.Build(archive);
        return archive.ToArray();
    }
}
