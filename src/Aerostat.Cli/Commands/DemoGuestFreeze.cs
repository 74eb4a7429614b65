using System.Diagnostics;
using System.Globalization;
using System.Text;
using System.Text.RegularExpressions;
using Aerostat.Devices;
using Aerostat.Hosting;
using Aerostat.Machine;
using Aerostat.Storage;

namespace Aerostat.Cli;

/// <summary>
/// The last part of <c>aerostat demo guest</c>: records are written to our kernel's file system all the time, its disk is copied while the host has it frozen by Hyper-V's
/// protocol, and a second machine says what the copy has.
/// </summary>
internal static partial class DemoGuestFreeze
{
    private const int DiskBytes = 16 << 20, LeastRecords = 20;
    private static readonly TimeSpan s_limit = TimeSpan.FromSeconds(30);

    /// <summary>Writes a row; null, or what went wrong.</summary>
    public static async Task<string?> ShowAsync(string kernel, string accelerator, TextWriter output)
    {
        string folder = Directory.CreateTempSubdirectory("aerostat-demo-").FullName, disk = Path.Combine(folder, "disk.img"), copy = Path.Combine(folder, "copy.img");
        try
        {
            await File.WriteAllBytesAsync(disk, new byte[DiskBytes]).ConfigureAwait(false);
            output.WriteLine();
            output.WriteLine("freeze             records    to freeze   frozen for   records in the copy   its journal   faults");
            output.Flush();
            long before = 0, frozen = 0;
            FreezeResult? result = null;
            string? wrong = await RunAsync(kernel, accelerator, disk, "", async (machine, ask) =>
            {
                await ask("fs format").ConfigureAwait(false);
                await ask("fs mount").ConfigureAwait(false);
                await ask("records start").ConfigureAwait(false);
                long begun = Stopwatch.GetTimestamp();
                while (Figure(await ask("vmbus").ConfigureAwait(false), "agreed") != 5 || (before = Figure(await ask("records").ConfigureAwait(false), "acknowledged")) < LeastRecords)
                {
                    if (Stopwatch.GetElapsedTime(begun) > s_limit)
                        return "no records are written, or the guest's snapshot driver is not there";
                    await Task.Delay(1).ConfigureAwait(false);
                }
                result = await machine.FreezeAsync(new FreezeOptions(), () =>
                {
                    File.Copy(disk, copy);
                    return Task.CompletedTask;
                }).ConfigureAwait(false);
                frozen = Figure(await ask("vmbus").ConfigureAwait(false), "thaws");
                return null;
            }).ConfigureAwait(false);
            if (wrong is not null || frozen != 1)
                return wrong ?? "the guest does not say that it was frozen and thawed";
            string mounted = "", verified = "", check = "";
            wrong = await RunAsync(kernel, accelerator, copy, "mount", async (_, ask) =>
            {
                mounted = await ask("fs state").ConfigureAwait(false);
                verified = await ask("records verify").ConfigureAwait(false);
                check = await ask("fs check").ConfigureAwait(false);
                return null;
            }).ConfigureAwait(false);
            if (wrong is not null)
                return wrong;
            long count = Figure(verified, "count"), replayed = Figure(mounted, "replayed"), faults = Figure(check, "faults");
            string journal = replayed == 0 ? "empty" : $"{replayed} replayed";
            output.WriteLine(string.Create(
                CultureInfo.InvariantCulture,
                $"{"Hyper-V's VSS",-18}{before,8}{result!.FreezeTime.TotalMilliseconds,13:0.0}{result.FrozenTime.TotalMilliseconds,13:0.0}{count,22}{journal,14}{faults,9}"));
            return count >= before && replayed == 0 && faults == 0 && Figure(verified, "whole") == 1 ? null : "the copy is not whole";
        }
        catch (FreezeException e)
        {
            return e.Message;
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
    }

    private static async Task<string?> RunAsync(string kernel, string accelerator, string disk, string commandLine, Func<VirtualMachine, Func<string, Task<string>>, Task<string?>> script)
    {
        SerialTranscript console = new();
        VirtualMachine machine = Machines.Create(new MachineOptions
        {
            Name = "demo",
            MemoryBytes = 64 << 20,
            Accelerator = accelerator,
            Personality = "hyperv",
            NoReboot = true,
            Serial = console.Append,
            Devices = [new DiskOptions(disk) { ImageFormat = DiskFormat.Raw }],
            Boot = new KernelBootOptions(kernel) { CommandLine = commandLine },
        });
        await using (machine.ConfigureAwait(false))
        {
            await machine.StartAsync().ConfigureAwait(false);
            await PromptAsync(console).ConfigureAwait(false);
            string? wrong = await script(machine, async command =>
            {
                int from = console.Text.Length;
                await machine.SendSerialAsync(Encoding.ASCII.GetBytes(command + "\n")).ConfigureAwait(false);
                await PromptAsync(console).ConfigureAwait(false);
                return console.Text[from..];
            }).ConfigureAwait(false);
            await machine.SendSerialAsync("off\n"u8.ToArray()).ConfigureAwait(false);
            MachineExit exit = await machine.WaitForExitAsync(s_limit).ConfigureAwait(false);
            return wrong ?? (exit.Kind == MachineExitKind.PoweredOff ? null : $"the machine {exit.Summary}");
        }
    }

    private static Task PromptAsync(SerialTranscript console) => console.WaitForAsync("> ").WaitAsync(s_limit);

    private static long Figure(string text, string name) =>
        Figures().Matches(text).FirstOrDefault(m => m.Groups[1].Value == name) is { } match ? long.Parse(match.Groups[2].Value, CultureInfo.InvariantCulture) : -1;

    [GeneratedRegex(@"([a-z-]+)=(\d+)")]
    private static partial Regex Figures();
}
