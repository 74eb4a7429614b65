using System.Numerics;
using Aerostat.Devices;
using Aerostat.Interrupts;
using Aerostat.State;

namespace Aerostat.Chipset;

/// <summary>
/// The PC's pair of 8259A interrupt controllers, cascaded on IRQ 2: Intel 8259A data sheet (231468), with the edge/level
/// control registers of the 82371AB (PIIX4, 7.1.4) at 0x4D0 and 0x4D1.
/// <para>Not emulated: 8080/85 mode, buffered mode, and the requirement that an edge input stays high until it is
/// acknowledged (an edge is latched, so that a pulse is never lost as a spurious interrupt).</para>
/// </summary>
public sealed class Pic : BytePortDevice, IDevice, IExternalInterruptController, ISavable<PicSavedState>
{
    private const int CascadeInput = 2;
    private const byte MasterLevelInputs = 0xF8;
    private const byte SlaveLevelInputs = 0xDE;

    private readonly Lock _lock = new();
    private readonly IInterruptLine _output;
    private readonly PicChip _master = new(MasterLevelInputs);
    private readonly PicChip _slave = new(SlaveLevelInputs);
    private readonly Input[] _inputs = new Input[16];
    private bool _asserted;

    /// <summary>Makes a pair that has not been initialised.</summary>
    /// <param name="output">INTR: <see cref="InterruptFabric.ExternalInterrupt"/>.</param>
    public Pic(IInterruptLine output)
    {
        _output = output;
        for (int i = 0; i < _inputs.Length; i++)
            _inputs[i] = new Input(this, i);
    }

    /// <inheritdoc/>
    public string Name => "pic";

    /// <summary>The inputs IRQ 0..15; 2 is the cascade and ignores its driver. One driver each.</summary>
    public IReadOnlyList<IInterruptLine> Inputs => _inputs;

    /// <inheritdoc/>
    public void Reset()
    {
        lock (_lock)
        {
            _master.Reset();
            _slave.Reset();
            UpdateOutput();
        }
    }

    /// <summary>
    /// Does to a freshly reset pair what a PC's BIOS does: vectors 0x08 and 0x70, 8086 mode, the given interrupts open. For
    /// machines that boot without firmware.
    /// </summary>
    /// <param name="enabled">Bit per IRQ to unmask; the cascade opens by itself when one of 8..15 is open.</param>
    public void ConfigureLikeFirmware(ushort enabled)
    {
        uint open = enabled | (enabled > 0xFF ? 1u << CascadeInput : 0);
        lock (_lock)
        {
            foreach ((PicChip chip, byte vector, byte wiring, byte mask) in
                new[] { (_master, (byte)0x08, (byte)4, (byte)~open), (_slave, (byte)0x70, (byte)2, (byte)(~open >> 8)) })
            {
                chip.WriteCommand(0x11);
                chip.WriteData(vector);
                chip.WriteData(wiring);
                chip.WriteData(1);
                chip.WriteData(mask);
            }
            UpdateOutput();
        }
    }

    /// <inheritdoc/>
    public int Acknowledge()
    {
        int vector;
        lock (_lock)
        {
            int input = _master.Acknowledge(out vector);
            if (input == CascadeInput)
                _slave.Acknowledge(out vector);
            UpdateOutput();
        }
        TellTaken();
        return vector;
    }

    /// <summary>Tells the drivers of inputs that have been acknowledged. Without the lock.</summary>
    private void TellTaken()
    {
        uint taken;
        lock (_lock)
            taken = _master.PopTaken() | (uint)_slave.PopTaken() << 8;
        for (; taken != 0; taken &= taken - 1)
            _inputs[BitOperations.TrailingZeroCount(taken)].Taken?.Invoke();
    }

    private Reception Tick(int index)
    {
        if (index == CascadeInput)
            return Reception.Lost;
        lock (_lock)
        {
            Reception reception = index < 8 ? _master.Tick(index) : _slave.Tick(index - 8);
            UpdateOutput();
            return reception;
        }
    }

    private protected override bool Decodes(ushort port) => port is 0x20 or 0x21 or 0xA0 or 0xA1 or 0x4D0 or 0x4D1;

