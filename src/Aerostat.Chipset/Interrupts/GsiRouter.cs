using Aerostat.Interrupts;

namespace Aerostat.Chipset;

/// <summary>
/// The wiring between devices and both interrupt controllers: ISA IRQ 0..15 drive the 8259 pair and an I/O APIC pin (IRQ 0
/// arrives on pin 2: ACPI 6.5, 5.2.12.5), global system interrupts 16..23 the I/O APIC only. Each connection is one driver of a
/// wired-or.
/// <para>Not emulated: PCI interrupt link routing; PCI devices connect to GSIs directly.</para>
/// </summary>
/// <remarks>
/// The wires have no saved state of their own: a device drives its line again when it is restored. So that this makes no new
/// edge, a machine restores the interrupt controllers (8259 pair, I/O APIC) first, then the devices, then the local APICs.
/// </remarks>
public sealed class GsiRouter
{
    private readonly Wire[] _wires = new Wire[PcLayout.IoApicPins];

    /// <summary>Makes the wiring.</summary>
    /// <param name="pic">The 8259 pair.</param>
    /// <param name="ioApic">The I/O APIC.</param>
    public GsiRouter(Pic pic, IoApic ioApic)
    {
        for (int i = 0; i < _wires.Length; i++)
        {
            // ISA IRQ 2 is the cascade: nothing may drive it, and pin 2 belongs to IRQ 0.
            IInterruptLine? first = i < 16 && i != 2 ? pic.Inputs[i] : null;
            IInterruptLine? second = i switch { 0 => ioApic.Pins[PcLayout.TimerGsi], PcLayout.TimerGsi => null, _ => ioApic.Pins[i] };
            _wires[i] = new Wire(first, second);
        }
    }

    /// <summary>
    /// A new driver of an ISA IRQ or GSI, 0..23. Number 0 is ISA IRQ 0; number 2 is the same wire (GSI 2 is where it arrives).
    /// </summary>
    public IInterruptLine Connect(int number)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(number);
        ArgumentOutOfRangeException.ThrowIfGreaterThanOrEqual(number, _wires.Length);
        return _wires[number == PcLayout.TimerGsi ? 0 : number].Connect();
    }

    private sealed class Wire(IInterruptLine? first, IInterruptLine? second)
    {
        private readonly Lock _lock = new();
        private ulong _asserted;
        private int _drivers;

        public IInterruptLine Connect()
        {
            lock (_lock)
            {
                if (_drivers == 64)
                    throw new InvalidOperationException("An interrupt line cannot have more than 64 drivers.");
                return new Driver(this, 1UL << _drivers++);
            }
        }

        public void Set(ulong bit, bool asserted)
        {
            // Under the lock, so that both controllers see changes in the order in which they happened.
            lock (_lock)
            {
                ulong before = _asserted;
                _asserted = asserted ? before | bit : before & ~bit;
                if (before != 0 == (_asserted != 0))
                    return;
                first?.Set(asserted);
                second?.Set(asserted);
            }
        }
    }

    private sealed class Driver(Wire wire, ulong bit) : IInterruptLine
    {
        public void Set(bool asserted) => wire.Set(bit, asserted);
    }
}
