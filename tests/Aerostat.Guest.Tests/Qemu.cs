using System.Diagnostics;
using Xunit;

namespace Aerostat.Guest.Tests;

/// <summary>QEMU's software processor as the judge: the same image has to do the same there.</summary>
internal static class Qemu
{
    private const string Program = "qemu-system-x86_64";
    private static readonly TimeSpan s_limit = TimeSpan.FromMinutes(2);

    /// <summary>Starts QEMU with a kernel; its serial console is standard output. Skips the test when it is not installed.</summary>
    public static Process Start(string kernel, string commandLine, params string[] arguments)
    {
        Assert.SkipUnless((Environment.GetEnvironmentVariable("PATH") ?? "").Split(':').Any(f => File.Exists(Path.Combine(f, Program))), "qemu-system-x86_64 is not installed");
        ProcessStartInfo start = new(Program) { RedirectStandardOutput = true, RedirectStandardInput = true, RedirectStandardError = true };
        foreach (string argument in (string[])
            [.. arguments.Contains("-accel") ? (string[])[] : ["-accel", "tcg"], "-m", "64", "-display", "none", "-serial", "stdio", "-monitor", "none", "-no-reboot", "-device", "isa-debug-exit,iobase=0xf4,iosize=1", "-kernel", kernel, "-append", commandLine, .. arguments])
            start.ArgumentList.Add(argument);
        return Process.Start(start)!;
    }

    /// <summary>Runs the guest image until it ends.</summary>
    public static async Task<GuestOutcome> RunAsync(string commandLine, string loader = "multiboot", string image = "GuestImage", params string[] arguments)
    {
        using TemporaryFile file = GuestKernel.WriteImage(loader, image);
        using Process process = Start(file.Path, commandLine, arguments);
        try
        {
            string console = await process.StandardOutput.ReadToEndAsync().WaitAsync(s_limit);
            await process.WaitForExitAsync().WaitAsync(s_limit);
            return new GuestOutcome(process.ExitCode, console);
        }
        finally
        {
            if (!process.HasExited)
                process.Kill();
        }
    }
}
