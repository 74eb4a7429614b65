using Aerostat.Devices;
using Aerostat.Interrupts;
using Aerostat.State;

namespace Aerostat.Chipset.Tests;

/// <summary>
/// A hostile guest against every device: seeded random accesses, wires and time. Nothing may throw; and every so often the state
/// is saved and restored into a second device with another clock, after which both must answer everything alike.
/// </summary>
public sealed class FuzzTests
{
    private const int Operations = 6_000;

    /// <summary>One device with what it is wired to.</summary>
    private abstract class Rig(long start)
    {
        public ManualTimeProvider Time { get; } = new(start);

        public FakeLine[] Lines { get; } = [.. Enumerable.Range(0, 8).Select(_ => new FakeLine())];

        public abstract string Save();

        public abstract void RestoreFrom(string state);

        public abstract void Reset();

        /// <summary>Does one thing that the numbers choose and says what came back.</summary>
        public abstract ulong Act(int what, ulong a, ulong b);
    }

    private sealed class Rig<TDevice, TState>(long start, Func<Rig, TDevice> make, Func<TDevice, Rig, int, ulong, ulong, ulong> act)
        : Rig(start) where TDevice : IDevice, ISavable<TState>
    {
        private TDevice? _device;

        private TDevice Device => _device ??= make(this);

        public override string Save() => Device.Save().ToJson();

        public override void RestoreFrom(string state) =>
            Device.Restore(System.Text.Json.JsonSerializer.Deserialize<TState>(state)!);

        public override void Reset() => Device.Reset();

        public override ulong Act(int what, ulong a, ulong b) => act(Device, this, what, a, b);
    }

    private static void Run(int seed, Func<long, Rig> make)
    {
        var random = new Random(seed);
        Rig rig = make(1_000_000_007);
        Rig? twin = null;
        var history = new Queue<string>();
        for (int i = 0; i < Operations; i++)
        {
            if (i % 500 == 250)
            {
                string state = rig.Save();
                Assert.Equal(state, rig.Save());
                // Another machine, with another history and another clock.
                twin = make(5_000_000_000_021);
                for (int k = 0; k < 20; k++)
                    twin.Act(random.Next(16), (ulong)random.NextInt64(), (ulong)random.NextInt64());
                twin.RestoreFrom(state);
                Assert.Equal(state, twin.Save());
            }
            int what = random.Next(16);
            ulong a = (ulong)random.NextInt64(long.MinValue, long.MaxValue);
            ulong b = random.Next(4) switch
            {
                0 => (ulong)random.Next(4),
                1 => 1UL << random.Next(64),
                _ => (ulong)random.NextInt64(long.MinValue, long.MaxValue),
            };
            long step = random.Next(8) switch { 0 => random.NextInt64(3_000_000_000), <= 3 => random.NextInt64(200_000), _ => 0 };
            if (random.Next(2_000) == 0)
            {
                rig.Reset();
                twin?.Reset();
            }
            ulong result = rig.Act(what, a, b);
            history.Enqueue($"{what} {a:x} {b:x} +{step} = {result:x}");
            if (history.Count > 12)
                history.Dequeue();
            if (twin is not null)
            {
                ulong other = twin.Act(what, a, b);
                Assert.True(result == other, $"seed {seed}, operation {i}: {result:x} here, {other:x} restored\n{string.Join('\n', history)}");
            }
            rig.Time.Advance(step);
            twin?.Time.Advance(step);
            if (twin is not null)
                Assert.Equal(rig.Lines.Select(l => l.Level), twin.Lines.Select(l => l.Level));
        }
        if (twin is not null)
            Assert.Equal(rig.Save(), twin.Save());
    }

    private static ulong Ports(IPortDevice device, int what, ulong a, ulong b, params ReadOnlySpan<PortRange> ranges)
    {
        PortRange range = ranges[(int)(a % (ulong)ranges.Length)];
        ushort port = (ushort)(range.First + a / 64 % range.Count);
        int size = (a >> 20 & 7) switch { 0 => 2, 1 => 4, _ => 1 };
        if ((what & 1) == 0)
            return device.ReadPort(port, size);
        device.WritePort(port, size, (uint)b);
        return 0;
    }

    private static ulong Mmio(IMmioDevice device, int what, ulong a, ulong b, ulong window, ulong stride)
    {
        ulong offset = (a >> 16 & 15) == 0 ? a % window : a % (window / stride) * stride;
        int size = (a >> 50 & 15) switch { 0 => 1, 1 => 2, 2 or 3 => 8, _ => 4 };
        if ((what & 1) == 0)
            return device.ReadMmio(offset, size);
        device.WriteMmio(offset, size, b);
        return 0;
    }

    public static TheoryData<int> Seeds => [1, 2, 3, 4, 5];

    [Theory, MemberData(nameof(Seeds))]
    public void Pit(int seed) => Run(seed, start => new Rig<Pit, PitSavedState>(
        start,
        rig => new Pit(rig.Lines[0], rig.Time),
        (pit, _, what, a, b) =>
        {
            if (what < 14)
                return Ports(pit, what, a, b, PcPorts.Pit);
            pit.Gate2 = what == 14;
            return pit.Output2 ? 1UL : 0;
        }));

