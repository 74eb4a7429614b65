using System;

namespace Aerostat.Guest.Kernel;

/// <summary>The processor's interrupt controller and its timer (Intel SDM vol. 3, chapter 11), and the I/O APIC as far as ISA interrupts need it.</summary>
internal static unsafe class LocalApic
{
    public const byte TimerVector = 0x40, ConsoleVector = 0x41, DeviceVector = 0x42, SpuriousVector = 0xFF;

    private const uint BaseMsr = 0x1B;
    private const int Spurious = 0xF0, EndOfInterrupt = 0xB0, Id = 0x20, Timer = 0x320, Divide = 0x3E0, InitialCount = 0x380, CurrentCount = 0x390;
    private const uint Periodic = 1 << 17, Masked = 1 << 16, DivideBy16 = 3;
    private const ulong CalibrationTime = 1_000_000, TicksPerSecond = 50;

    private static ulong registers;

    /// <summary>The 8259s off, the local APIC on, a tick each 20 ms.</summary>
    public static void Initialize(AcpiTables acpi)
    {
        Processor.Out8(0x21, 0xFF);
        Processor.Out8(0xA1, 0xFF);
        registers = Processor.ReadMsr(BaseMsr) & 0x000F_FFFF_FFFF_F000;
        Write(Spurious, 0x100u | SpuriousVector);
        Write(Divide, DivideBy16);
        Write(Timer, Masked | TimerVector);
        Write(InitialCount, 0xFFFF_FFFF);
        ulong begun = Clock.Nanoseconds, passed;
        do
            passed = Clock.Nanoseconds - begun;
        while (passed < CalibrationTime);
        ulong counted = 0xFFFF_FFFF - Read(CurrentCount);
        Write(Timer, Periodic | TimerVector);
        Write(InitialCount, (uint)Math.Max(1, counted * 1_000_000_000 / passed / TicksPerSecond));
        if (acpi.IoApic != 0)
            Route(acpi.IoApic, acpi.InputOf(4), ConsoleVector);
    }

    public static void End() => Write(EndOfInterrupt, 0);

    /// <summary>Where a device writes to interrupt this processor with <see cref="DeviceVector"/> (section 11.11.1).</summary>
    public static ulong MessageAddress => 0xFEE0_0000 | ((ulong)(Read(Id) >> 24) << 12);

    // Edge, active high, fixed, to this processor (82093AA, section 3.2.4).
    private static void Route(ulong ioApic, int input, byte vector)
    {
        uint* select = (uint*)ioApic;
        uint* window = (uint*)(ioApic + 0x10);
        *select = 0x11u + (2u * (uint)input);
        *window = Read(Id);
        *select = 0x10u + (2u * (uint)input);
        *window = vector;
    }

    private static uint Read(int register) => *(uint*)(registers + (uint)register);

    private static void Write(int register, uint value) => *(uint*)(registers + (uint)register) = value;
}
