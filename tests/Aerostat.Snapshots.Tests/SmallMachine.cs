using Aerostat.Hosting;
using Aerostat.Machine;
using Aerostat.Memory;
using Xunit;

namespace Aerostat.Snapshots.Tests;

/// <summary>A machine with little memory that has not been started, for tests of what is on disk.</summary>
internal static class SmallMachine
{
    public const ulong Bytes = 4 << 20;

    public static VirtualMachine Create(string accelerator = "interpreter", ulong bytes = Bytes, HugePageUse hugePages = default) => Machines.Create(new MachineOptions
    {
        Name = "small",
        MemoryBytes = bytes,
        HugePages = hugePages,
        Accelerator = accelerator,
        Devices = [new DebugExitOptions(), new TestDeviceOptions()],
        Boot = new RealModeBootOptions(new byte[] { 0xEB, 0xFE }),
    });

    /// <summary>Fills pages with noise.</summary>
    public static void Fill(GuestMemory memory, Random random, ulong firstPage, int pages)
    {
        byte[] noise = new byte[pages * 4096];
        random.NextBytes(noise);
        memory.Write(new GuestAddress(firstPage << 12), noise);
    }

    /// <summary>All of a machine's memory.</summary>
    public static byte[] Contents(VirtualMachine machine)
    {
        byte[] all = new byte[machine.Memory.TotalBytes];
        machine.Memory.TryRead(new GuestAddress(0), all);
        return all;
    }

    /// <summary>A machine with data in several places and short gaps, saved.</summary>
    public static async Task<byte[]> SaveAsync(string directory)
    {
        await using VirtualMachine machine = Create();
        Random random = new(5);
        Fill(machine.Memory, random, 16, 3);
        Fill(machine.Memory, random, 21, 1);
        Fill(machine.Memory, random, 250, 20);
        Fill(machine.Memory, random, 600, 300);
        using MachineSnapshots snapshots = new(machine);
        await snapshots.SaveAsync(directory, new SnapshotOptions { Durable = false }, TestContext.Current.CancellationToken);
        return Contents(machine);
    }
}