    [Theory, MemberData(nameof(Seeds))]
    public void Pic(int seed) => Run(seed, start => new Rig<Pic, PicSavedState>(
        start,
        rig => new Pic(rig.Lines[0]),
        (pic, _, what, a, b) =>
        {
            if (what < 8)
                return Ports(pic, what, a, b, [.. PcPorts.Pic]);
            if (what < 11)
                return (ulong)pic.Acknowledge();
            pic.Inputs[(int)(a & 15)].Set((b & 1) != 0);
            return 0;
        }));

    [Theory, MemberData(nameof(Seeds))]
    public void Rtc(int seed) => Run(seed, start => new Rig<Rtc, RtcSavedState>(
        start,
        rig => new Rtc(new RtcOptions { Epoch = DateTimeOffset.UnixEpoch.AddSeconds(1_700_000_000), LowMemory = 1 << 30 }, rig.Lines[0], rig.Time),
        (rtc, _, what, a, b) =>
        {
            // The index first, mostly one of the interesting registers.
            rtc.WritePort(0x70, 1, (uint)((a & 0x100) != 0 ? a & 0xFF : a % 14));
            return Ports(rtc, what, a >> 9, b, new PortRange(0x71, 1));
        }));

    [Theory, MemberData(nameof(Seeds))]
    public void Hpet(int seed) => Run(seed, start => new Rig<Hpet, HpetSavedState>(
        start,
        rig => new Hpet(rig.Lines[0], rig.Lines[1], Enumerable.Range(2, 4).Select(i => KeyValuePair.Create(i + 18, (IInterruptLine)rig.Lines[i])), rig.Time),
        (hpet, _, what, a, b) =>
        {
            if (what < 14)
                return Mmio(hpet, what, a, b, (a & 0x1000) != 0 ? 0x180UL : 0x400, (a & 0x2000) != 0 ? 8UL : 4);
            (what == 14 ? hpet.PitInput : hpet.RtcInput).Set((b & 1) != 0);
            return 0;
        }));

    [Theory, MemberData(nameof(Seeds))]
    public void Serial(int seed) => Run(seed, start => new Rig<Serial16550, Serial16550SavedState>(
        start,
        rig => new Serial16550("serial0", 0x3F8, rig.Lines[0], new FakeBackend()),
        (uart, _, what, a, b) =>
        {
            switch (what)
            {
                case 13:
                    return (ulong)uart.Receive(new byte[a % 20]);
                case 14:
                    uart.Inputs = (ModemInputs)(b & 0xF0);
                    return 0;
                case 15:
                    uart.ReceiveBreak();
                    return 0;
                default:
                    return Ports(uart, what, a, b, PcPorts.Com1);
            }
        }));

    [Theory, MemberData(nameof(Seeds))]
    public void AcpiPm(int seed) => Run(seed, start => new Rig<AcpiPm, AcpiPmSavedState>(
        start,
        rig => new AcpiPm(new AcpiPmOptions { WideTimer = false }, rig.Lines[0], rig.Time, () => { }),
        (pm, _, what, a, b) => what switch
        {
            14 => pm.PressPowerButton() ? 1UL : 0,
            15 => pm.RaiseGeneralPurposeEvent((int)b) ? 1UL : 0,
            _ => Ports(pm, what, a, b, [.. PcPorts.AcpiPm]),
        }));

    [Theory, MemberData(nameof(Seeds))]
    public void I8042(int seed) => Run(seed, start => new Rig<I8042, I8042SavedState>(
        start, rig => new I8042(rig.Lines[0], () => { }), (device, _, what, a, b) => Ports(device, what, a, b, [.. PcPorts.I8042])));

    [Theory, MemberData(nameof(Seeds))]
    public void ResetControl(int seed) => Run(seed, start => new Rig<ResetControl, ResetControlSavedState>(
        start, _ => new ResetControl(() => { }), (device, _, what, a, b) => Ports(device, what, a, b, PcPorts.ResetControl)));

    [Theory, MemberData(nameof(Seeds))]
    public void SystemControlPortA(int seed) => Run(seed, start => new Rig<SystemControlPortA, SystemControlPortASavedState>(
        start, _ => new SystemControlPortA(() => { }), (device, _, what, a, b) => Ports(device, what, a, b, PcPorts.SystemControlA)));

    [Theory, MemberData(nameof(Seeds))]
    public void SystemControlPortB(int seed) => Run(seed, start => new Rig<SystemControlPortB, SystemControlPortBSavedState>(
        start,
        rig => new SystemControlPortB(new Pit(rig.Lines[0], rig.Time), rig.Time),
        // The refresh toggle is free-running and OUT 2 belongs to the timer.
        (device, _, what, a, b) => Ports(device, what, a & ~0x700000UL | 0x700000, b, PcPorts.SystemControlB) & 0x0F));

