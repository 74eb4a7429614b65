using System.Runtime.InteropServices;

namespace Aerostat.Guest.Kernel;

/// <summary>What a processor has of its own. GS points to it; it is never moved.</summary>
[StructLayout(LayoutKind.Sequential)]
internal unsafe struct ProcessorData
{
    public const int TaskSize = 104, FaultStackSize = 8192;

    /// <summary>This structure: what <see cref="Processor.ReadLocal"/> reads.</summary>
    public ProcessorData* Self;

    /// <summary>0: the one that the machine began with.</summary>
    public uint Index;
    public uint ApicId;

    /// <summary>Its stack, without the page below that is absent.</summary>
    public ulong StackStart;
    public ulong StackEnd;

    /// <summary>The lock that it waits for, how often it has begun to wait for one, and where it does.</summary>
    public volatile SpinLock* WaitingFor;
    public volatile uint Waits;
    public ulong WaitingAt;

    /// <summary>The <see cref="ProcessorWork"/> that it is to do, or 0; whether it has begun; and how many it has done.</summary>
    public ulong Work;
    public volatile uint Begun;
    public volatile uint Done;

    /// <summary>Set by the processor itself when it can take work.</summary>
    public volatile uint Ready;

    /// <summary>GDT, TSS, and the operand of LGDT and LIDT.</summary>
    public fixed ulong Segments[5];
    public fixed byte Task[TaskSize];
    public fixed byte Pointer[16];

    /// <summary>The stack for double faults.</summary>
    public fixed ulong FaultStack[FaultStackSize / 8];
}
