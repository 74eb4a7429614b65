using System.Diagnostics;
using Aerostat.Cli;
using Aerostat.Loader;
using Aerostat.Machine;
using Xunit;

namespace Aerostat.Boot.Tests;

/// <summary>What tests of a guest that is frozen share: Debian's daemons for its initramfs, and the host's programs that make and check file systems.</summary>
internal static class FrozenGuest
{
    /// <summary>Kernel modules with the daemons' drivers and those of the disks.</summary>
    public static readonly string[] Modules = ["hv_utils", "virtio_pci", "virtio_blk"];

    /// <summary>The same for disks on the synthetic SCSI controller.</summary>
    public static readonly string[] ScsiModules = ["hv_utils", "hv_storvsc", "sd_mod"];

    /// <summary>A function of a shell that waits for a LUN and says what the kernel calls it: names are given in the order of arrival, which is any.</summary>
    public const string FindLun = """
        lun() { until ls -d /sys/bus/scsi/devices/*:0:0:$1/block/sd* > /dev/null 2>&1; do sleep 0.1; done; basename /sys/bus/scsi/devices/*:0:0:$1/block/sd*; }
        """;

    /// <summary>hv_vss_daemon and hv_kvp_daemon with the C library. Skips the test when they are not there.</summary>
    public static IReadOnlyList<InitramfsFile> Daemons() => OrSkip(StockKernel.HyperVDaemons);

    private static IReadOnlyList<InitramfsFile> OrSkip(Func<IReadOnlyList<InitramfsFile>> files)
    {
        try
        {
            return files();
        }
        catch (ConfigurationException e)
        {
            Assert.Skip(e.Message);
            throw;
        }
    }

    /// <summary>A program of the host's system folders; null: it is not installed.</summary>
    public static string? Find(string program) => ((string[])["/usr/sbin", "/sbin", "/usr/bin", "/bin"]).Select(f => Path.Combine(f, program)).FirstOrDefault(File.Exists);

    /// <summary>An image with an empty ext4. Skips the test when it cannot be made.</summary>
    public static async Task MakeExt4Async(string image, long bytes)
    {
        string? format = Find("mkfs.ext4");
        Assert.SkipWhen(format is null, "no mkfs.ext4: install e2fsprogs");
        using (FileStream file = File.Create(image))
            file.SetLength(bytes);
        Assert.Equal(0, (await RunAsync(format!, "-q", "-F", image)).Status);
    }

    /// <summary>Runs a program of the host.</summary>
    public static async Task<(int Status, string Output)> RunAsync(string program, params string[] arguments)
    {
        using Process process = Process.Start(new ProcessStartInfo(program, arguments) { RedirectStandardOutput = true, RedirectStandardError = true })!;
        Task<string> errors = process.StandardError.ReadToEndAsync(TestContext.Current.CancellationToken);
        string output = await process.StandardOutput.ReadToEndAsync(TestContext.Current.CancellationToken);
        await process.WaitForExitAsync(TestContext.Current.CancellationToken);
        return (process.ExitCode, output + await errors);
    }

    /// <summary>Our own agent, with libraries, beside <see cref="Daemons"/>. Skips the test when it is not built.</summary>
    public static IReadOnlyList<InitramfsFile> Agent() => OrSkip(() => StockKernel.Agent(AgentPath));

    /// <summary>Our own agent's program.</summary>
    public static string AgentPath => Path.Combine(
        Environment.GetEnvironmentVariable("AEROSTAT") is { Length: > 0 } built ? Path.GetDirectoryName(built) ?? "/" : Path.Combine(SourceTree(), "out"), "guest", "aerostat-agent");

    private static string SourceTree([System.Runtime.CompilerServices.CallerFilePath] string here = "") => Path.GetFullPath(Path.Combine(Path.GetDirectoryName(here)!, "..", ".."));
}
