using System.Text;
using Aerostat.Devices;
using Aerostat.Guest.Drivers;
using Aerostat.Machine;
using Aerostat.Platform;
using Aerostat.Storage;
using Xunit;

namespace Aerostat.Guest.Tests;

/// <summary>The guest's disk and file system on our processors, and what the host's freezes and copies are worth.</summary>
public sealed class StorageTests : IDisposable
{
    private const ulong MiB = 1 << 20;
    private const int DiskBytes = 8 << 20;

    private readonly TemporaryFile disk = new(new byte[DiskBytes]);

    public static TheoryData<string> Accelerators => ["interpreter", "translator"];

    public void Dispose() => disk.Dispose();

    private Task<GuestOutcome> RunAsync(string accelerator, string commandLine, Func<VirtualMachine, GuestShell, Task> script, bool hyperV = true, bool readOnly = false)
    {
        MachineOptions options = new()
        {
            MemoryBytes = 64 * MiB,
            Personality = hyperV ? "hyperv" : "kvm",
            Devices = [new DiskOptions(disk.Path) { ImageFormat = DiskFormat.Raw, ReadOnly = readOnly }],
        };
        return GuestKernel.RunAsync(accelerator, commandLine, options: options, companion: async (machine, console) =>
        {
            GuestShell shell = new(console, text => machine.SendSerialAsync(Encoding.ASCII.GetBytes(text)));
            await shell.ReadyAsync();
            await script(machine, shell);
            await shell.EndAsync();
        });
    }

    private static async Task DoneAsync(GuestShell shell, string command) => Assert.Contains("fs: done", await shell.AskAsync(command), StringComparison.Ordinal);

    private static async Task UntilAsync(GuestShell shell, string command, Func<string, bool> condition)
    {
        string text = "";
        for (int i = 0; i < 1500; i++)
        {
            text = await shell.AskAsync(command);
            if (condition(text))
                return;
            await Task.Delay(20, TestContext.Current.CancellationToken);
        }
        Assert.Fail($"{command}: {text}");
    }

    private static Task RecordsAsync(GuestShell shell, long least) => UntilAsync(shell, "records", t => GuestShell.Figure(t, "acknowledged") >= least);

    private static Task AgreedAsync(GuestShell shell) => UntilAsync(shell, "vmbus", t => GuestShell.Figure(t, "agreed") == 5);

    // The driver's own classes look at a copy of the disk, in this process.
    private static ulong CountRecords(byte[] image, bool clean, out ulong replayed)
    {
        using HostPlatform platform = new();
        MemoryDisk copy = new(platform, (ulong)image.Length / BlockDevice.BlockSize);
        for (int at = 0; at < image.Length; at += BlockDevice.BlockSize)
            copy.Contents.Add((ulong)(at / BlockDevice.BlockSize), image[at..(at + BlockDevice.BlockSize)]);
        FileSystem fileSystem = new(platform);
        Assert.Equal(FileSystemError.None, fileSystem.Mount(copy, forReading: clean));
        replayed = fileSystem.Replayed;
        Assert.Equal((FileSystemError.None, 0ul), (fileSystem.Check(out ulong faults), faults));
        Assert.True(new RecordWriter(fileSystem).Verify(out ulong count));
        return count;
    }

    [Theory]
    [MemberData(nameof(Accelerators))]
    public async Task FilesAreThereAfterTheMachineWasOff(string accelerator)
    {
        await RunAsync(accelerator, "", async (_, shell) =>
        {
            Assert.Contains("fs: makes no sense", await shell.AskAsync("fs mount"), StringComparison.Ordinal);
            await DoneAsync(shell, "fs format");
            await DoneAsync(shell, "fs mount");
            await DoneAsync(shell, "fs write greeting Hello from ring 0");
            await DoneAsync(shell, "fs write greeting and once more");
            await DoneAsync(shell, "records start");
            await RecordsAsync(shell, 40);
            // Off without unmounting: what was acknowledged is in the journal at least.
        }, hyperV: false);
        await RunAsync(accelerator, "mount", async (_, shell) =>
        {
            Assert.Contains("Hello from ring 0\r\nand once more\r\n", await shell.AskAsync("fs read greeting"), StringComparison.Ordinal);
            Assert.Contains("greeting bytes=32", await shell.AskAsync("fs list"), StringComparison.Ordinal);
            string verified = await shell.AskAsync("records verify");
            Assert.Equal(1, GuestShell.Figure(verified, "whole"));
            Assert.InRange(GuestShell.Figure(verified, "count"), 40, 100_000);
            Assert.Equal(0, await shell.FigureAsync("fs check", "faults"));
            Assert.Equal(0, await shell.FigureAsync("disk", "errors"));
            await DoneAsync(shell, "fs unmount");
        }, hyperV: false);
        await RunAsync(accelerator, "mount", async (_, shell) =>
        {
            Assert.Contains("fs: for reading only", await shell.AskAsync("fs write greeting no"), StringComparison.Ordinal);
            Assert.Contains("vmbus: no bus", await shell.AskAsync("vmbus"), StringComparison.Ordinal);
        }, hyperV: false, readOnly: true);
    }

