namespace Aerostat.Guest.Kernel;

/// <summary>Time by ACPI's PM timer, 3.579545 MHz and 24 bits (ACPI 6.5 section 4.8.3.3), which wraps each 4.7 s: something asks more often than that. Without one, by the processor's counter, taken for 1 GHz.</summary>
internal static class Clock
{
    private const ulong TimerHz = 3_579_545;

    private static SpinLock gate;
    private static ushort port;
    private static uint last;
    private static ulong ticks;

    public static void Initialize(AcpiTables acpi)
    {
        port = acpi.TimerPort;
        if (port != 0)
            last = Processor.In32(port);
    }

    public static ulong Nanoseconds
    {
        get
        {
            if (port == 0)
                return Processor.ReadTimestamp();
            gate.Enter();
            uint now = Processor.In32(port);
            ulong passed = ticks += (now - last) & 0xFF_FFFF;
            last = now;
            gate.Exit();
            return (passed / TimerHz * 1_000_000_000) + (passed % TimerHz * 1_000_000_000 / TimerHz);
        }
    }
}