    [Theory, MemberData(nameof(Seeds))]
    public void PciPorts(int seed) => Run(seed, start => new Rig<PciConfigurationPorts, PciConfigurationPortsSavedState>(
        start,
        _ =>
        {
            var bus = new PciBus();
            bus.Attach(0, 0, new PciHostBridge(PcLayout.EcamBase));
            return new PciConfigurationPorts(bus);
        },
        (device, _, what, a, b) =>
        {
            if (what == 15)
                device.WritePort(0xCF8, 4, 0x8000_0000 | (uint)b & 0xFC);
            return Ports(device, what, a, b & ~0xFFUL, [.. PcPorts.PciConfiguration]);
        }));

    [Theory, MemberData(nameof(Seeds))]
    public void PciHostBridge(int seed) => Run(seed, start => new Rig<PciHostBridge, PciHostBridgeSavedState>(
        start,
        _ => new PciHostBridge(PcLayout.EcamBase),
        (bridge, _, what, a, b) =>
        {
            var bus = new PciBus();
            bus.Attach(0, 0, bridge);
            return Mmio(new PciEcamWindow(bus), what, a, b, 0x2000, 1);
        }));

    [Theory, MemberData(nameof(Seeds))]
    public void IoApic(int seed) => Run(seed, start => new Rig<IoApic, IoApicSavedState>(
        start,
        rig =>
        {
            var fabric = new InterruptFabric();
            _ = new LocalApic(new LocalApicOptions { Id = 0 }, new FakePins(), new FakeTimestamp(rig.Time), fabric, rig.Time);
            return new IoApic(fabric);
        },
        (apic, _, what, a, b) =>
        {
            if (what >= 12)
            {
                apic.Pins[(int)(a % 24)].Set((b & 1) != 0);
                return 0;
            }
            if ((a & 0x100) != 0)
                apic.WriteMmio(0, 4, a % 0x42);
            return Mmio(apic, what, a >> 9, b, 0x50, 0x10);
        }));

    [Theory, MemberData(nameof(Seeds))]
    public void LocalApicInXApicMode(int seed) => Run(seed, start => new Rig<LocalApic, LocalApicSavedState>(
        start,
        rig => new LocalApic(new LocalApicOptions { Id = 0 }, new LinePins(rig.Lines), new DeadTimestamp(), new InterruptFabric(), rig.Time),
        (apic, _, what, a, b) =>
        {
            switch (what)
            {
                case 10:
                    apic.WriteMmio(0xF0, 4, 0x1FF);
                    return (ulong)apic.AcknowledgeInterrupt();
                case 11:
                    apic.TaskPriority = b & 15;
                    return apic.TaskPriority;
                case 12:
                    apic.Lint0.Set((b & 1) != 0);
                    return 0;
                case 13:
                    apic.WriteMmio(0x300, 4, b & 0xFF | 0x40000);
                    return 0;
                case 14:
                    apic.WriteMmio(0xB0, 4, 0);
                    return 0;
                default:
                    return Mmio(apic, what, a, b, (a & 0x1000) != 0 ? 0x400UL : 0x1000, 0x10);
            }
        }));

    [Theory, MemberData(nameof(Seeds))]
    public void LocalApicMsrs(int seed) => Run(seed, start => new Rig<LocalApic, LocalApicSavedState>(
        start,
        rig => new LocalApic(new LocalApicOptions { Id = 3 }, new LinePins(rig.Lines), new DeadTimestamp(), new InterruptFabric(), rig.Time),
        (apic, _, what, a, b) =>
        {
            uint msr = (a & 15) switch { 0 => 0x1B, 1 => 0x6E0, _ => 0x800 + (uint)(a >> 8) % 0x40 };
            ulong value = (a & 0x10) != 0 ? b & 0xFFFFF : b;
            if (what == 0)
                apic.WriteMsr(0x1B, 0xFEE00800);
            if (what == 1)
                apic.WriteMsr(0x1B, 0xFEE00C00);
            if (what == 2)
                return (ulong)apic.AcknowledgeInterrupt();
            if ((what & 1) == 0)
                return (apic.ReadMsr(msr, out ulong read) ? 1UL : 0) ^ read;
            return apic.WriteMsr(msr, value) ? 1UL : 0;
        }));

    /// <summary>INTR as a wire that the rigs compare.</summary>
    private sealed class LinePins(FakeLine[] lines) : IProcessorPins
    {
        public void SetInterruptRequest(bool asserted)
        {
            // Not compared: a wire that is up for nothing is allowed.
        }

        public void RaiseNmi() => lines[1].Pulse();

        public void RaiseInit() => lines[2].Pulse();

        public void RaiseStartup(byte vector) => lines[3].Pulse();
    }

    /// <summary>A counter that stands still: the two rigs' clocks differ.</summary>
    private sealed class DeadTimestamp : Aerostat.Processors.ITimestampCounter
    {
        public long FrequencyHz => 1_000_000_000;

        public event Action? Adjusted
        {
            add { }
            remove { }
        }

        public ulong Read() => 1 << 30;
    }
}
