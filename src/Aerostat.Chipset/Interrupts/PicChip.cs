using System.Numerics;

namespace Aerostat.Chipset;

/// <summary>One 8259A (Intel data sheet 231468). The owner of the pair locks.</summary>
internal sealed class PicChip(byte levelCapable)
{
    private byte _requests;
    private byte _inService;
    private byte _mask = 0xFF;
    private byte _lines;
    private byte _levelInputs;
    private byte _vectorBase;
    private int _lowest = 7;
    private int _expecting;
    private bool _wantsIcw4;
    private bool _single;
    private bool _autoEoi;
    private bool _rotateOnAutoEoi;
    private bool _specialFullyNested;
    private bool _specialMask;
    private bool _readsInService;
    private bool _polling;
    private byte _taken;

    /// <summary>IMR, as read at the data port.</summary>
    public byte Mask => _mask;

    /// <summary>Edge/level register; inputs that must be edge-triggered cannot be changed.</summary>
    public byte LevelInputs
    {
        get => _levelInputs;
        set
        {
            _levelInputs = (byte)(value & levelCapable);
            // An input that has become level-sensitive follows its wire.
            _requests = (byte)(_requests & ~_levelInputs | _lines & _levelInputs);
        }
    }

    /// <summary>INT output.</summary>
    public bool HasRequest => FindRequest() >= 0;

    /// <summary>Power-on. Wires keep their level.</summary>
    public void Reset()
    {
        byte lines = _lines;
        // The data sheet leaves IMR open until ICW1; closed is what a machine without firmware can live with.
        Restore(new PicChipState { LowestPriority = 7, Mask = 0xFF });
        _lines = lines;
    }

    /// <summary>Drives an input.</summary>
    public void SetInput(int index, bool asserted)
    {
        byte bit = (byte)(1 << index);
        bool level = (_levelInputs & bit) != 0;
        if (asserted)
        {
            if (level || (_lines & bit) == 0)
                _requests |= bit;
            _lines |= bit;
        }
        else
        {
            _lines &= (byte)~bit;
            if (level)
                _requests &= (byte)~bit;
        }
    }

    /// <summary>Drives the input that another 8259A's INT output feeds: its request follows the wire.</summary>
    public void SetCascade(int index, bool asserted)
    {
        byte bit = (byte)(1 << index);
        _lines = (byte)(asserted ? _lines | bit : _lines & ~bit);
        _requests = (byte)(asserted ? _requests | bit : _requests & ~bit);
    }

    /// <summary>An edge of an input whose wire is low.</summary>
    public Reception Tick(int index)
    {
        byte bit = (byte)(1 << index);
        if ((_lines & bit) != 0)
            return Reception.Lost;
        bool waits = (_requests & bit) != 0;
        SetInput(index, true);
        SetInput(index, false);
        // While the pair is being initialised or the input is masked, the edge is latched, but nobody counts on it.
        return (_mask & bit) != 0 || _expecting != 0 ? Reception.Lost : waits ? Reception.Merged : Reception.Accepted;
    }

    /// <summary>The inputs that have been acknowledged since the last call.</summary>
    public byte PopTaken()
    {
        byte taken = _taken;
        _taken = 0;
        return taken;
    }

    /// <summary>INTA: the input that is served (7 for a spurious one) and its vector.</summary>
    public int Acknowledge(out int vector)
    {
        int input = FindRequest();
        if (input < 0)
        {
            // The request has gone: "default level 7", nothing goes into service.
            vector = _vectorBase | 7;
            return 7;
        }
        Serve(input);
        vector = _vectorBase | input;
        return input;
    }

    /// <summary>Read at the command port: IRR, ISR, or the answer to a poll.</summary>
    public byte ReadCommand()
    {
        if (!_polling)
            return _readsInService ? _inService : _requests;
        _polling = false;
        int input = FindRequest();
        if (input < 0)
            return 0;
        Serve(input);
        return (byte)(0x80 | input);
    }

    /// <summary>Write at the command port: ICW1, OCW2 or OCW3.</summary>
    public void WriteCommand(byte value)
    {
        if ((value & 0x10) != 0)
            Initialise(value);
        else if ((value & 0x08) != 0)
            WriteOcw3(value);
        else
            WriteOcw2(value);
    }

    /// <summary>Write at the data port: ICW2, ICW3, ICW4 or OCW1.</summary>
    public void WriteData(byte value)
    {
        switch (_expecting)
        {
            case 2:
                _vectorBase = (byte)(value & 0xF8);
                _expecting = !_single ? 3 : _wantsIcw4 ? 4 : 0;
                break;
            case 3:
                // The wiring of the cascade is fixed on a PC.
                _expecting = _wantsIcw4 ? 4 : 0;
                break;
            case 4:
                _autoEoi = (value & 2) != 0;
                _specialFullyNested = (value & 0x10) != 0;
                _expecting = 0;
                break;
            default:
                _mask = value;
                break;
        }
    }

