using System.Buffers.Binary;
using System.Reflection;
using Aerostat.Hosting;
using Aerostat.Machine;
using Xunit;

namespace Aerostat.Guest.Tests;

/// <summary>How a run of the guest kernel ended, and what it wrote.</summary>
/// <param name="Status">0: powered off. Otherwise what the debug-exit device made of the code.</param>
/// <param name="Console">Its serial console.</param>
internal sealed record GuestOutcome(int Status, string Console);

/// <summary>The image of guest/Aerostat.Guest.Kernel and machines that it runs in.</summary>
internal static class GuestKernel
{
    private static readonly TimeSpan s_limit = TimeSpan.FromMinutes(2);

    /// <summary>An image's bytes. Skips the test when it could not be linked.</summary>
    /// <param name="name">"GuestImage" or "Unikernel".</param>
    public static byte[] Image(string name = "GuestImage")
    {
        string path = typeof(GuestKernel).Assembly.GetCustomAttributes<AssemblyMetadataAttribute>().Single(a => a.Key == name).Value!;
        Assert.SkipUnless(File.Exists(path), $"no guest image at {path}: it is linked with ld, of Debian's package binutils");
        return File.ReadAllBytes(path);
    }

    /// <summary>A file with the image, in which one of the two protocols' signature is blotted out so that a loader takes the other.</summary>
    /// <param name="loader">"multiboot" or "PVH": what is left.</param>
    /// <param name="name">Which image.</param>
    public static TemporaryFile WriteImage(string loader, string name = "GuestImage")
    {
        byte[] image = Image(name);
        byte[] signature = new byte[4];
        BinaryPrimitives.WriteUInt32LittleEndian(signature, loader == "PVH" ? 0x1BAD_B002u : 0x006E_6558u);
        int at = image.AsSpan().IndexOf(signature);
        Assert.True(at > 0);
        image[at] ^= 0xFF;
        return new TemporaryFile(image);
    }

    /// <summary>Runs the image on one of our processors until it ends.</summary>
    public static async Task<GuestOutcome> RunAsync(string accelerator, string commandLine = "", string loader = "PVH", MachineOptions? options = null, Func<VirtualMachine, SerialTranscript, Task>? companion = null, string image = "GuestImage")
    {
        using TemporaryFile file = WriteImage(loader, image);
        SerialTranscript console = new();
        VirtualMachine machine = Machines.Create((options ?? new MachineOptions { MemoryBytes = 64 << 20 }) with
        {
            Accelerator = accelerator,
            NoReboot = true,
            Serial = console.Append,
            Devices = [.. options?.Devices ?? [], new DebugExitOptions()],
            Boot = new KernelBootOptions(file.Path) { CommandLine = commandLine },
        });
        await using (machine)
        {
            await machine.StartAsync();
            Task beside = companion?.Invoke(machine, console) ?? Task.CompletedTask;
            // A script that fails ends the run: the guest would wait for its next line.
            await Task.WhenAny(machine.Exit, beside);
            if (!beside.IsCompletedSuccessfully && beside.IsCompleted)
                await beside;
            MachineExit exit = await machine.WaitForExitAsync(s_limit);
            console.Close();
            await beside;
            Assert.True(exit.Kind is MachineExitKind.PoweredOff or MachineExitKind.DebugExit, $"{exit.Kind}: {exit.Report}\n{console.Text}");
            return new GuestOutcome(exit.ExitStatus, console.Text);
        }
    }
}

/// <summary>A file that is gone afterwards.</summary>
internal sealed class TemporaryFile : IDisposable
{
    public TemporaryFile(byte[] content) => File.WriteAllBytes(Path, content);

    public string Path { get; } = System.IO.Path.Combine(System.IO.Path.GetTempPath(), $"aerostat-guest-{Guid.NewGuid():n}");

    public void Dispose() => File.Delete(Path);
}
