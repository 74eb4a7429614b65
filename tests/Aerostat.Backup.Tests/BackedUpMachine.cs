using Aerostat.Hosting;
using Aerostat.Machine;
using Aerostat.Platform;
using Aerostat.Storage;
using Xunit;

namespace Aerostat.Backup.Tests;

/// <summary>A machine with raw disks in a folder of its own. It is never started: the test writes to its disks as its guest would.</summary>
internal sealed class BackedUpMachine : IAsyncDisposable
{
    private readonly DirectoryInfo folder = Directory.CreateTempSubdirectory("aerostat-backup-");
    private readonly List<string> images = [];
    private VirtualMachine? machine;

    public BackedUpMachine(params int[] megabytes)
    {
        foreach (int size in megabytes)
        {
            string image = Path.Combine(folder.FullName, $"disk{images.Count}.img");
            using (FileStream file = File.Create(image))
                file.SetLength((long)size << 20);
            images.Add(image);
        }
        Open();
    }

    public BackedUpMachine(string[] existing)
    {
        images.AddRange(existing);
        Open();
    }

    public VirtualMachine Machine => machine!;

    public MachineBackups Backups { get; private set; } = null!;

    public string Store => Path.Combine(folder.FullName, "store");

    public string Folder => folder.FullName;

    public IReadOnlyList<string> Images => images;

    public void Open()
    {
        machine = Machines.Create(new MachineOptions
        {
            Name = "small",
            MemoryBytes = 4 << 20,
            Accelerator = "interpreter",
            Devices = [.. images.Select(i => new DiskOptions(i))],
            Boot = new RealModeBootOptions(new byte[] { 0xEB, 0xFE }),
        });
        Backups = new MachineBackups(machine, "test");
    }

    /// <summary>Ends the machine in good order.</summary>
    public async Task CloseAsync()
    {
        await Machine.DisposeAsync();
        machine = null;
    }

    public void Write(int disk, long offset, ReadOnlySpan<byte> bytes)
    {
        PinnedBuffer buffer = new(bytes.Length);
        bytes.CopyTo(buffer.Span);
        Assert.Equal(DiskResult.Done, Machine.Disks[disk].Contents.Write((ulong)offset, [buffer.Part(0, bytes.Length)]));
        buffer.KeepAlive();
    }

    /// <summary>Writes noise, half of which can be compressed.</summary>
    public void WriteNoise(int disk, Random random, long offset, int length)
    {
        byte[] bytes = new byte[length];
        random.NextBytes(bytes);
        for (int i = 0; i < length; i++)
            if ((i >> 12) % 2 == 0)
                bytes[i] &= 3;
        Write(disk, offset, bytes);
    }

    public byte[] Read(int disk) => File.ReadAllBytes(images[disk]);

    public Task<BackupResult> SaveAsync(bool incremental = false, int? keep = null, Func<Task>? afterThaw = null, CancellationToken? cancellation = null, long memory = 64 << 20, string? store = null, BackupHash hash = BackupHash.XxHash128) =>
        Backups.SaveAsync(store ?? Store, new BackupOptions { AllowCrashConsistent = true, Incremental = incremental, Keep = keep, AfterThaw = afterThaw, MemoryBytes = memory, Hash = hash }, cancellation ?? TestContext.Current.CancellationToken);

    public byte[] Restore(string? backup = null, string disk = "disk0")
    {
        string image = Path.Combine(folder.FullName, "restored.img");
        BackupStore store = BackupStore.Open(Store);
        BackupReader.Restore(store, store.Find(backup), disk, image, replace: true, BackupReader.CreateRaw);
        return File.ReadAllBytes(image);
    }

    public async ValueTask DisposeAsync()
    {
        if (machine is not null)
            await machine.DisposeAsync();
        folder.Delete(recursive: true);
    }
}
