using System.Diagnostics.CodeAnalysis;

namespace Aerostat.Guest.Kernel;

/// <summary>Ways to end.</summary>
internal static class Power
{
    private const ushort DebugExitPort = 0xF4;

    private static ushort controlPort;
    private static byte softOffType;

    public static void Initialize(AcpiTables acpi)
    {
        controlPort = acpi.PowerControlPort;
        softOffType = acpi.SoftOffType;
    }

    /// <summary>Tells QEMU's isa-debug-exit or Aerostat's debug-exit, which ends the machine at once; without the device nothing happens.</summary>
    public static void DebugExit(byte code) => Processor.Out8(DebugExitPort, code);

    /// <summary>Powers the machine off by ACPI (ACPI 6.5 section 16.1.7), or stands still when it has no such power management.</summary>
    [DoesNotReturn]
    public static void Off()
    {
        Processor.DisableInterrupts();
        if (controlPort != 0)
            Processor.Out16(controlPort, (ushort)((softOffType << 10) | (1 << 13)));
        else
            Console.WriteLine("kernel: no ACPI power management here; halted");
        while (true)
            Processor.Halt();
    }
}
