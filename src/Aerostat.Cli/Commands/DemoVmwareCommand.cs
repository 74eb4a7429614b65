using System.CommandLine;
using System.Globalization;
using System.Text;
using Aerostat.Devices;
using Aerostat.Hosting;
using Aerostat.Loader;
using Aerostat.Machine;

namespace Aerostat.Cli;

/// <summary>
/// <c>aerostat demo vmware</c>: a stock kernel in a machine like VMware's gives memory to the host and gets it back, with what the host holds for it beside each
/// step, and the driver's own figures.
/// </summary>
internal static class DemoVmwareCommand
{
    private const string Ready = "GUEST-READY", Shown = "GUEST-SHOWN";
    private static readonly TimeSpan s_limit = TimeSpan.FromMinutes(5);

    private const string Script = $$"""
        #!/bin/sh
        export PATH=/bin
        mount -t proc proc /proc
        mount -t sysfs sysfs /sys
        mount -t devtmpfs dev /dev
        mount -t debugfs debugfs /sys/kernel/debug
        while read -r module; do insmod $module; done < /etc/modules
        stty -echo
        dmesg | grep -i -e 'hypervisor detected' -e 'DMI:' -e 'read from hypervisor'
        lsmod
        cat /sys/kernel/debug/vmmemctl > /dev/null
        mount -t tmpfs -o size=99% tmpfs /tmp
        free=$(awk '/^MemFree/ { print int($2 / 1024) }' /proc/meminfo)
        dd if=/dev/zero of=/tmp/much bs=1M count=$((free - 96)) 2> /dev/null; rm /tmp/much
        echo {{Ready}}
        while read -r line; do cat /sys/kernel/debug/vmmemctl; echo {{Shown}}; done
        poweroff -f

        """;

    public static Command Create()
    {
        Option<string> kernel = new("--kernel") { HelpName = "FILE", Description = "A bzImage; default: the stock kernel that ./dev fetched" };
        Option<string> busybox = new("--busybox") { HelpName = "FILE", Description = "A static busybox; default: the one that ./dev fetched" };
        Option<string> modules = new("--modules") { HelpName = "DIR", Description = "The kernel's lib/modules/RELEASE" };
        Option<string> memory = MachineArguments.Memory();
        Option<string> cpus = MachineArguments.Cpus();
        Option<string> accelerator = MachineArguments.Accelerator();
        Command command = new("vmware", "A stock kernel's VMware balloon, inflated and deflated by the host.") { kernel, busybox, modules, memory, cpus, accelerator };
        command.SetAction(async (result, cancellation) =>
        {
            string path = StockKernel.Kernel(result.GetValue(kernel));
            KernelModules found = StockKernel.Modules(result.GetValue(modules), path) ?? throw new ConfigurationException("the modules of this kernel are not at hand; give --modules DIR (its lib/modules/RELEASE)");
            using MemoryStream archive = new();
            new InitramfsBuilder { BusyboxPath = StockKernel.Busybox(result.GetValue(busybox)), InitScript = Script, Modules = found, ModuleNames = ["vmw_balloon"] }.Build(archive);
            MachineOptions options = new()
            {
                Name = "demo",
                MemoryBytes = MachineArguments.ParseMemory(result.GetRequiredValue(memory)),
                Cpus = MachineArguments.ParseCpus(result.GetRequiredValue(cpus)),
                Accelerator = result.GetRequiredValue(accelerator),
                Personality = "vmware",
                NoReboot = true,
                Boot = new KernelBootOptions(path) { InitrdBytes = archive.ToArray(), CommandLine = "console=ttyS0 panic=-1 quiet" },
            };
            return await RunAsync(options, result.InvocationConfiguration.Output, result.InvocationConfiguration.Error, cancellation).ConfigureAwait(false);
        });
        return command;
    }

    private static async Task<int> RunAsync(MachineOptions options, TextWriter output, TextWriter error, CancellationToken cancellation)
    {
        SerialTranscript console = new();
        VirtualMachine machine = Machines.Create(options with { Serial = console.Append });
        await using (machine.ConfigureAwait(false))
        {
            await machine.StartAsync().ConfigureAwait(false);
            if (!await Reach(machine, console, Ready, cancellation).ConfigureAwait(false))
                return Failed(error, "the guest did not come up", console);
            IBalloon balloon = machine.Balloon!;
            output.WriteLine(console.Text[..console.Text.IndexOf(Ready, StringComparison.Ordinal)].Trim());
            output.WriteLine();
            output.WriteLine("The guest has used all of its memory once, so the host holds it.");
            output.WriteLine("   wanted    given   the host holds");
            ulong half = options.MemoryBytes / 2 & ~((2UL << 20) - 1);
            foreach (ulong target in (ulong[])[0, half / 2, half, half / 2, 0])
            {
                balloon.SetTarget(target);
                long begun = Environment.TickCount64;
                while (balloon.GetReport().Reason != BalloonReason.Reached)
                {
                    if (machine.Exit.IsCompleted || Environment.TickCount64 - begun > s_limit.TotalMilliseconds)
                        return Failed(error, $"the balloon does not get to {MemorySize.Format(target)}: {balloon.GetReport().Explanation}", console);
                    await Task.Delay(20, cancellation).ConfigureAwait(false);
                }
                output.WriteLine(string.Create(CultureInfo.InvariantCulture, $"{target >> 20,5} MiB {balloon.GetReport().ActualBytes >> 20,4} MiB   {machine.GetMemory().HostBytes >> 20,8} MiB"));
                output.Flush();
            }
            int from = console.Text.Length;
            await machine.SendSerialAsync(Encoding.ASCII.GetBytes("\n"), cancellation).ConfigureAwait(false);
            if (!await Reach(machine, console, Shown, cancellation).ConfigureAwait(false))
                return Failed(error, "the guest does not answer", console);
            output.WriteLine();
            output.WriteLine("The driver's own figures (/sys/kernel/debug/vmmemctl), and ours for the same commands:");
            IReadOnlyDictionary<string, long> counters = machine.GetStatistics().Counters;
            foreach (string line in console.Text[from..].Split('\n').Select(l => l.TrimEnd()).Where(l => l.Contains(':', StringComparison.Ordinal)))
                output.WriteLine(line + (Ours(line, counters) is { } own ? string.Create(CultureInfo.InvariantCulture, $"   {own}") : ""));
            await machine.StopAsync().ConfigureAwait(false);
            return ExitStatus.Success;
        }
    }

    private static long? Ours(string line, IReadOnlyDictionary<string, long> counters) => line.Split(':', 2)[0].Trim() switch
    {
        "lock" => "lock",
        "unlock" => "unlock",
        "batchLock" => "batched-lock",
        "batchUnlock" => "batched-unlock",
        "2m-lock" => "batched-2m-lock",
        "2m-unlock" => "batched-2m-unlock",
        _ => null,
    } is { } name ? counters[$"vmballoon-{name}"] : null;

    private static async Task<bool> Reach(VirtualMachine machine, SerialTranscript console, string text, CancellationToken cancellation)
    {
        Task<bool> found = console.WaitForAsync(text, cancellation);
        return await Task.WhenAny(found, machine.Exit, Task.Delay(s_limit, cancellation)).ConfigureAwait(false) == found && await found.ConfigureAwait(false);
    }

    private static int Failed(TextWriter error, string what, SerialTranscript console)
    {
        error.WriteLine($"aerostat demo: {what}; the guest's console ends with:\n{console.Text[^Math.Min(console.Text.Length, 1000)..]}");
        return ExitStatus.Incomplete;
    }
}
