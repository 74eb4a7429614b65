using System.Text;
using Aerostat.Memory;

namespace Aerostat.Loader.Tests;

/// <summary>Guest memory with what tests ask of it.</summary>
internal sealed class Guest : IDisposable
{
    public Guest(ulong megabytes)
    {
        Memory = GuestMemory.CreatePc(megabytes << 20);
        Map = E820Map.ForPc(Memory);
    }

    public GuestMemory Memory { get; }

    public E820Map Map { get; }

    public byte[] Bytes(ulong address, int length)
    {
        byte[] result = new byte[length];
        Assert.True(Memory.TryRead(new(address), result), $"0x{address:x} is not RAM");
        return result;
    }

    public byte U8(ulong address) => Memory.Read<byte>(new(address));

    public ushort U16(ulong address) => Memory.Read<ushort>(new(address));

    public uint U32(ulong address) => Memory.Read<uint>(new(address));

    public ulong U64(ulong address) => Memory.Read<ulong>(new(address));

    public string Text(ulong address)
    {
        List<byte> bytes = [];
        for (byte b; (b = U8(address)) != 0; address++)
            bytes.Add(b);
        return Encoding.UTF8.GetString([.. bytes]);
    }

    public BootParameters Parameters(string commandLine = "console=ttyS0", byte[]? initrd = null, ulong rsdp = 0) => new()
    {
        MemoryMap = Map,
        CommandLine = commandLine,
        Initrd = initrd is null ? null : BootFile.FromMemory(initrd, "initrd.img", "initrd"),
        RsdpAddress = rsdp,
    };

    public void Dispose() => Memory.Dispose();
}
