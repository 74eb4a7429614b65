using System.Diagnostics;
using Aerostat.Hosting;
using Aerostat.Machine;
using Xunit;

namespace Aerostat.Debugger.Tests;

/// <summary>The small guest in a machine with a debug server on a socket, and real gdbs to attach to it.</summary>
internal sealed class DebuggedMachine : IAsyncDisposable
{
    private static readonly TimeSpan s_limit = TimeSpan.FromMinutes(8);
    private const string Marker = "--commands--";
    private readonly string folder = Directory.CreateTempSubdirectory("aerostat-gdb-").FullName;

    private DebuggedMachine(Func<string, MachineOptions> options, byte[] elf, bool serve)
    {
        ElfPath = Path.Combine(folder, "guest.elf");
        File.WriteAllBytes(ElfPath, elf);
        Machine = Machines.Create(options(ElfPath));
        if (serve)
            Server = new DebugServer(Machine, DebugEndpoint.Parse(Path.Combine(folder, "gdb.sock")));
    }

    public VirtualMachine Machine { get; }

    public DebugServer? Server { get; }

    public string ElfPath { get; }

    /// <summary>A machine with the small guest, not started.</summary>
    public static DebuggedMachine Small(string accelerator, int cpus = 1, bool serve = true) =>
        new(elf => new MachineOptions
        {
            MemoryBytes = 16 << 20,
            Cpus = cpus,
            Accelerator = accelerator,
            NoReboot = true,
            Devices = [new DebugExitOptions()],
            Boot = new KernelBootOptions(elf),
        }, GuestElf.Guest(), serve);

    /// <summary>Skips a test of a processor that this host does not have.</summary>
    public static void Need(string accelerator)
    {
        AcceleratorStatus status = Accelerators.All(Accelerators.Kvm).First(a => a.Name == accelerator);
        Assert.SkipUnless(status.Usable, $"no {accelerator} here: {status.Reason}");
    }

    /// <summary>A machine with something else; the ELF is for gdb alone.</summary>
    public static DebuggedMachine Other(MachineOptions options, byte[] symbols) => new(_ => options, symbols, serve: true);

    /// <summary>Skips a test where there is no gdb.</summary>
    public static void NeedGdb() =>
        Assert.SkipUnless(File.Exists("/usr/bin/gdb"), "no /usr/bin/gdb: install the package gdb (sudo apt-get install gdb)");

    /// <summary>Runs gdb on a script; answers what it printed, each command after <c>(gdb) </c>, with what differs from run to run made alike.</summary>
    public async Task<string> GdbAsync(params string[] commands)
    {
        // From its standard input gdb goes on after an error, and its two outputs stay in order when they are one.
        ProcessStartInfo info = new("/bin/sh", ["-c", "exec \"$@\" 2>&1", "sh", "/usr/bin/gdb", "-nx", "-q"])
        {
            RedirectStandardOutput = true,
            RedirectStandardInput = true,
        };
        info.Environment["DEBUGINFOD_URLS"] = "";
        info.Environment["LC_ALL"] = "C";
        using Process gdb = Process.Start(info)!;
        foreach (string command in (string[])["set pagination off", "set width 0", "set height 0", "set confirm off", $"file {ElfPath}", $"echo {Marker}\\n", "set trace-commands on", .. commands])
            await gdb.StandardInput.WriteLineAsync(command);
        gdb.StandardInput.Close();
        Task<string> output = gdb.StandardOutput.ReadToEndAsync(TestContext.Current.CancellationToken);
        try
        {
            await gdb.WaitForExitAsync(TestContext.Current.CancellationToken).WaitAsync(s_limit, TestContext.Current.CancellationToken);
        }
        catch
        {
            gdb.Kill();
            throw;
        }
        string all = await output;
        // From the first command that is shown; a line is as people see it when they type.
        all = all[(all.IndexOf(Marker, StringComparison.Ordinal) + Marker.Length)..].Replace(folder, "DIR", StringComparison.Ordinal);
        return string.Join('\n', all.Replace("DIR/guest.elf", "guest.elf", StringComparison.Ordinal).Split('\n')
            .Select(l => l.Replace("(gdb) +", "(gdb) ", StringComparison.Ordinal).Replace("(gdb) (gdb)", "(gdb)", StringComparison.Ordinal).TrimEnd())
            .Where(l => l is not ("" or "(gdb)" or "(gdb) quit")));
    }

    /// <summary>What to give gdb to attach.</summary>
    public string Target => $"target remote {Server!.Endpoint.ForGdb}";

    public async ValueTask DisposeAsync()
    {
        if (Server is not null)
            await Server.DisposeAsync();
        await Machine.DisposeAsync();
        Directory.Delete(folder, recursive: true);
    }
}
