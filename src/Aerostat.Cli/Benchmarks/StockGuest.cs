using Aerostat.Hosting;
using Aerostat.Machine;

namespace Aerostat.Cli;

/// <summary>The guest of a benchmark: a stock kernel, an initramfs that was made for what is measured, and what runs it.</summary>
internal sealed record StockGuest(string Kernel, string Initrd, ulong MemoryBytes, string Accelerator)
{
    private static readonly TimeSpan s_limit = TimeSpan.FromMinutes(10);

    /// <summary>Modules of a guest with a virtio balloon.</summary>
    public static IReadOnlyList<string> BalloonModules { get; } = ["virtio_pci", "virtio_balloon"];

    /// <summary>The kernel's command line.</summary>
    public const string CommandLine = "console=ttyS0 panic=-1";

    /// <summary>A machine of this process, not started.</summary>
    public VirtualMachine Create(SerialTranscript console, IReadOnlyList<DeviceOptions>? devices = null, string append = "") => Machines.Create(new MachineOptions
    {
        MemoryBytes = MemoryBytes,
        Accelerator = Accelerator,
        NoReboot = true,
        Serial = console.Append,
        Devices = devices ?? [],
        Boot = new KernelBootOptions(Kernel) { Initrd = Initrd, CommandLine = $"{CommandLine} {append}".TrimEnd() },
    });

    /// <summary>Starts the guest; false, with the reason on <paramref name="error"/>: it did not write <paramref name="text"/>.</summary>
    public static async Task<bool> StartAsync(VirtualMachine machine, SerialTranscript console, string text, TextWriter error, CancellationToken cancellation)
    {
        await machine.StartAsync().ConfigureAwait(false);
        if (await ReachAsync(machine, console, text, cancellation).ConfigureAwait(false))
            return true;
        error.WriteLine($"the guest did not come up; its console ends with: {console.Text[^Math.Min(console.Text.Length, 500)..]}");
        return false;
    }

    /// <summary>Whether the guest has written a text before it ended, or ten minutes were over.</summary>
    public static async Task<bool> ReachAsync(VirtualMachine machine, SerialTranscript console, string text, CancellationToken cancellation)
    {
        Task<bool> found = console.WaitForAsync(text, cancellation);
        return await Task.WhenAny(found, machine.Exit, Task.Delay(s_limit, cancellation)).ConfigureAwait(false) == found && await found.ConfigureAwait(false);
    }
}
