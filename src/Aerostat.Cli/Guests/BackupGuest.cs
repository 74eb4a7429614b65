using System.Globalization;
using Aerostat.Hosting;
using Aerostat.Loader;
using Aerostat.Machine;

namespace Aerostat.Cli;

/// <summary>
/// A stock guest with Debian's hv_vss_daemon whose writers keep an ext4 on each of its disks busy, for demo, benchmark and soak of backups. A line is on the
/// disk's log before it is said on the console.
/// </summary>
internal sealed class BackupGuest : IAsyncDisposable
{
    private static readonly TimeSpan s_limit = TimeSpan.FromMinutes(10);
    private static readonly string[] s_modules = ["hv_utils", "virtio_pci", "virtio_blk"];

    private BackupGuest(VirtualMachine machine, SerialTranscript console)
    {
        Machine = machine;
        Console = console;
    }

    public VirtualMachine Machine { get; }

    public SerialTranscript Console { get; }

    /// <summary>The latest line that the guest has on its disks, by its own word.</summary>
    public long Written => Console.Text.Split('\n').Where(l => l.EndsWith('\r')).Select(l => l.Trim()).LastOrDefault(l => l.StartsWith("WROTE=", StringComparison.Ordinal)) is { } line
        ? long.Parse(line[6..], CultureInfo.InvariantCulture)
        : 0;

    // Files come, grow, are copied and go; the log grows by a line at a time.
    private static string Script(int disks, string prepare) => $$"""
        #!/bin/sh
        export PATH=/bin
        mount -t proc proc /proc
        mount -t sysfs sysfs /sys
        mount -t devtmpfs dev /dev
        mkdir -p /var/lib
        while read -r m; do insmod $m || echo FAILED=$m; done < /etc/modules
        {{string.Join('\n', Enumerable.Range(0, disks).Select(i => $"mkdir -p /d{i}; mount -t ext4 -o noinit_itable /dev/vd{(char)('a' + i)} /d{i} || echo FAILED=mount{i}"))}}
        {{prepare}}
        while [ ! -e /dev/vmbus/hv_vss ]; do sleep 0.1; done
        hv_kvp_daemon -n &
        hv_vss_daemon -n &
        until dmesg | grep -q 'VSS: userspace daemon'; do sleep 0.1; done
        noise() {
            k=0
            while :; do
                k=$((k + 1))
                dd if=/dev/urandom of=$1/noise.$((k % 5)) bs=64k count=$((k % 7 + 1)) 2> /dev/null
                cp $1/noise.$((k % 5)) $1/copy.$((k % 3)); rm -f $1/noise.$(((k + 2) % 5))
                sleep 0.05
            done
        }
        {{string.Join('\n', Enumerable.Range(0, disks).Select(i => $"noise /d{i} &"))}}
        echo GUEST-READY
        n=0
        while :; do
            n=$((n + 1))
            {{string.Join("; ", Enumerable.Range(0, disks).Select(i => $"echo $n >> /d{i}/log; sync /d{i}/log"))}}
            echo WROTE=$n
            sleep 0.02
        done

        """;

    /// <summary>Makes sparse images with an empty ext4 each.</summary>
    /// <exception cref="ConfigurationException">The host has no mkfs.ext4.</exception>
    public static async Task MakeDisksAsync(IEnumerable<(string Path, ulong Bytes)> disks, CancellationToken cancellation)
    {
        string format = FindTool("mkfs.ext4") ?? throw new ConfigurationException("the host has no mkfs.ext4 to make a disk with; install e2fsprogs");
        foreach ((string path, ulong bytes) in disks)
        {
            using (FileStream file = File.Create(path))
                file.SetLength((long)bytes);
            ChildRun run = await ChildRun.StartAsync(format, ["-q", "-F", path], s_limit, cancellation).ConfigureAwait(false);
            if (run.ExitCode != 0)
                throw new HostException($"mkfs.ext4 failed: {run.Output.Trim().ReplaceLineEndings(" ")}");
        }
    }

    /// <summary>A program of e2fsprogs, which ordinary users do not have in their path; null: it is not installed.</summary>
    public static string? FindTool(string name) => ((string[])["/usr/sbin", "/sbin", "/usr/bin", "/bin"]).Select(f => Path.Combine(f, name)).FirstOrDefault(File.Exists);

