using Aerostat.Loader;

namespace Aerostat.Cli;

/// <summary>
/// A Linux guest that runs a compute kernel as a process, in as many copies at once as wanted, and powers off. What to run is on its kernel's command line.
/// </summary>
internal sealed class ProcessGuest : IDisposable
{
    private const int LimitSeconds = 900;

    private const string Script = """
        #!/bin/sh
        export PATH=/bin
        mount -t proc proc /proc
        for word in $(cat /proc/cmdline); do
            case $word in job.*) eval "${word#job.}" ;; esac
        done
        echo @begin
        i=0
        while [ $i -lt $copies ]; do
            /bin/native /kern.bin $kernel $n &
            i=$((i + 1))
        done
        wait
        echo @end
        poweroff -f

        """;

    private readonly string kernel, initrd = Path.Combine(Path.GetTempPath(), $"aerostat-bench-{Environment.ProcessId}.cpio");

    /// <exception cref="BootException">The initramfs cannot be made.</exception>
    public ProcessGuest(string linux, string busybox, string folder)
    {
        kernel = linux;
        new InitramfsBuilder
        {
            BusyboxPath = busybox,
            InitScript = Script.Replace("\r", "", StringComparison.Ordinal),
            ExtraFiles = [new("bin/native", Path.Combine(folder, "native"), true), new("kern.bin", Path.Combine(folder, "kern.bin"), false)],
        }.Build(initrd);
    }

    private static string Append(int which, long n, int copies) => $"console=ttyS0 panic=-1 quiet job.kernel={which} job.n={n} job.copies={copies}";

    public IEnumerable<string> Arguments(string[] prefix, string accelerator, int which, long n, int cpus, int copies) =>
        [.. prefix, "run", "--accel", accelerator, "--kernel", kernel, "--initrd", initrd, "--append", Append(which, n, copies), "--memory", "512M", "--cpus", $"{cpus}", "--no-reboot"];

    public IEnumerable<string> QemuArguments(int which, long n) =>
        ["-accel", "tcg", "-cpu", "max", "-m", "512", "-nographic", "-no-reboot", "-kernel", kernel, "-initrd", initrd, "-append", Append(which, n, 1)];

    /// <summary>How much faster two copies on two processors are than one; null: a guest did not end well.</summary>
    public async Task<double?> MeasureScaling(string accelerator, long n, CancellationToken cancellation)
    {
        double? alone = await Measure(accelerator, n, 1, cancellation).ConfigureAwait(false), both = await Measure(accelerator, n, 2, cancellation).ConfigureAwait(false);
        return 2 * alone / both;
    }

    private async Task<double?> Measure(string accelerator, long n, int copies, CancellationToken cancellation)
    {
        TimeSpan? begin = null, end = null;
        (string program, string[] prefix) = ChildRun.Self();
        await ChildRun.StartAsync(program, Arguments(prefix, accelerator, 1, n, cpus: 2, copies), TimeSpan.FromSeconds(LimitSeconds), cancellation, (line, cost) =>
        {
            if (line.Contains("@begin", StringComparison.Ordinal))
                begin = cost.Wall;
            else if (line.Contains("@end", StringComparison.Ordinal))
                end = cost.Wall;
        }).ConfigureAwait(false);
        return (end - begin)?.TotalSeconds;
    }

    public void Dispose() => File.Delete(initrd);
}
