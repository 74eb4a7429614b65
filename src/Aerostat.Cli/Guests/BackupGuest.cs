using System.Globalization;
using Aerostat.Hosting;
using Aerostat.Loader;
using Aerostat.Machine;

namespace Aerostat.Cli;

/// <summary>
/// A stock guest with Debian's hv_vss_daemon, or our own agent, whose writers keep a file system on each of its disks busy, and a tmpfs, for demo, benchmark and
/// soak of backups. A line is in each disk's log, and forced there, before it is said on the console.
/// </summary>
internal sealed class BackupGuest : IAsyncDisposable
{
    private static readonly TimeSpan s_limit = TimeSpan.FromMinutes(10);
    private static readonly string[] s_modules = ["virtio_pci", "virtio_blk"];

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

    private const string Start = """
        #!/bin/sh
        export PATH=/bin
        mount -t proc proc /proc
        mount -t sysfs sysfs /sys
        mount -t devtmpfs dev /dev
        mkdir -p /var/lib
        while read -r m; do insmod $m || echo FAILED=$m; done < /etc/modules

        """;

    // The kernel says "connected" before a daemon has read its answer, and has it refuse whatever comes in between; our agent says so when it has.
    // Files come, grow, are copied and go; the log grows by a line at a time.
    private static string Script(IReadOnlyList<GuestDisk> disks, string prepare, bool isAgent) => Start + $$"""
        {{Each(disks, (d, i) => $"mkdir -p /d{i}; mount -t {d.FileSystem.Name} -o {d.FileSystem.MountOptions} /dev/vd{(char)('a' + i)} /d{i} || echo FAILED=mount{i}")}}
        mkdir -p /t; mount -t tmpfs tmpfs /t || echo FAILED=tmpfs
        {{prepare}}
        while [ ! -e /dev/vmbus/hv_vss ]; do sleep 0.1; done
        {{(isAgent ? "aerostat-agent &" : "hv_kvp_daemon -n & hv_vss_daemon -n &")}}
        until dmesg | grep -q '{{(isAgent ? "aerostat-agent.*registered" : "VSS: userspace daemon")}}'; do sleep 0.1; done
        noise() {
            k=0
            while :; do
                k=$((k + 1))
                dd if=/dev/urandom of=$1/noise.$((k % 5)) bs=64k count=$((k % 7 + 1)) 2> /dev/null
                cp $1/noise.$((k % 5)) $1/copy.$((k % 3)); rm -f $1/noise.$(((k + 2) % 5))
                sleep 0.05
            done
        }
        {{Each(disks, (_, i) => $"noise /d{i} &")}}
        (while :; do date > /t/now; sleep 0.05; done) &
        echo GUEST-READY
        n=0
        while :; do
            n=$((n + 1))
            {{Each(disks, (_, i) => $"echo $n >> /d{i}/log; sync /d{i}/log")}}
            echo WROTE=$n
            sleep 0.02
        done

        """;

    private static string Each(IReadOnlyList<GuestDisk> disks, Func<GuestDisk, int, string> line) => string.Join("\n", disks.Select(line));

    /// <summary>Boots it, and waits until its writers are at work.</summary>
    /// <param name="kernel">Kernel.</param>
    /// <param name="busybox">A static busybox.</param>
    /// <param name="options">Memory, vCPUs and accelerator.</param>
    /// <param name="disks">The disks; they are made.</param>
    /// <param name="prepare">Shell commands once the disks are mounted at /d0, ...</param>
    /// <param name="agent">Our own agent's program in the place of Debian's daemons; null: those.</param>
    /// <param name="cancellation">Gives up.</param>
    /// <exception cref="HostException">It does not come up.</exception>
    public static async Task<BackupGuest> StartAsync(string kernel, string busybox, MachineOptions options, IReadOnlyList<GuestDisk> disks, string prepare, string? agent, CancellationToken cancellation)
    {
        foreach (GuestDisk disk in disks)
            await disk.FileSystem.MakeAsync(disk.Path, disk.Bytes, cancellation).ConfigureAwait(false);
        BackupGuest guest = await BootAsync(
            kernel, busybox, options with { Personality = "hyperv" }, disks.Select(d => new DiskOptions(d.Path)), [.. disks.SelectMany(d => d.FileSystem.Modules), "hv_utils"], Script(disks, prepare, agent is not null),
            agent is null ? StockKernel.HyperVDaemons() : StockKernel.Agent(agent)).ConfigureAwait(false);
        try
        {
            await guest.WaitAsync("WROTE=3\r", cancellation).ConfigureAwait(false);
            guest.ThrowIfItFailed();
            return guest;
        }
        catch
        {
            await guest.DisposeAsync().ConfigureAwait(false);
            throw;
        }
    }

    private static async Task<BackupGuest> BootAsync(
        string kernel, string busybox, MachineOptions options, IEnumerable<DeviceOptions> disks, IEnumerable<string> modules, string script, IReadOnlyList<InitramfsFile> files)
    {
        using MemoryStream archive = new();
        new InitramfsBuilder
        {
            BusyboxPath = busybox,
            InitScript = script,
            Modules = StockKernel.Modules(null, kernel) ?? throw new ConfigurationException("the modules of this kernel are not at hand; use the kernel that './dev kernels' fetches"),
            ModuleNames = [.. s_modules, .. modules.Distinct()],
            ExtraFiles = files,
        }.Build(archive);
        SerialTranscript console = new(1 << 20);
        VirtualMachine machine = Machines.Create(options with
        {
            NoReboot = true,
            Serial = console.Append,
            Devices = [.. disks],
            Boot = new KernelBootOptions(kernel) { InitrdBytes = archive.ToArray(), CommandLine = "console=ttyS0 panic=-1 quiet" },
        });
        BackupGuest guest = new(machine, console);
        try
        {
            await machine.StartAsync().ConfigureAwait(false);
            return guest;
        }
        catch
        {
            await guest.DisposeAsync().ConfigureAwait(false);
            throw;
        }
    }

