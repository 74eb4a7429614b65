using System;

namespace Aerostat.Guest.Kernel;

/// <summary>
/// The interrupt controller of each processor (Intel SDM vol. 3, chapter 11), by memory or, as x2APIC, by registers of the processor; the first one's timer; and
/// the I/O APIC as far as ISA interrupts need it.
/// </summary>
internal static unsafe class LocalApic
{
    public const byte TimerVector = 0x40, ConsoleVector = 0x41, DeviceVector = 0x42, WorkVector = 0x43, HypervisorVector = 0x44, SpuriousVector = 0xFF;

    private const uint BaseMsr = 0x1B, FirstX2Msr = 0x800;
    private const ulong X2Enabled = 1 << 10;
    private const int Spurious = 0xF0, EndOfInterrupt = 0xB0, IdRegister = 0x20, Command = 0x300, CommandHigh = 0x310, Timer = 0x320, Divide = 0x3E0, InitialCount = 0x380, CurrentCount = 0x390;
    private const uint Periodic = 1 << 17, Masked = 1 << 16, DivideBy16 = 3;

    // Of the command register: delivery modes with the level bit, and what says that a command is still on its way (section 11.6.1).
    private const uint Fixed = 0x4000, NonMaskable = 0x4400, Init = 0x4500, Startup = 0x4600, Underway = 1 << 12;
    private const uint MostWaits = 1_000_000, Widest = 254;
    private const ulong CalibrationTime = 1_000_000, TicksPerSecond = 50, LockLimitMilliseconds = 30_000;

    private static ulong registers;

    /// <summary>Registers are the processor's own, and ids have 32 bits.</summary>
    public static bool IsX2 { get; private set; }

    /// <summary>This processor's id.</summary>
    public static uint Id => IsX2 ? Read(IdRegister) : Read(IdRegister) >> 24;

    /// <summary>The 8259s off, the local APIC on, a tick each 20 ms.</summary>
    public static void Initialize(AcpiTables acpi)
    {
        Processor.Out8(0x21, 0xFF);
        Processor.Out8(0xA1, 0xFF);
        ulong where = Processor.ReadMsr(BaseMsr);
        registers = where & 0x000F_FFFF_FFFF_F000;
        IsX2 = (where & X2Enabled) != 0 || (CanX2() && (acpi.HighestProcessorId > Widest || BootInformation.HasOption("x2apic", out _)));
        Enable();
        Write(Divide, DivideBy16);
        Write(Timer, Masked | TimerVector);
        Write(InitialCount, 0xFFFF_FFFF);
        ulong begun = Clock.Nanoseconds, stamp = Processor.ReadTimestamp(), passed;
        do
            passed = Clock.Nanoseconds - begun;
        while (passed < CalibrationTime);
        ulong counted = 0xFFFF_FFFF - Read(CurrentCount);
        ulong limit = BootInformation.HasOption("lock-limit", out ulong asked) ? asked : LockLimitMilliseconds;
        SpinLock.Limit = Math.Max(1, (Processor.ReadTimestamp() - stamp) * 1_000_000 / passed * limit);
        Write(Timer, Periodic | TimerVector);
        Write(InitialCount, (uint)Math.Max(1, counted * 1_000_000_000 / passed / TicksPerSecond));
        if (acpi.IoApic != 0)
            Route(acpi.IoApic, acpi.InputOf(4), ConsoleVector);
    }

    /// <summary>Lets interrupts of this processor's controller in.</summary>
    public static void Enable()
    {
        ulong where = Processor.ReadMsr(BaseMsr);
        if (IsX2 && (where & X2Enabled) == 0)
            Processor.WriteMsr(BaseMsr, where | X2Enabled);
        Write(Spurious, 0x100u | SpuriousVector);
    }

    public static void End() => Write(EndOfInterrupt, 0);

    public static void SendInterrupt(uint id, byte vector) => Send(id, Fixed | vector);

    public static void SendNonMaskable(uint id) => Send(id, NonMaskable);

    public static void SendInit(uint id) => Send(id, Init);

    /// <summary>Has a processor that waits after INIT begin at a page below 1 MiB.</summary>
    public static void SendStartup(uint id, byte page) => Send(id, Startup | page);

    /// <summary>Where a device writes to interrupt this processor with <see cref="DeviceVector"/> (section 11.11.1).</summary>
    public static ulong MessageAddress => 0xFEE0_0000 | ((ulong)(byte)Id << 12);

    private static bool CanX2()
    {
        uint* leaf = stackalloc uint[4];
        Processor.Cpuid(1, 0, leaf);
        return (leaf[2] & (1 << 21)) != 0;
    }

    private static void Send(uint id, uint command)
    {
        // What was written before is there when the interrupt arrives, by whichever way it goes.
        Processor.MemoryFence();
        if (IsX2)
        {
            Processor.WriteMsr(FirstX2Msr + (Command >> 4), ((ulong)id << 32) | command);
            return;
        }
        for (uint i = 0; i < MostWaits && (Read(Command) & Underway) != 0; i++)
            Processor.Pause();
        Write(CommandHigh, id << 24);
        Write(Command, command);
    }

    // Edge, active high, fixed, to this processor (82093AA, section 3.2.4).
    private static void Route(ulong ioApic, int input, byte vector)
    {
        uint* select = (uint*)ioApic;
        uint* window = (uint*)(ioApic + 0x10);
        *select = 0x11u + (2u * (uint)input);
        *window = Id << 24;
        *select = 0x10u + (2u * (uint)input);
        *window = vector;
    }

    private static uint Read(int register) => IsX2 ? (uint)Processor.ReadMsr(FirstX2Msr + ((uint)register >> 4)) : *(uint*)(registers + (uint)register);

    private static void Write(int register, uint value)
    {
        if (IsX2)
            Processor.WriteMsr(FirstX2Msr + ((uint)register >> 4), value);
        else
            *(uint*)(registers + (uint)register) = value;
    }
}