    /// <summary>Boots it, and waits until its writers are at work.</summary>
    /// <param name="kernel">Kernel.</param>
    /// <param name="busybox">A static busybox.</param>
    /// <param name="options">Memory, vCPUs and accelerator.</param>
    /// <param name="disks">The images.</param>
    /// <param name="prepare">Shell commands once the disks are mounted at /d0, ...</param>
    /// <param name="cancellation">Gives up.</param>
    /// <exception cref="HostException">It does not come up.</exception>
    public static async Task<BackupGuest> StartAsync(string kernel, string busybox, MachineOptions options, IReadOnlyList<string> disks, string prepare, CancellationToken cancellation)
    {
        using MemoryStream archive = new();
        new InitramfsBuilder
        {
            BusyboxPath = busybox,
            InitScript = Script(disks.Count, prepare),
            Modules = StockKernel.Modules(null, kernel) ?? throw new ConfigurationException("the modules of this kernel are not at hand; use the kernel that './dev kernels' fetches"),
            ModuleNames = s_modules,
            ExtraFiles = StockKernel.HyperVDaemons(),
        }.Build(archive);
        SerialTranscript console = new(1 << 20);
        VirtualMachine machine = Machines.Create(options with
        {
            Personality = "hyperv",
            NoReboot = true,
            Serial = console.Append,
            Devices = [.. disks.Select(d => new DiskOptions(d))],
            Boot = new KernelBootOptions(kernel) { InitrdBytes = archive.ToArray(), CommandLine = "console=ttyS0 panic=-1 quiet" },
        });
        BackupGuest guest = new(machine, console);
        try
        {
            await machine.StartAsync().ConfigureAwait(false);
            await guest.WaitAsync("WROTE=3\r", cancellation).ConfigureAwait(false);
            if (console.Text.Contains("FAILED=", StringComparison.Ordinal))
                throw new HostException($"the guest could not do something: {console.Text[console.Text.IndexOf("FAILED=", StringComparison.Ordinal)..].Split('\n')[0].Trim()}");
            return guest;
        }
        catch
        {
            await guest.DisposeAsync().ConfigureAwait(false);
            throw;
        }
    }

    /// <summary>Waits for the guest to have written more.</summary>
    public Task WriteMoreAsync(int lines, CancellationToken cancellation) => WaitAsync($"WROTE={Written + lines}\r", cancellation);

    private async Task WaitAsync(string text, CancellationToken cancellation)
    {
        Task<bool> found = Console.WaitForAsync(text, cancellation);
        if (await Task.WhenAny(found, Machine.Exit, Task.Delay(s_limit, cancellation)).ConfigureAwait(false) != found || !await found.ConfigureAwait(false))
            throw new HostException($"the guest does not go on; its console ends with: {Console.Text[^Math.Min(Console.Text.Length, 300)..].ReplaceLineEndings(" | ")}");
    }

    /// <summary>
    /// Checks a restored disk: clean for e2fsck without a journal replay, and its log whole from the first line on. Answers the number of lines, or what is wrong.
    /// </summary>
    public static async Task<(long Lines, string? Wrong)> CheckAsync(string image, CancellationToken cancellation)
    {
        if (FindTool("e2fsck") is not { } check || FindTool("debugfs") is not { } debug)
            throw new ConfigurationException("the host has no e2fsck and debugfs to check an image with; install e2fsprogs");
        ChildRun run = await ChildRun.StartAsync(check, ["-f", "-n", image], s_limit, cancellation).ConfigureAwait(false);
        if (run.ExitCode != 0 || run.Output.Contains("recover", StringComparison.OrdinalIgnoreCase))
            return (0, $"e2fsck -fn ends with status {run.ExitCode}: {run.Output.Trim().ReplaceLineEndings(" | ")}");
        ChildRun log = await ChildRun.StartAsync(debug, ["-R", "cat /log", image], s_limit, cancellation).ConfigureAwait(false);
        string[] lines = [.. log.Output.Split('\n').Where(l => l.Length > 0 && char.IsAsciiDigit(l[0]) && !l.StartsWith("debugfs", StringComparison.Ordinal))];
        // debugfs says its version first, such as "debugfs 1.47.0".
        for (int i = 0; i < lines.Length; i++)
            if (lines[i] != (i + 1).ToString(CultureInfo.InvariantCulture))
                return (i, $"line {i + 1} of the log is '{lines[i]}'");
        return (lines.Length, null);
    }

    public ValueTask DisposeAsync() => Machine.DisposeAsync();
}