    private void ThrowIfItFailed()
    {
        if (Console.Text.Contains("FAILED=", StringComparison.Ordinal))
            throw new HostException($"the guest could not do something: {Console.Text[Console.Text.IndexOf("FAILED=", StringComparison.Ordinal)..].Split('\n')[0].Trim()}");
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
    /// Checks a restored ext4: clean for e2fsck without a journal replay, and its log whole from the first line on. Answers the number of lines, or what is wrong.
    /// </summary>
    public static async Task<(long Lines, string? Wrong)> CheckAsync(string image, CancellationToken cancellation)
    {
        if (await GuestFileSystem.Ext4.CheckAsync(image, isFrozen: true, cancellation).ConfigureAwait(false) is { } wrong)
            return (0, wrong);
        string debug = GuestFileSystem.FindTool("debugfs") ?? throw new ConfigurationException("the host has no debugfs to check an image with; install e2fsprogs");
        ChildRun log = await ChildRun.StartAsync(debug, ["-R", "cat /log", image], s_limit, cancellation).ConfigureAwait(false);
        // debugfs says its version first, such as "debugfs 1.47.0".
        string[] lines = [.. log.Output.Split('\n').Where(l => l.Length > 0 && char.IsAsciiDigit(l[0]))];
        for (int i = 0; i < lines.Length; i++)
            if (lines[i] != (i + 1).ToString(CultureInfo.InvariantCulture))
                return (i, $"line {i + 1} of the log is '{lines[i]}'");
        return (lines.Length, null);
    }

    /// <summary>
    /// Checks restored disks of any file systems, one moment's: the host's programs find nothing wrong, and a guest that mounts them without looking at their
    /// journals finds logs that are whole from the first line on. Answers the number of lines of each, or what is wrong.
    /// </summary>
    public static async Task<(long[] Lines, string? Wrong)> CheckAsync(string kernel, string busybox, MachineOptions options, IReadOnlyList<GuestDisk> disks, CancellationToken cancellation)
    {
        foreach (GuestDisk disk in disks)
            if (await disk.FileSystem.CheckAsync(disk.Path, isFrozen: true, cancellation).ConfigureAwait(false) is { } wrong)
                return ([], $"{Path.GetFileName(disk.Path)}: {wrong}");
        string script = Start + Each(disks, (d, i) => $$"""
            mkdir -p /m
            mount -t {{d.FileSystem.Name}} -o {{d.FileSystem.AsItIs}} /dev/vd{{(char)('a' + i)}} /m || echo FAILED=mount{{i}}
            awk '$1 != NR && !bad { bad = NR } END { print "LOG=" NR " " bad + 0 }' /m/log
            umount /m
            {{(d.FileSystem.IsSettledByMount ? $"mount -t {d.FileSystem.Name} -o nouuid /dev/vd{(char)('a' + i)} /m && umount /m || echo FAILED=settle{i}" : "")}}
            """) + "\necho CHECKED=all\npoweroff -f\n";
        BackupGuest guest = await BootAsync(kernel, busybox, options, disks.Select(d => new DiskOptions(d.Path)), disks.SelectMany(d => d.FileSystem.Modules), script, []).ConfigureAwait(false);
        string said;
        await using (guest.ConfigureAwait(false))
        {
            await guest.WaitAsync("CHECKED=all\r", cancellation).ConfigureAwait(false);
            guest.ThrowIfItFailed();
            said = guest.Console.Text;
        }
        foreach (GuestDisk disk in disks.Where(d => d.FileSystem.IsSettledByMount))
            if (await disk.FileSystem.CheckAsync(disk.Path, isFrozen: false, cancellation).ConfigureAwait(false) is { } wrong)
                return ([], $"{Path.GetFileName(disk.Path)}, mounted and unmounted: {wrong}");
        long[][] logs = [.. said.Split('\n').Select(l => l.Trim()).Where(l => l.StartsWith("LOG=", StringComparison.Ordinal))
            .Select(l => l[4..].Split(' ').Select(n => long.Parse(n, CultureInfo.InvariantCulture)).ToArray())];
        int damaged = Array.FindIndex(logs, l => l[1] != 0);
        return logs.Length != disks.Count ? ([], "the guest that reads them does not say what is on all of them")
            : ([.. logs.Select(l => l[0])], damaged < 0 ? null : $"{Path.GetFileName(disks[damaged].Path)}: line {logs[damaged][1]} of the log is another");
    }

    public ValueTask DisposeAsync() => Machine.DisposeAsync();
}

/// <summary>A disk of such a guest.</summary>
/// <param name="Path">Its image.</param>
/// <param name="Bytes">Its size, at least.</param>
/// <param name="FileSystem">What is on it.</param>
internal sealed record GuestDisk(string Path, ulong Bytes, GuestFileSystem FileSystem);