    private protected override byte ReadByte(ushort port)
    {
        byte value;
        lock (_lock)
        {
            switch (port)
            {
                case 0x20:
                    value = _master.ReadCommand();
                    break;
                case 0x21:
                    return _master.Mask;
                case 0xA0:
                    value = _slave.ReadCommand();
                    break;
                case 0xA1:
                    return _slave.Mask;
                case 0x4D0:
                    return _master.LevelInputs;
                case 0x4D1:
                    return _slave.LevelInputs;
                default:
                    return 0xFF;
            }
            // A poll acknowledges.
            UpdateOutput();
        }
        TellTaken();
        return value;
    }

    private protected override void WriteByte(ushort port, byte value)
    {
        lock (_lock)
        {
            switch (port)
            {
                case 0x20:
                    _master.WriteCommand(value);
                    break;
                case 0x21:
                    _master.WriteData(value);
                    break;
                case 0xA0:
                    _slave.WriteCommand(value);
                    break;
                case 0xA1:
                    _slave.WriteData(value);
                    break;
                case 0x4D0:
                    _master.LevelInputs = value;
                    break;
                case 0x4D1:
                    _slave.LevelInputs = value;
                    break;
            }
            UpdateOutput();
        }
    }

    private void SetInput(int index, bool asserted)
    {
        if (index == CascadeInput)
            return;
        lock (_lock)
        {
            if (index < 8)
                _master.SetInput(index, asserted);
            else
                _slave.SetInput(index - 8, asserted);
            UpdateOutput();
        }
    }

    /// <summary>The slave's request drives the master's input 2 as a level, whatever its edge register says.</summary>
    private void UpdateCascade() => _master.SetCascade(CascadeInput, _slave.HasRequest);

    private void UpdateOutput()
    {
        UpdateCascade();
        bool request = _master.HasRequest;
        if (request == _asserted)
            return;
        _asserted = request;
        _output.Set(request);
    }

    /// <inheritdoc/>
    public PicSavedState Save()
    {
        lock (_lock)
            return new PicSavedState { Master = _master.Save(), Slave = _slave.Save(), Output = _asserted };
    }

    /// <inheritdoc/>
    public void Restore(PicSavedState state)
    {
        lock (_lock)
        {
            _master.Restore(state.Master);
            _slave.Restore(state.Slave);
            _asserted = state.Output;
            _output.Set(_asserted);
            UpdateOutput();
        }
    }

    private sealed class Input(Pic owner, int index) : ITickLine
    {
        public Action? Taken { get; set; }

        public Reception Tick() => owner.Tick(index);

        public void Set(bool asserted) => owner.SetInput(index, asserted);
    }
}

/// <summary>An 8259A pair at rest.</summary>
[SavedState("pic", 1)]
public sealed record PicSavedState
{
    /// <summary>IRQ 0..7.</summary>
    public PicChipState Master { get; init; } = new();
    /// <summary>IRQ 8..15.</summary>
    public PicChipState Slave { get; init; } = new();
    /// <summary>INTR.</summary>
    public bool Output { get; init; }
}

/// <summary>One 8259A at rest.</summary>
public sealed record PicChipState
{
    /// <summary>IRR.</summary>
    public byte Requests { get; init; }
    /// <summary>ISR.</summary>
    public byte InService { get; init; }
    /// <summary>IMR.</summary>
    public byte Mask { get; init; }
    /// <summary>Wires.</summary>
    public byte Lines { get; init; }
    /// <summary>ELCR.</summary>
    public byte LevelInputs { get; init; }
    /// <summary>Bits 7..3 of the vectors.</summary>
    public byte VectorBase { get; init; }
    /// <summary>Input with the lowest priority.</summary>
    public int LowestPriority { get; init; }
    /// <summary>Next initialisation word expected: 0 none, else 2, 3 or 4.</summary>
    public int Expecting { get; init; }
    /// <summary>ICW1 asked for ICW4.</summary>
    public bool WantsIcw4 { get; init; }
    /// <summary>ICW1 said single (no ICW3).</summary>
    public bool Single { get; init; }
    /// <summary>Automatic EOI.</summary>
    public bool AutoEoi { get; init; }
    /// <summary>Rotate on automatic EOI.</summary>
    public bool RotateOnAutoEoi { get; init; }
    /// <summary>Special fully nested mode.</summary>
    public bool SpecialFullyNested { get; init; }
    /// <summary>Special mask mode.</summary>
    public bool SpecialMask { get; init; }
    /// <summary>OCW3 selected ISR for reading.</summary>
    public bool ReadsInService { get; init; }
    /// <summary>OCW3 poll command given.</summary>
    public bool Polling { get; init; }
}
