namespace Aerostat.Virtio;

/// <summary>What came of a hint command.</summary>
internal enum HintCommand
{
    /// <summary>It belongs to no run that goes on, or changes nothing.</summary>
    Ignored,
    /// <summary>The driver has begun: hints that follow belong to this run.</summary>
    Started,
    /// <summary>The driver has named all that it wanted to.</summary>
    Finished,
    /// <summary>It makes no sense.</summary>
    Malformed,
}

/// <summary>
/// The device's side of free page hints (virtio 1.2, 5.5.6.6): which command id is published, and whether a hint that is taken from the queue
/// belongs to the run under way. Nothing but that: queues, locks and who takes the hints are the device's. Not for several threads.
/// </summary>
/// <remarks>
/// A hint carries no id; it belongs to the start command before it in the queue. The driver may be behind by any number of runs, so an id is
/// not used again, and hints count only after the start command that has the published id, up to the next stop command, stop from our side, or reset.
/// </remarks>
internal sealed class HintProtocol
{
    /// <summary>Ids that are no run's: the driver is to stop; it may have its pages again; the first of a run.</summary>
    public const uint Stop = 0, Done = 1, First = 2;

    private HintState _state;

    private enum HintState
    {
        /// <summary>Nothing was asked, or it is over.</summary>
        Idle,
        /// <summary>An id is published; the driver has not started.</summary>
        Requested,
        /// <summary>The driver has started with that id.</summary>
        Started,
    }

    /// <summary>What configuration space says.</summary>
    public uint CommandId { get; private set; } = Stop;

    /// <summary>The last id that was published for a run.</summary>
    public uint LastCommandId { get; private set; } = First - 1;

    /// <summary>Bytes of a block that an address names (the form of June 2018), or 0: hints are the blocks themselves.</summary>
    public uint BlockSize { get; private set; }

    /// <summary>Whether a hint that is taken now belongs to the run under way.</summary>
    public bool TakesHints => _state == HintState.Started;

    /// <summary>Publishes a new id.</summary>
    public void Start()
    {
        // Ids last for four thousand million runs.
        LastCommandId = LastCommandId == uint.MaxValue ? First : LastCommandId + 1;
        CommandId = LastCommandId;
        BlockSize = 0;
        _state = HintState.Requested;
    }

    /// <summary>Ends the run from our side; no hint counts any more.</summary>
    /// <param name="command">What is published: <see cref="Stop"/> or <see cref="Done"/>.</param>
    /// <returns>Whether that is news to the driver.</returns>
    public bool End(uint command)
    {
        _state = HintState.Idle;
        if (CommandId == command)
            return false;
        CommandId = command;
        return true;
    }

    /// <summary>The driver has sent a command.</summary>
    /// <param name="id">Its id.</param>
    /// <param name="blockSize">The size of a block, if it has one (June 2018).</param>
    public HintCommand Take(uint id, uint? blockSize)
    {
        if (id >= First && id == CommandId && _state == HintState.Requested)
        {
            if (blockSize is { } size && (size == 0 || size % 4096 != 0))
            {
                _state = HintState.Idle;
                return HintCommand.Malformed;
            }
            _state = HintState.Started;
            BlockSize = blockSize ?? 0;
            return HintCommand.Started;
        }
        if (id != Stop || _state != HintState.Started)
            return HintCommand.Ignored;
        _state = HintState.Idle;
        return HintCommand.Finished;
    }

    /// <summary>The driver has reset the device, or the queue.</summary>
    public void Reset()
    {
        CommandId = Stop;
        _state = HintState.Idle;
    }

    /// <summary>Goes on from a saved state: pages that the guest holds back for a run that is over are its own again.</summary>
    public void Restore(uint lastCommandId, bool negotiated)
    {
        LastCommandId = Math.Max(lastCommandId, First - 1);
        CommandId = negotiated ? Done : Stop;
        _state = HintState.Idle;
    }
}
