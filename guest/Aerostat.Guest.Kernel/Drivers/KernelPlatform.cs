using Aerostat.Guest.Drivers;

namespace Aerostat.Guest.Kernel;

/// <summary>What the kernel offers its drivers. All memory is at its own address, so DMA addresses are pointers.</summary>
internal sealed unsafe class KernelPlatform : DriverPlatform
{
    private const ushort ConfigAddress = 0xCF8, ConfigData = 0xCFC;

    public override ulong TotalPages => PageAllocator.TotalPages;

    public override ulong FreePageCount => PageAllocator.FreePages;

    public override uint PoisonPattern => PageAllocator.Poison ? 0xAAAA_AAAA : 0;

    public override ulong Nanoseconds => Clock.Nanoseconds;

    public override bool IsVmware
    {
        get
        {
            uint* leaf = stackalloc uint[4];
            Processor.Cpuid(1, 0, leaf);
            if ((leaf[2] & (1u << 31)) == 0)
                return false;
            Processor.Cpuid(0x4000_0000, 0, leaf);
            return leaf[1] == 0x6177_4D56 && leaf[2] == 0x4D56_6572 && leaf[3] == 0x6572_6177;
        }
    }

    public override ulong AllocatePages(int order) => PageAllocator.Allocate(order);

    public override void FreePages(ulong address, int order) => PageAllocator.Free(address, order);

    public override uint ListFreeBlocks(int order, ulong to, uint most) => PageAllocator.ListFreeBlocks(order, (ulong*)to, most);

    public override ulong TakeUnreported(int leastOrder, out int order) => PageAllocator.TakeUnreported(leastOrder, out order);

    public override void ReturnReported(ulong address, int order) => PageAllocator.ReturnReported(address, order);

    public override uint Read(ulong address, int size) => size switch { 1 => *(byte*)address, 2 => *(ushort*)address, _ => *(uint*)address };

    public override void Write(ulong address, int size, uint value)
    {
        if (size == 1)
            *(byte*)address = (byte)value;
        else if (size == 2)
            *(ushort*)address = (ushort)value;
        else
            *(uint*)address = value;
    }

    public override ulong Read64(ulong address) => *(ulong*)address;

    public override void Write64(ulong address, ulong value) => *(ulong*)address = value;

    public override void Fence() => Processor.MemoryFence();

    public override uint ReadRegister(ulong address, int size) => Read(address, size);

    public override void WriteRegister(ulong address, int size, uint value) => Write(address, size, value);

    public override uint ReadPciConfig(uint function, int offset, int size)
    {
        Processor.Out32(ConfigAddress, Select(function, offset));
        ushort port = (ushort)(ConfigData + (offset & 3));
        return size switch { 1 => Processor.In8(port), 2 => Processor.In16(port), _ => Processor.In32(port) };
    }

    public override void WritePciConfig(uint function, int offset, int size, uint value)
    {
        Processor.Out32(ConfigAddress, Select(function, offset));
        ushort port = (ushort)(ConfigData + (offset & 3));
        if (size == 1)
            Processor.Out8(port, (byte)value);
        else if (size == 2)
            Processor.Out16(port, (ushort)value);
        else
            Processor.Out32(port, value);
    }

    public override bool GetInterruptMessage(out ulong address, out uint data)
    {
        address = LocalApic.MessageAddress;
        data = LocalApic.DeviceVector;
        return true;
    }

    public override uint Call(ushort port, uint magic, uint command, ulong argument, ulong second, out ulong result, out ulong extra)
    {
        ulong* registers = stackalloc ulong[5];
        registers[0] = magic;
        registers[1] = argument;
        registers[2] = command;
        registers[3] = port;
        registers[4] = second;
        Processor.HostCall(registers);
        result = registers[1];
        extra = registers[2];
        return (uint)registers[0];
    }

    public override void Relax() => Kernel.WaitInside();

    public override void CopyIn(ulong address, byte[] from, int start, int length)
    {
        if (length == 0 || !Fits(from, start, length))
            return;
        fixed (byte* source = &from[start])
            Internal.Runtime.CompilerHelpers.Bulk.Move((void*)address, source, (nuint)length);
    }

    public override void CopyOut(ulong address, byte[] to, int start, int length)
    {
        if (length == 0 || !Fits(to, start, length))
            return;
        fixed (byte* target = &to[start])
            Internal.Runtime.CompilerHelpers.Bulk.Move(target, (void*)address, (nuint)length);
    }

    public override void Log(string text, ulong number)
    {
        Console.Write(text);
        if (number != ulong.MaxValue)
            Console.Write(number);
        Console.Write('\n');
    }

    private static bool Fits(byte[] bytes, int start, int length)
    {
        if ((uint)start > (uint)bytes.Length || (uint)length > (uint)(bytes.Length - start))
            Panic.Stop("a copy beyond an array");
        return true;
    }

    // Configuration mechanism 1 (PCI Local Bus 3.0, section 3.2.2.3.2).
    private static uint Select(uint function, int offset) => 0x8000_0000 | (function << 8) | ((uint)offset & 0xFC);
}
