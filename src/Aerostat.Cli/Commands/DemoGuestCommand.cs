using System.CommandLine;
using System.Diagnostics;
using System.Globalization;
using Aerostat.Devices;
using Aerostat.Hosting;
using Aerostat.Machine;
using Aerostat.Memory;
using Aerostat.Virtio;

namespace Aerostat.Cli;

/// <summary><c>aerostat demo guest</c>: our own kernel, written in C#, from process start to its first line, what its driver does in each dialect of the balloon, and a freeze.</summary>
internal static class DemoGuestCommand
{
    private static readonly TimeSpan s_limit = TimeSpan.FromSeconds(30);

    private static readonly (string Name, string Personality, string CommandLine, DeviceOptions[] Devices)[] s_dialects =
    [
        ("virtio", "kvm", "", [new BalloonOptions()]),
        ("virtio, June 2018", "kvm", "hints=2018", [new BalloonOptions()]),
        ("VMware, 2010", "vmware", "", []),
        ("VMware, batched", "vmware", "batched", []),
    ];

    public static Command Create()
    {
        Option<string> kernel = new("--kernel") { HelpName = "FILE", Description = "The guest kernel's image; default: the one beside the program" };
        // Of a machine that boots in milliseconds a look at the host's KVM would be a large part.
        Option<string> accelerator = MachineArguments.Accelerator();
        accelerator.DefaultValueFactory = _ => Accelerators.Own;
        Command command = new("guest", "Our own kernel, written in C#: its first line, its balloon in each dialect, and a freeze.") { kernel, accelerator };
        command.SetAction(async (result, _) =>
        {
            string path = result.GetValue(kernel) ?? Path.Combine(AppContext.BaseDirectory, "guest", "aerostat-guest.elf");
            if (!File.Exists(path))
                throw new ConfigurationException($"no guest kernel at {path}; './dev build' makes it where ld (binutils) is installed, and --kernel FILE names another");
            return await RunAsync(path, result.GetRequiredValue(accelerator), result.InvocationConfiguration.Output, result.InvocationConfiguration.Error).ConfigureAwait(false);
        });
        return command;
    }

    private static async Task<int> RunAsync(string path, string accelerator, TextWriter output, TextWriter error)
    {
        output.WriteLine($"{Path.GetFileName(path)}, {new FileInfo(path).Length} bytes, 64 MiB of memory");
        output.WriteLine();
        output.WriteLine("balloon            first line    prompt   32 MiB given   taken back   free pages named   instructions");
        DateTime? since = null;
        foreach ((string name, string personality, string commandLine, DeviceOptions[] devices) in s_dialects)
        {
            MachineOptions options = new()
            {
                Name = "demo",
                MemoryBytes = 64 << 20,
                Accelerator = accelerator,
                Personality = personality,
                NoReboot = true,
                Devices = devices,
                Boot = new KernelBootOptions(path) { CommandLine = commandLine },
            };
            string? wrong;
            try
            {
                wrong = await ShowAsync(name, options, since, output).ConfigureAwait(false);
            }
            catch (TimeoutException)
            {
                wrong = $"the guest did not answer within {s_limit.TotalSeconds:0} s";
            }
            if (wrong is not null)
            {
                error.WriteLine($"aerostat demo guest: {name}: {wrong}");
                return ExitStatus.Incomplete;
            }
            since = DateTime.UtcNow;
        }
        if (await DemoGuestFreeze.ShowAsync(path, accelerator, output).ConfigureAwait(false) is { } failure)
        {
            error.WriteLine($"aerostat demo guest: freeze: {failure}");
            return ExitStatus.Incomplete;
        }
        output.WriteLine();
        output.WriteLine("Times in ms. The first row's first line and prompt count from the start of this process, the others' from when their machine was asked for.");
        return ExitStatus.Success;
    }

