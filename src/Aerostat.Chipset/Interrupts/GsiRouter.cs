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
        private readonly List<Driver> _drivers = [];
        private ulong _asserted;

        public IInterruptLine Connect()
        {
            lock (_lock)
            {
                if (_drivers.Count == 64)
                    throw new InvalidOperationException("An interrupt line cannot have more than 64 drivers.");
                var driver = new Driver(this, 1UL << _drivers.Count);
                _drivers.Add(driver);
                return driver;
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

        public Reception Tick()
        {
            lock (_lock)
            {
                // Another driver holds the wire: this one makes no edge.
                if (_asserted != 0)
                    return Reception.Lost;
                Reception one = Tick(first), other = Tick(second);
                return one > other ? one : other;
            }
        }

        private static Reception Tick(IInterruptLine? line)
        {
            if (line is ITickLine tick)
                return tick.Tick();
            line?.Pulse();
            return line is null ? Reception.Lost : Reception.Accepted;
        }

        /// <summary>From now on the receivers say when an edge has been taken. Called while the board is built.</summary>
        public void Listen()
        {
            Driver[] drivers;
            lock (_lock)
                drivers = [.. _drivers.Where(d => d.Taken is not null)];
            Action tell = () =>
            {
                foreach (Driver driver in drivers)
                    driver.Taken?.Invoke();
            };
            if (first is ITickLine one)
                one.Taken = tell;
            if (second is ITickLine other)
                other.Taken = tell;
        }
    }

    private sealed class Driver(Wire wire, ulong bit) : ITickLine
    {
        private Action? _taken;

        public Action? Taken
        {
            get => _taken;
            set
            {
                _taken = value;
                wire.Listen();
            }
        }

        public void Set(bool asserted) => wire.Set(bit, asserted);

        public Reception Tick() => wire.Tick();
    }
}
