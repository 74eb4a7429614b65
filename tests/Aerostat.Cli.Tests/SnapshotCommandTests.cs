using System.Diagnostics;
using Xunit;

namespace Aerostat.Cli.Tests;

/// <summary><c>aerostat snapshot</c>, <c>flatten</c> and <c>run --from</c>, as people type them.</summary>
public sealed class SnapshotCommandTests : MachineProcesses
{
    private string At(string name) => Path.Combine(Folder, name);

    private async Task Type(Process machine, char letter)
    {
        await machine.StandardInput.WriteAsync(letter);
        await machine.StandardInput.FlushAsync(Token);
        Assert.Equal(letter, await Task.Run(machine.StandardOutput.Read, Token).WaitAsync(s_limit, Token));
    }

    // A guest that goes on, sends back what is typed, and powers off when it is told to.
    private async Task GoesOn(params string[] options)
    {
        using Process copy = Start(["run", "--from", .. options]);
        await copy.StandardInput.WriteAsync("yq");
        await copy.StandardInput.FlushAsync(Token);
        (int status, string output, string error) = await End(copy);
        Assert.Equal(("", 0, "yq"), (error, status, output));
    }

    private async Task IsRefused(string expected, params string[] arguments)
    {
        (int status, string output, string error) = await Run(arguments);
        Assert.NotEqual(0, status);
        Assert.Equal("", output);
        OneLine($"aerostat {arguments[0]}: ", error);
        Assert.Contains(expected, error, StringComparison.Ordinal);
    }

    [Fact]
    public async Task ASavedGuestGoesOn()
    {
        File.WriteAllBytes(At("disk.img"), new byte[1 << 20]);
        Process machine = await Boot("--name", "web", "--disk", At("disk.img"));
        Assert.Equal(0, (await Run("snapshot", "web", "--to", At("full"))).Status);
        await Type(machine, 'a');
        Assert.Equal(0, (await Run("snapshot", "web", "--to", At("changes"), "--differential")).Status);
        await Type(machine, 'q');
        Assert.Equal(0, (await End(machine)).Status);
        (int status, string output, string error) = await Run("flatten", At("changes"), "--to", At("whole"));
        Assert.Equal(("", 0), (error, status));
        Assert.StartsWith($"{At("whole")}: ", output, StringComparison.Ordinal);
        Assert.EndsWith("out of 2 snapshots, verified\n", output, StringComparison.Ordinal);

        foreach (string name in (string[])["full", "changes", "whole"])
            await GoesOn(At(name));
        await GoesOn(At("changes"), "--accel", "translator", "--no-verify");
        // It builds on nothing any more.
        Directory.Delete(At("full"), recursive: true);
        await GoesOn(At("whole"));
        await IsRefused("builds on a snapshot that cannot be used", "run", "--from", At("changes"));
        await IsRefused("there is no snapshot", "flatten", At("full"), "--to", At("other"));
        await IsRefused("is part of what would be flattened", "flatten", At("whole"), "--to", At("whole"));
        await IsRefused("give --to DIR", "flatten", At("whole"));
        await IsRefused("--memory cannot be given with --from", "run", "--from", At("whole"), "--memory", "16M");
        await IsRefused("--no-verify is about a snapshot", "run", "--kernel", At("kernel"), "--no-verify");
        await IsRefused("--any-disks is about the disks of a snapshot", "run", "--kernel", At("kernel"), "--any-disks");

        // Somebody else uses the disk.
        File.SetLastWriteTimeUtc(At("disk.img"), File.GetLastWriteTimeUtc(At("disk.img")).AddMilliseconds(5));
        await IsRefused($"the disk image {At("disk.img")} was written at ", "run", "--from", At("whole"));
        await GoesOn(At("whole"), "--any-disks");
        File.Delete(At("disk.img"));
        await IsRefused($"the disk image {At("disk.img")} is not there", "run", "--from", At("whole"));
    }

    [Fact]
    public async Task DamageIsFoundBeforeTheGuestRuns()
    {
        Process machine = await Boot("--name", "web");
        Assert.Equal(0, (await Run("snapshot", "web", "--to", At("full"))).Status);
        await Type(machine, 'q');
        Assert.Equal(0, (await End(machine)).Status);
        using (FileStream memory = File.Open(At("full/memory.bin"), FileMode.Open))
        {
            // Where the guest's code is.
            memory.Position = TinyKernel.Entry;
            int was = memory.ReadByte();
            memory.Position = TinyKernel.Entry;
            memory.WriteByte((byte)(was ^ 1));
        }
        await IsRefused("memory.bin is damaged", "run", "--from", At("full"));
        await IsRefused("memory.bin is damaged", "flatten", At("full"), "--to", At("whole"));
        Assert.False(Directory.Exists(At("whole")));
        byte[] manifest = File.ReadAllBytes(At("full/manifest.json"));
        manifest[manifest.Length / 2] ^= 1;
        File.WriteAllBytes(At("full/manifest.json"), manifest);
        await IsRefused("its checksum does not fit", "run", "--from", At("full"));
    }
}