    // A row of the table; null, or what went wrong.
    private static async Task<string?> ShowAsync(string name, MachineOptions options, DateTime? asked, TextWriter output)
    {
        SerialTranscript console = new();
        long first = 0;
        VirtualMachine machine = Machines.Create(options with
        {
            Serial = bytes =>
            {
                if (first == 0 && bytes.Contains((byte)'\n'))
                    first = DateTime.UtcNow.Ticks;
                console.Append(bytes);
            },
        });
        await using (machine.ConfigureAwait(false))
        {
            await machine.StartAsync().ConfigureAwait(false);
            Task<bool> prompting = console.WaitForAsync("> ");
            await Task.WhenAny(prompting, machine.Exit).WaitAsync(s_limit).ConfigureAwait(false);
            if (!prompting.IsCompleted)
                return $"the machine {(await machine.Exit.ConfigureAwait(false)).Summary}";
            if (!await prompting.ConfigureAwait(false))
                return $"no prompt:\n{console.Text}";
            DateTime prompted = DateTime.UtcNow;
            // Asked for only now, because finding it out takes a while.
            DateTime since = asked ?? ProcessStart();
            TimeSpan prompt = prompted - since;
            IBalloon balloon = machine.Balloon!;
            TimeSpan? given = await SizeAsync(balloon, 32 << 20).ConfigureAwait(false), back = await SizeAsync(balloon, 0).ConfigureAwait(false);
            if (given is null || back is null)
                return $"the balloon does not get there: {balloon.GetReport().Explanation}";
            string named = "-";
            if (machine.VirtioBalloon is { CanHint: true } virtio)
            {
                HintCount hints = new();
                if (!virtio.TryStartHints(hints) || !await hints.Complete.WaitAsync(s_limit).ConfigureAwait(false))
                    return "the guest does not name its free pages";
                virtio.StopHints(release: true);
                named = $"{hints.Bytes >> 20} MiB";
            }
            await machine.SendSerialAsync("off\n"u8.ToArray()).ConfigureAwait(false);
            MachineExit exit = await machine.WaitForExitAsync(s_limit).ConfigureAwait(false);
            if (exit.Kind != MachineExitKind.PoweredOff)
                return $"the machine {exit.Summary}";
            output.WriteLine(string.Create(
                CultureInfo.InvariantCulture,
                $"{name,-18}{new TimeSpan(first - since.Ticks).TotalMilliseconds,11:0.0}{prompt.TotalMilliseconds,10:0.0}{given.Value.TotalMilliseconds,15:0.0}{back.Value.TotalMilliseconds,13:0.0}{named,19}{machine.GetStatistics().Instructions,15}"));
            output.Flush();
            return null;
        }
    }

    // The host's kernel keeps it in hundredths of a second, rounded down.
    private static DateTime ProcessStart()
    {
        using Process self = Process.GetCurrentProcess();
        return self.StartTime.ToUniversalTime();
    }

    private static async Task<TimeSpan?> SizeAsync(IBalloon balloon, ulong target)
    {
        long begun = Stopwatch.GetTimestamp();
        balloon.SetTarget(target);
        while (balloon.GetReport() is var report && (report.ActualBytes != target || report.Reason != BalloonReason.Reached))
        {
            if (Stopwatch.GetElapsedTime(begun) > s_limit)
                return null;
            await Task.Delay(1).ConfigureAwait(false);
        }
        return Stopwatch.GetElapsedTime(begun);
    }

    // The guest stands by between two runs of this: nothing is done with what is named.
    private sealed class HintCount : IFreePageHints
    {
        private readonly TaskCompletionSource<bool> _complete = new(TaskCreationOptions.RunContinuationsAsynchronously);
        private ulong _bytes;

        public ulong Bytes => Volatile.Read(ref _bytes);

        public Task<bool> Complete => _complete.Task;

        public void Hint(GuestAddress address, ulong length) => Volatile.Write(ref _bytes, _bytes + length);

        public void Finished(bool complete) => _complete.TrySetResult(complete);
    }
}
