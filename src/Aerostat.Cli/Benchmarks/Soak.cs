using System.Diagnostics;

namespace Aerostat.Cli;

/// <summary>Boots guests of several shapes one after the other for a while; each must work, agree with itself, and power off.</summary>
internal static class Soak
{
    private const int LimitSeconds = 900;

    private static readonly (string Cpus, string Memory, string Append)[] s_shapes =
    [
        ("1", "256M", ""),
        ("4", "512M", ""),
        ("2", "1G", "clocksource=hpet"),
        ("1", "512M", "noapic"),
        ("8", "4G", ""),
        ("2", "512M", "clocksource=acpi_pm"),
        ("1", "512M", "nolapic"),
    ];

    public static async Task<int> RunAsync(string kernel, string initrd, string accelerator, TimeSpan length, TextWriter output, TextWriter error, CancellationToken cancellation)
    {
        (string program, string[] prefix) = ChildRun.Self();
        long start = Stopwatch.GetTimestamp();
        int boots = 0;
        while (Stopwatch.GetElapsedTime(start) < length)
        {
            (string cpus, string memory, string append) = s_shapes[boots % s_shapes.Length];
            ChildRun run = await ChildRun.StartAsync(program,
                [.. prefix, "run", "--accel", accelerator, "--kernel", kernel, "--initrd", initrd, "--append", $"console=ttyS0 panic=-1 {append}".TrimEnd(),
                "--memory", memory, "--cpus", cpus, "--no-reboot"], TimeSpan.FromSeconds(LimitSeconds), cancellation).ConfigureAwait(false);
            boots++;
            string shape = $"{cpus} processor(s), {memory}{(append.Length > 0 ? ", " + append : "")}";
            if (run.ExitCode != 0 || !run.Output.Contains(GuestScripts.Done, StringComparison.Ordinal))
            {
                error.WriteLine($"aerostat bench: boot {boots} ({shape}) ended with status {run.ExitCode} before its work was done; the end of its output:");
                foreach (string line in run.Output.Split('\n').TakeLast(40))
                    error.WriteLine($"  {line.TrimEnd()}");
                return ExitStatus.Incomplete;
            }
            output.WriteLine($"{Stopwatch.GetElapsedTime(start):mm\\:ss} boot {boots}: {shape}: {run.Wall.TotalSeconds:0.0} s");
        }
        output.WriteLine($"{boots} guests booted, worked and powered off");
        return ExitStatus.Success;
    }
}
