using System.CommandLine;
using System.Diagnostics;
using System.Globalization;
using Aerostat.Hosting;
using Aerostat.Machine;

namespace Aerostat.Cli;

/// <summary><c>aerostat demo guest</c>: our own kernel, written in C#, in a machine of its own, with the time that each step took.</summary>
internal static class DemoGuestCommand
{
    private static readonly TimeSpan s_limit = TimeSpan.FromMinutes(2);

    public static Command Create()
    {
        Option<string> kernel = new("--kernel") { HelpName = "FILE", Description = "The guest kernel's image; default: the one beside the program" };
        Option<string> accelerator = MachineArguments.Accelerator();
        Command command = new("guest", "Our own kernel, written in C#, from process start to power-off.") { kernel, accelerator };
        command.SetAction(async (result, _) =>
        {
            string path = result.GetValue(kernel) ?? Path.Combine(AppContext.BaseDirectory, "guest", "aerostat-guest.elf");
            if (!File.Exists(path))
                throw new ConfigurationException($"no guest kernel at {path}; './dev build' makes it where ld (binutils) is installed, and --kernel FILE names another");
            MachineOptions options = new()
            {
                Name = "demo",
                MemoryBytes = 64 << 20,
                Accelerator = result.GetRequiredValue(accelerator),
                NoReboot = true,
                Boot = new KernelBootOptions(path) { CommandLine = "off" },
            };
            return await RunAsync(options, path, result.InvocationConfiguration.Output, result.InvocationConfiguration.Error).ConfigureAwait(false);
        });
        return command;
    }

    private static async Task<int> RunAsync(MachineOptions options, string path, TextWriter output, TextWriter error)
    {
        using Process self = Process.GetCurrentProcess();
        DateTime started = self.StartTime.ToUniversalTime();
        SerialTranscript console = new();
        TimeSpan first = TimeSpan.Zero;
        VirtualMachine machine = Machines.Create(options with
        {
            Serial = bytes =>
            {
                if (first == TimeSpan.Zero && bytes.Contains((byte)'\n'))
                    first = DateTime.UtcNow - started;
                console.Append(bytes);
            },
        });
        await using (machine.ConfigureAwait(false))
        {
            TimeSpan made = DateTime.UtcNow - started;
            await machine.StartAsync().ConfigureAwait(false);
            MachineExit exit = await machine.WaitForExitAsync(s_limit).ConfigureAwait(false);
            TimeSpan ended = DateTime.UtcNow - started;
            output.WriteLine(console.Text.TrimEnd());
            output.WriteLine();
            if (exit.Kind != MachineExitKind.PoweredOff)
            {
                error.WriteLine($"aerostat demo guest: the machine {exit.Summary}");
                return exit.ExitStatus == 0 ? ExitStatus.Incomplete : exit.ExitStatus;
            }
            void Row(string what, TimeSpan at) => output.WriteLine(string.Create(CultureInfo.InvariantCulture, $"  {what,-28}{at.TotalMilliseconds,8:0.0} ms"));
            output.WriteLine("Since the process was started:");
            Row("machine made", made);
            Row("the guest's first line", first);
            Row("powered off", ended);
            output.WriteLine($"  {"image",-28}{new FileInfo(path).Length,8} bytes");
            output.WriteLine($"  {"instructions",-28}{machine.GetStatistics().Instructions,8}");
            return ExitStatus.Success;
        }
    }
}