    private void Initialise(byte value)
    {
        // ICW1 clears the edge latches, IMR, ISR, special mask mode and status read; input 7 gets the lowest priority. Level
        // inputs are seen again at once. The single/cascade choice and ICW4 come with the sequence.
        _requests = (byte)(_lines & _levelInputs);
        _inService = 0;
        _mask = 0;
        _lowest = 7;
        _specialMask = false;
        _readsInService = false;
        _polling = false;
        _autoEoi = false;
        _rotateOnAutoEoi = false;
        _specialFullyNested = false;
        _wantsIcw4 = (value & 1) != 0;
        _single = (value & 2) != 0;
        _expecting = 2;
    }

    private void WriteOcw2(byte value)
    {
        int input = value & 7;
        switch (value >> 5)
        {
            case 0:
                _rotateOnAutoEoi = false;
                break;
            case 4:
                _rotateOnAutoEoi = true;
                break;
            case 1:
            case 5:
                int highest = HighestInService(_inService);
                if (highest < 0)
                    break;
                _inService &= (byte)~(1 << highest);
                if (value >> 5 == 5)
                    _lowest = highest;
                break;
            case 3:
                _inService &= (byte)~(1 << input);
                break;
            case 7:
                _inService &= (byte)~(1 << input);
                _lowest = input;
                break;
            case 6:
                _lowest = input;
                break;
        }
    }

    private void WriteOcw3(byte value)
    {
        if ((value & 0x40) != 0)
            _specialMask = (value & 0x20) != 0;
        if ((value & 0x04) != 0)
            _polling = true;
        else if ((value & 0x02) != 0)
            _readsInService = (value & 1) != 0;
    }

    private void Serve(int input)
    {
        byte bit = (byte)(1 << input);
        _taken |= bit;
        if ((_levelInputs & bit) == 0)
            _requests &= (byte)~bit;
        if (!_autoEoi)
            _inService |= bit;
        else if (_rotateOnAutoEoi)
            _lowest = input;
    }

    /// <summary>The input that INT stands for, or -1.</summary>
    private int FindRequest()
    {
        // No request leaves the chip in the middle of its initialisation.
        if (_expecting != 0)
            return -1;
        byte open = (byte)(_requests & ~_mask);
        if (open == 0)
            return -1;
        // Special mask mode: inputs in service but masked do not hold others back.
        byte blocking = _specialMask ? (byte)(_inService & ~_mask) : _inService;
        int input = HighestInService(open);
        int current = HighestInService(blocking);
        if (current < 0)
            return input;
        int rank = Rank(input);
        int currentRank = Rank(current);
        // Special fully nested mode lets the slave interrupt itself.
        return rank < currentRank || (_specialFullyNested && rank == currentRank) ? input : -1;
    }

    private int Rank(int input) => (input - _lowest - 1) & 7;

    private int HighestInService(byte inputs)
    {
        if (inputs == 0)
            return -1;
        int first = (_lowest + 1) & 7;
        uint turned = (uint)(inputs >> first | inputs << (8 - first)) & 0xFF;
        return (first + BitOperations.TrailingZeroCount(turned)) & 7;
    }

    public PicChipState Save() => new()
    {
        Requests = _requests,
        InService = _inService,
        Mask = _mask,
        Lines = _lines,
        LevelInputs = _levelInputs,
        VectorBase = _vectorBase,
        LowestPriority = _lowest,
        Expecting = _expecting,
        WantsIcw4 = _wantsIcw4,
        Single = _single,
        AutoEoi = _autoEoi,
        RotateOnAutoEoi = _rotateOnAutoEoi,
        SpecialFullyNested = _specialFullyNested,
        SpecialMask = _specialMask,
        ReadsInService = _readsInService,
        Polling = _polling,
    };

    public void Restore(PicChipState state)
    {
        _requests = state.Requests;
        _inService = state.InService;
        _mask = state.Mask;
        _lines = state.Lines;
        _levelInputs = (byte)(state.LevelInputs & levelCapable);
        _vectorBase = (byte)(state.VectorBase & 0xF8);
        _lowest = state.LowestPriority & 7;
        _expecting = state.Expecting is 2 or 3 or 4 ? state.Expecting : 0;
        _wantsIcw4 = state.WantsIcw4;
        _single = state.Single;
        _autoEoi = state.AutoEoi;
        _rotateOnAutoEoi = state.RotateOnAutoEoi;
        _specialFullyNested = state.SpecialFullyNested;
        _specialMask = state.SpecialMask;
        _readsInService = state.ReadsInService;
        _polling = state.Polling;
    }
}
