using Aerostat.Devices;
using Aerostat.Interrupts;
using Aerostat.State;

namespace Aerostat.Chipset;

/// <summary>
/// An I/O APIC: Intel 82093AA data sheet (290566), section 3, with version 0x20 and its EOI register (ICH9 data sheet, 13.5).
/// <para>Not emulated: SMI delivery, the polarity bits (they hold their value; wires here are asserted or not, whatever their
/// voltage), the delivery status bit (messages arrive at once).</para>
/// </summary>
public sealed class IoApic : IDevice, IMmioDevice, ISavable<IoApicSavedState>
{
    private const int SelectOffset = 0x00;
    private const int WindowOffset = 0x10;
    private const int EoiOffset = 0x40;

    private const ulong Masked = 1 << 16;
    private const ulong LevelTriggered = 1 << 15;
    private const ulong RemoteIrr = 1 << 14;
    private const ulong DeliveryStatus = 1 << 12;
    private const ulong Logical = 1 << 11;
    private const ulong Writable = 0xFF00_0000_0001_FFFF & ~(RemoteIrr | DeliveryStatus);

    private const uint VersionValue = 0x20 | (PcLayout.IoApicPins - 1) << 16;

    private readonly Lock _lock = new();
    private readonly InterruptFabric _fabric;
    private readonly ulong[] _entries = new ulong[PcLayout.IoApicPins];
    private readonly Pin[] _pins = new Pin[PcLayout.IoApicPins];
    private uint _levels;
    private uint _select;
    private uint _id;

    /// <summary>Makes an I/O APIC with everything masked and attaches it to the fabric.</summary>
    /// <param name="fabric">Where its messages go and where EOIs come from.</param>
    public IoApic(InterruptFabric fabric)
    {
        _fabric = fabric;
        for (int i = 0; i < _pins.Length; i++)
            _pins[i] = new Pin(this, i);
        ResetRegisters();
        fabric.Attach(this);
    }

    /// <inheritdoc/>
    public string Name => "ioapic";

    /// <summary>The 24 inputs. One driver each; a <see cref="GsiRouter"/> makes wired-or of several.</summary>
    public IReadOnlyList<IInterruptLine> Pins => _pins;

    /// <inheritdoc/>
    public void Reset()
    {
        lock (_lock)
            ResetRegisters();
    }

    private void ResetRegisters()
    {
        // Wires keep the level that their devices drive.
        Array.Fill(_entries, Masked);
        _select = 0;
        _id = 0;
        WatchEnds();
    }

    /// <inheritdoc/>
    public ulong ReadMmio(ulong offset, int size)
    {
        lock (_lock)
        {
            uint value = (offset & 0xFF) switch
            {
                SelectOffset => _select,
                WindowOffset => ReadRegister(),
                _ => 0,
            };
            return size >= 4 ? value : value & ((1u << (8 * size)) - 1);
        }
    }

    /// <inheritdoc/>
    public void WriteMmio(ulong offset, int size, ulong value)
    {
        lock (_lock)
        {
            switch (offset & 0xFF)
            {
                case SelectOffset:
                    _select = (uint)value & 0xFF;
                    break;
                case WindowOffset when size >= 4:
                    WriteRegister((uint)value);
                    break;
                case EoiOffset:
                    Complete((byte)value);
                    break;
            }
        }
    }

    /// <summary>EOI of a level-triggered vector on some processor.</summary>
    internal void EndOfInterrupt(byte vector)
    {
        lock (_lock)
            Complete(vector);
    }

    private void Complete(byte vector)
    {
        for (int i = 0; i < _entries.Length; i++)
        {
            if ((byte)_entries[i] != vector || (_entries[i] & RemoteIrr) == 0)
                continue;
            _entries[i] &= ~RemoteIrr;
            DeliverLevel(i);
        }
    }

    private uint ReadRegister()
    {
        switch (_select)
        {
            case 0:
            case 2:
                // The arbitration ID is loaded with the ID.
                return _id;
            case 1:
                return VersionValue;
        }
        int index = ((int)_select - 0x10) >> 1;
        if (_select < 0x10 || index >= _entries.Length)
            return 0;
        return (uint)(_entries[index] >> (32 * (int)(_select & 1)));
    }

    private void WriteRegister(uint value)
    {
        if (_select == 0)
        {
            _id = value & 0x0F00_0000;
            return;
        }
        int index = ((int)_select - 0x10) >> 1;
        if (_select < 0x10 || index >= _entries.Length)
            return;
        ulong old = _entries[index];
        ulong merged = (_select & 1) == 0
            ? old & 0xFFFF_FFFF_0000_0000 | value
            : (uint)old | (ulong)value << 32;
        ulong entry = merged & Writable | old & RemoteIrr;
        // Systems clear a stuck remote IRR by switching the pin to edge and back.
        if ((entry & LevelTriggered) == 0)
            entry &= ~RemoteIrr;
        _entries[index] = entry;
        if (((old ^ entry) & ~(Masked | RemoteIrr)) != 0)
            WatchEnds();
        DeliverLevel(index);
    }