    /// <summary>Records are written all the time; each copy that is made while the guest is frozen has all that were acknowledged, and needs no repair.</summary>
    [Theory]
    [MemberData(nameof(Accelerators))]
    public async Task ACopyMadeWhileFrozenHasEveryRecord(string accelerator) => await RunAsync(accelerator, "", async (machine, shell) =>
    {
        await DoneAsync(shell, "fs format");
        await DoneAsync(shell, "fs mount");
        await DoneAsync(shell, "records start");
        await AgreedAsync(shell);
        for (int round = 1; round <= 3; round++)
        {
            await RecordsAsync(shell, 30 * round);
            long before = await shell.FigureAsync("records", "acknowledged"), frozenAt = 0;
            byte[] image = [];
            FreezeResult result = await machine.FreezeAsync(new FreezeOptions(), async () =>
            {
                Assert.Equal(1, await shell.FigureAsync("fs state", "frozen"));
                frozenAt = await shell.FigureAsync("records", "acknowledged");
                image = await File.ReadAllBytesAsync(disk.Path, TestContext.Current.CancellationToken);
                // Nobody writes meanwhile.
                Assert.Equal(frozenAt, await shell.FigureAsync("records", "acknowledged"));
            });
            Assert.False(result.ByWatchdog);
            Assert.InRange(frozenAt, before, long.MaxValue);
            Assert.Equal((ulong)frozenAt, CountRecords(image, clean: true, out ulong replayed));
            Assert.Equal(0ul, replayed);
            await RecordsAsync(shell, frozenAt + 1);
        }
        string text = await shell.AskAsync("vmbus");
        Assert.Equal((3L, 3L, 0L), (GuestShell.Figure(text, "freezes"), GuestShell.Figure(text, "thaws"), GuestShell.Figure(text, "failures")));
        Assert.True(await shell.FigureAsync("records stop", "held-up") > 0);
        Assert.Equal(0, await shell.FigureAsync("fs check", "faults"));
    });

    /// <summary>A copy at any moment, of a machine that is paused for it and knows nothing, is mended by the journal.</summary>
    [Theory]
    [MemberData(nameof(Accelerators))]
    public async Task ACopyAtAnyMomentIsMended(string accelerator)
    {
        ulong replays = 0;
        await RunAsync(accelerator, "", async (machine, shell) =>
        {
            await DoneAsync(shell, "fs format");
            await DoneAsync(shell, "fs mount");
            await DoneAsync(shell, "records start");
            for (int round = 1; round <= 6; round++)
            {
                await RecordsAsync(shell, 17 * round);
                long before = await shell.FigureAsync("records", "acknowledged");
                await machine.PauseAsync();
                byte[] image = await File.ReadAllBytesAsync(disk.Path, TestContext.Current.CancellationToken);
                await machine.ResumeAsync();
                Assert.InRange(CountRecords(image, clean: false, out ulong replayed), (ulong)before, ulong.MaxValue);
                replays += replayed;
            }
        });
        Assert.True(replays > 0);
    }

    [Theory]
    [MemberData(nameof(Accelerators))]
    public async Task WhatADaemonDoesNotDoTheHostHears(string accelerator) => await RunAsync(accelerator, "nodaemon vmbus=4", async (machine, shell) =>
    {
        static async Task<string> FailureAsync(VirtualMachine machine) =>
            (await Assert.ThrowsAsync<FreezeException>(() => machine.FreezeAsync(new FreezeOptions(), () => Task.CompletedTask))).Message;
        await DoneAsync(shell, "fs format");
        await DoneAsync(shell, "fs mount");
        await UntilAsync(shell, "vmbus", t => t.Contains("vss, open", StringComparison.Ordinal));
        Assert.Contains("major=4 minor=1", await shell.AskAsync("vmbus"), StringComparison.Ordinal);
        Assert.Contains("agreed on a version", await FailureAsync(machine), StringComparison.Ordinal);
        await shell.AskAsync("daemon start");
        await AgreedAsync(shell);
        await shell.AskAsync("daemon fail");
        Assert.Contains("no daemon answers", await FailureAsync(machine), StringComparison.Ordinal);
        await shell.AskAsync("daemon work");
        await machine.FreezeAsync(new FreezeOptions(), () => Task.CompletedTask);
        await shell.AskAsync("daemon stop");
        Assert.Contains("no daemon answers", await FailureAsync(machine), StringComparison.Ordinal);
        await shell.AskAsync("daemon start");
        await machine.FreezeAsync(new FreezeOptions(), () => Task.CompletedTask);
        Assert.Equal(0, await shell.FigureAsync("fs state", "frozen"));
    });

    /// <summary>The host takes the channel away while everything is frozen, and the guest leaves the bus: in both cases nothing stays frozen.</summary>
    [Theory]
    [MemberData(nameof(Accelerators))]
    public async Task WhoeverGoesLeavesNothingFrozen(string accelerator) => await RunAsync(accelerator, "", async (machine, shell) =>
    {
        await DoneAsync(shell, "fs format");
        await DoneAsync(shell, "fs mount");
        await DoneAsync(shell, "records start");
        await AgreedAsync(shell);
        HyperV.VolumeSnapshots volumes = machine.IntegrationComponents!.Volumes;
        await machine.Freezer!.FreezeAsync(new FreezeOptions());
        volumes.Bus.Post(() => volumes.Bus.Rescind(volumes));
        await UntilAsync(shell, "fs state", t => GuestShell.Figure(t, "frozen") == 0);
        await UntilAsync(shell, "vmbus", t => GuestShell.Figure(t, "rescinded") == 1 && GuestShell.Figure(t, "agreed") == 5);
        await machine.Freezer.FreezeAsync(new FreezeOptions());
        await shell.AskAsync("vmbus leave");
        await UntilAsync(shell, "vmbus", t => t.Contains("vmbus: off", StringComparison.Ordinal));
        Assert.Equal(0, await shell.FigureAsync("fs state", "frozen"));
        await shell.AskAsync("vmbus enter");
        await AgreedAsync(shell);
        long acknowledged = await shell.FigureAsync("records", "acknowledged");
        await machine.FreezeAsync(new FreezeOptions(), () => Task.CompletedTask);
        await RecordsAsync(shell, acknowledged + 1);
    });
}
