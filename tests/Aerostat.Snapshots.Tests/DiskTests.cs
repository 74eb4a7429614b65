using System.Text.RegularExpressions;
using Aerostat.Hosting;
using Aerostat.Machine;
using Aerostat.Storage;
using Xunit;

namespace Aerostat.Snapshots.Tests;

/// <summary>A snapshot does not have the contents of disks, and finds out whether they are as they were.</summary>
public sealed class DiskTests
{
    private static VirtualMachine Create(string image, bool readOnly = false) => Machines.Create(new MachineOptions
    {
        MemoryBytes = SmallMachine.Bytes,
        Accelerator = "interpreter",
        Devices = [new DiskOptions(image) { ReadOnly = readOnly }],
        Boot = new RealModeBootOptions(new byte[] { 0xEB, 0xFE }),
    });

    private static async Task<Snapshot> SaveAsync(TestFolder folder, bool readOnly)
    {
        File.WriteAllBytes(folder["disk.img"], new byte[1 << 20]);
        await using VirtualMachine machine = Create(folder["disk.img"], readOnly);
        using MachineSnapshots snapshots = new(machine);
        await snapshots.SaveAsync(folder["s"], new SnapshotOptions { Durable = false }, TestContext.Current.CancellationToken);
        return Snapshot.Open(folder["s"]);
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task AChangedImageIsRefused(bool readOnly)
    {
        using TestFolder folder = new();
        Snapshot snapshot = await SaveAsync(folder, readOnly);
        string image = folder["disk.img"];
        FileInfo file = new(image);
        SnapshotDisk disk = Assert.Single(snapshot.Manifest.Disks!);
        Assert.Equal((image, file.Length, file.LastWriteTimeUtc), (disk.Path, disk.Bytes, disk.Modified.UtcDateTime));
        await using (VirtualMachine machine = Machines.Restore(snapshot))
        {
            // One that has not run has written nothing, and opening an image is no change.
        }
        await using (VirtualMachine machine = Machines.Restore(snapshot))
        {
        }

        DateTime then = file.LastWriteTimeUtc;
        File.SetLastWriteTimeUtc(image, then.AddTicks(10));
        string message = Assert.Throws<SnapshotException>(() => Machines.Restore(snapshot)).Message;
        Assert.Contains($"{image} was written at", message, StringComparison.Ordinal);
        await using (VirtualMachine machine = Machines.Restore(snapshot, anyDisks: true))
        {
            // Whoever says so.
        }
        // A copy at another place is given by whoever knows what it is.
        File.Copy(image, folder["copy.img"]);
        await using (VirtualMachine machine = Machines.Restore(snapshot, adjust: o => o with { Devices = [new DiskOptions(folder["copy.img"]) { ReadOnly = readOnly }] }))
        {
        }

        using (FileStream stream = File.OpenWrite(image))
            stream.SetLength(2 << 20);
        File.SetLastWriteTimeUtc(image, then);
        Assert.Contains("has 2097152 bytes, and had 1048576", Assert.Throws<SnapshotException>(() => Machines.Restore(snapshot)).Message, StringComparison.Ordinal);
        File.Delete(image);
        Assert.Contains($"{image} is not there", Assert.Throws<SnapshotException>(() => Machines.Restore(snapshot)).Message, StringComparison.Ordinal);
    }

    [Fact]
    public async Task ALinkIsTheImageItLeadsTo()
    {
        using TestFolder folder = new();
        File.WriteAllBytes(folder["real.img"], new byte[4096]);
        File.CreateSymbolicLink(folder["link.img"], folder["real.img"]);
        await using (VirtualMachine machine = Create(folder["link.img"]))
        {
            using MachineSnapshots snapshots = new(machine);
            await snapshots.SaveAsync(folder["s"], new SnapshotOptions { Durable = false }, TestContext.Current.CancellationToken);
        }
        File.SetLastWriteTimeUtc(folder["real.img"], DateTime.UnixEpoch);
        Assert.Contains("was written at 1970-01-01", Assert.Throws<SnapshotException>(() => Machines.Restore(Snapshot.Open(folder["s"]))).Message, StringComparison.Ordinal);
    }

    [Fact]
    public async Task AChangedImageUnderAnImageIsRefused()
    {
        using TestFolder folder = new();
        File.WriteAllBytes(folder["base.img"], new byte[1 << 20]);
        Directory.CreateDirectory(folder["deep"]);
        Qcow2Disk.Create(folder["deep/middle.qcow2"], 1 << 20, new Qcow2Options { BackingFile = "../base.img", BackingFormat = DiskFormat.Raw }).Dispose();
        Qcow2Disk.Create(folder["top.qcow2"], 1 << 20, new Qcow2Options { BackingFile = "deep/middle.qcow2" }).Dispose();
        await using (VirtualMachine machine = Create(folder["top.qcow2"]))
        {
            using MachineSnapshots snapshots = new(machine);
            await snapshots.SaveAsync(folder["s"], new SnapshotOptions { Durable = false }, TestContext.Current.CancellationToken);
        }
        Snapshot snapshot = Snapshot.Open(folder["s"]);
        Assert.Equal([folder["deep/middle.qcow2"], folder["base.img"]], Assert.Single(snapshot.Manifest.Disks!).Under!.Select(u => u.Path));
        await using (VirtualMachine machine = Machines.Restore(snapshot))
        {
        }
        foreach (string name in (string[])["deep/middle.qcow2", "base.img"])
        {
            DateTime then = File.GetLastWriteTimeUtc(folder[name]);
            File.SetLastWriteTimeUtc(folder[name], DateTime.UnixEpoch);
            Assert.Contains($"{folder[name]} was written at 1970-01-01", Assert.Throws<SnapshotException>(() => Machines.Restore(snapshot)).Message, StringComparison.Ordinal);
            File.SetLastWriteTimeUtc(folder[name], then);
        }
    }

    [Fact]
    public async Task ASnapshotOfVersion1DoesNotSay()
    {
        using TestFolder folder = new();
        await SaveAsync(folder, readOnly: false);
        string file = folder["s/manifest.json"], text = File.ReadAllText(file);
        string older = Regex.Replace(text, """,\s*"disks": \[.*?\]""", "", RegexOptions.Singleline);
        Assert.NotEqual(text, older);
        File.WriteAllBytes(file, FormatTests.Sealed(older));
        File.SetLastWriteTimeUtc(folder["disk.img"], DateTime.UnixEpoch);
        Snapshot snapshot = Snapshot.Open(folder["s"]);
        Assert.Null(snapshot.Manifest.Disks);
        await using VirtualMachine machine = Machines.Restore(snapshot);
        Assert.Equal(SmallMachine.Bytes, machine.Memory.TotalBytes);
    }
}