    private void SetPin(int index, bool asserted)
    {
        uint bit = 1u << index;
        lock (_lock)
        {
            if ((_levels & bit) != 0 == asserted)
                return;
            _levels ^= bit;
            if (!asserted)
                return;
            ulong entry = _entries[index];
            if ((entry & LevelTriggered) != 0)
                DeliverLevel(index);
            else if ((entry & Masked) == 0)
                Send(entry, level: false);
        }
    }

    /// <summary>An edge of a pin whose wire is low.</summary>
    private Reception Tick(int index)
    {
        lock (_lock)
        {
            ulong entry = _entries[index];
            if ((_levels & 1u << index) != 0 || (entry & Masked) != 0)
                return Reception.Lost;
            if ((entry & LevelTriggered) == 0)
                return Send(entry, level: false);
            // Too short for a level: seen if nothing is in service.
            _levels |= 1u << index;
            DeliverLevel(index);
            _levels &= ~(1u << index);
            return Reception.Accepted;
        }
    }

    /// <summary>A processor has taken this vector: tells the edge-triggered pins that may have sent it.</summary>
    internal void NoteTaken(byte vector)
    {
        foreach (Pin pin in _pins)
        {
            // Without the lock: what a guest changes at this moment may be seen or not.
            if (pin.Taken is { } taken && (Volatile.Read(ref _entries[pin.Index]) & (0xFF | Masked | LevelTriggered)) == vector)
                taken();
        }
    }

    /// <summary>Sends for an asserted, unmasked level-triggered pin whose last message has been completed.</summary>
    private void DeliverLevel(int index)
    {
        ulong entry = _entries[index];
        if ((entry & (LevelTriggered | Masked | RemoteIrr)) != LevelTriggered || (_levels & 1u << index) == 0)
            return;
        var mode = (DeliveryMode)(entry >> 8 & 7);
        bool fixedMode = mode is DeliveryMode.Fixed or DeliveryMode.LowestPriority;
        if (Send(entry, fixedMode) != Reception.Lost && fixedMode)
            _entries[index] |= RemoteIrr;
    }

    private Reception Send(ulong entry, bool level) => _fabric.Deliver(Message(entry, level));

    private static InterruptMessage Message(ulong entry, bool level)
    {
        var mode = (DeliveryMode)(entry >> 8 & 7);
        return new InterruptMessage(
            Destination: (uint)(entry >> 56), Wide: false, Logical: (entry & Logical) != 0, mode, (byte)entry, level,
            OneOf: mode == DeliveryMode.LowestPriority);
    }

    /// <summary>
    /// Tells a hypervisor that keeps the local APICs whose ends of interrupt matter here: those of level-triggered pins, and of pins whose driver
    /// wants to know when a tick has been taken. Whether a pin is masked at the moment does not matter: that changes often.
    /// </summary>
    private void WatchEnds()
    {
        if (_fabric.Hosted is not { } hosted)
            return;
        Span<(ulong, uint)> messages = stackalloc (ulong, uint)[PcLayout.IoApicPins];
        int count = 0;
        for (int i = 0; i < _entries.Length; i++)
        {
            ulong entry = _entries[i];
            bool level = (entry & LevelTriggered) != 0;
            if ((byte)entry >= 16 && (level || _pins[i]?.Taken is not null))
                messages[count++] = InterruptFabric.Encode(Message(entry, level: true));
        }
        hosted.Watch(messages[..count]);
    }

    /// <inheritdoc/>
    public IoApicSavedState Save()
    {
        lock (_lock)
            return new IoApicSavedState { Entries = [.. _entries], Levels = _levels, Select = _select, Id = _id };
    }

    /// <inheritdoc/>
    public void Restore(IoApicSavedState state)
    {
        lock (_lock)
        {
            ResetRegisters();
            state.Entries.AsSpan(0, Math.Min(state.Entries.Length, _entries.Length)).CopyTo(_entries);
            _levels = state.Levels & (1u << PcLayout.IoApicPins) - 1;
            _select = state.Select & 0xFF;
            _id = state.Id & 0x0F00_0000;
            WatchEnds();
        }
    }

    private sealed class Pin(IoApic owner, int index) : ITickLine
    {
        public int Index => index;

        public Action? Taken { get; set; }

        public void Set(bool asserted) => owner.SetPin(index, asserted);

        public Reception Tick() => owner.Tick(index);
    }
}

/// <summary>An I/O APIC at rest.</summary>
[SavedState("ioapic", 1)]
public sealed record IoApicSavedState
{
    /// <summary>Redirection table, 24 entries.</summary>
    public ulong[] Entries { get; init; } = [];
    /// <summary>Levels of the inputs, bit per pin.</summary>
    public uint Levels { get; init; }
    /// <summary>Register select.</summary>
    public uint Select { get; init; }
    /// <summary>ID register.</summary>
    public uint Id { get; init; }
}
