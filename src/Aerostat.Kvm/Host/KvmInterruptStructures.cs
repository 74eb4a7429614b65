using System.Runtime.InteropServices;

namespace Aerostat.Kvm;

/// <summary>A message-signalled interrupt.</summary>
[StructLayout(LayoutKind.Sequential)]
internal unsafe struct KvmMessage
{
    public uint AddressLow, AddressHigh, Data, Flags, Device;
    public fixed byte Padding[12];
}

/// <summary>One entry of the interrupt routing table: what a number (GSI) means.</summary>
[StructLayout(LayoutKind.Sequential)]
internal unsafe struct KvmRoute
{
    public const uint MessageSignalled = 2;

    public uint Gsi, Type, Flags, Padding;
    public uint AddressLow, AddressHigh, Data, Device;
    public fixed uint Rest[4];
}

/// <summary>Ties an event descriptor to a GSI.</summary>
[StructLayout(LayoutKind.Sequential)]
internal unsafe struct KvmInterruptDescriptor
{
    public const uint Deassign = 1;

    public uint Descriptor, Gsi, Flags, ResampleDescriptor;
    public fixed byte Padding[16];
}

/// <summary>Ties writes to a port or an address to an event descriptor.</summary>
[StructLayout(LayoutKind.Sequential)]
internal unsafe struct KvmWriteDescriptor
{
    public const uint DataMatch = 1, Port = 2, Deassign = 4;

    public ulong Match, Address;
    public uint Length;
    public int Descriptor;
    public uint Flags;
    public fixed byte Padding[36];
}

/// <summary>A range whose writes are gathered.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct KvmGatheredZone
{
    public ulong Address;
    public uint Size, IsPort;
}

/// <summary>Writes that were gathered: two indices, and entries up to the end of the page.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct KvmGatheredRing
{
    public uint First, Last;
}

/// <summary>One such write.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct KvmGatheredWrite
{
    public ulong Address;
    public uint Length, IsPort;
    public ulong Data;
}

/// <summary>An entry of a dirty ring.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct KvmDirtyPage
{
    public const uint Dirty = 1, Reset = 2;

    public uint Flags, Slot;
    public ulong Offset;
}
