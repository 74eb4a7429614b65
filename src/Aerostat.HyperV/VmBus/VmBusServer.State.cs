using Aerostat.State;

namespace Aerostat.HyperV;

/// <content>The bus at rest.</content>
public sealed partial class VmBusServer : ISavable<VmBusSavedState>
{
    /// <inheritdoc/>
    public VmBusSavedState Save() => new()
    {
        Version = version?.Number,
        Target = target,
        Source = sint,
        OffersWanted = offersWanted,
        NextRelId = nextRelId,
        Inbox = [.. inbox],
        Gpadls = [.. gpadls.Values.Select(g => new GpadlSavedState { Handle = g.Handle, RelId = g.RelId, Pages = g.Pages, PageNumbers = g.PageNumbers })],
        Channels =
        [
            .. channels.Select(c => new ChannelSavedState
            {
                Device = c.Device.Name,
                RelId = c.RelId,
                State = (int)c.State,
                Rings = c.Rings?.Handle,
                DownstreamPage = c.DownstreamPage,
                OpenId = c.OpenId,
                Target = c.TargetProcessor,
                ReadIndex = c.Incoming?.Index ?? 0,
                WriteIndex = c.Outgoing?.Index ?? 0,
                IsBroken = c.IsBroken,
                DeviceState = c.Device.Save(),
            }),
        ],
    };

    /// <inheritdoc/>
    public void Restore(VmBusSavedState state)
    {
        ArgumentNullException.ThrowIfNull(state);
        Reset();
        if ((uint)state.Target >= (uint)partition.Processors.Count || (uint)state.Source >= SyntheticInterruptController.Sources || state.Inbox.Length > InboxLimit)
            throw new SavedStateException("a VMBus's target or messages make no sense");
        if (!state.Channels.Select(c => c.Device).Order(StringComparer.Ordinal).SequenceEqual(channels.Select(c => c.Device.Name).Order(StringComparer.Ordinal)))
            throw new SavedStateException($"the VMBus had {string.Join(", ", state.Channels.Select(c => c.Device))}, and has {string.Join(", ", channels.Select(c => c.Device.Name))} here");
        version = state.Version is { } number ? VmBusVersion.Of(number) : null;
        target = state.Target;
        sint = state.Source;
        offersWanted = state.OffersWanted;
        nextRelId = Math.Clamp(state.NextRelId, 1, VmBusProtocol.MaxRelId);
        foreach (byte[] message in state.Inbox.Where(m => m.Length is >= VmBusProtocol.HeaderSize and <= SynicMessage.MaxPayload))
        {
            inboxCount++;
            inbox.Enqueue(message);
        }
        foreach (GpadlSavedState saved in state.Gpadls)
            RestoreGpadl(saved);
        Dictionary<string, VmBusDevice> devices = channels.ToDictionary(c => c.Device.Name, c => c.Device);
        channels.Clear();
        foreach (ChannelSavedState saved in state.Channels)
            RestoreChannel(saved, devices[saved.Device]);
    }

    private void RestoreGpadl(GpadlSavedState saved)
    {
        if (saved.Pages is < 1 or > Gpadl.MaxPages)
            throw new SavedStateException("a list of pages has none, or too many");
        Gpadl list = new(memory, saved.Handle, saved.RelId, saved.Pages);
        if (!saved.PageNumbers.All(list.Add) || !gpadls.TryAdd(saved.Handle, list))
            throw new SavedStateException("a list of pages makes no sense");
        gpadlPages += list.Pages;
    }

    private void RestoreChannel(ChannelSavedState saved, VmBusDevice device)
    {
        if (saved.RelId is 0 or > VmBusProtocol.MaxRelId || Find(saved.RelId) is not null || !Enum.IsDefined((ChannelState)saved.State))
            throw new SavedStateException("a channel's number makes no sense");
        VmBusChannel channel = new(this, device, saved.RelId) { State = (ChannelState)saved.State };
        channels.Add(channel);
        if (channel.State == ChannelState.Open)
        {
            if (saved.Rings is not { } handle || !gpadls.TryGetValue(handle, out Gpadl? list) || !list.IsComplete || (uint)saved.Target >= (uint)partition.Processors.Count
                || !channel.Open(list, saved.DownstreamPage, saved.OpenId, saved.Target))
                throw new SavedStateException("a channel's rings make no sense");
            channel.Incoming!.Index = saved.ReadIndex;
            channel.Outgoing!.Index = saved.WriteIndex;
            channel.IsBroken = saved.IsBroken;
            partition.Connections.Add(VmBusProtocol.SignalConnection(saved.RelId), (IEventPort)channel);
            // A signal may have been on its way.
            channel.Signal(0);
        }
        device.Restore(saved.DeviceState);
    }
}

/// <summary>A VMBus at rest.</summary>
[SavedState("vmbus", 1)]
public sealed record VmBusSavedState
{
    /// <summary>Version agreed on.</summary>
    public uint? Version { get; init; }
    /// <summary>Processor that takes control messages.</summary>
    public int Target { get; init; }
    /// <summary>Synthetic interrupt source of the bus.</summary>
    public int Source { get; init; }
    /// <summary>Whether the guest has asked for offers.</summary>
    public bool OffersWanted { get; init; }
    /// <summary>Number for the next channel.</summary>
    public uint NextRelId { get; init; }
    /// <summary>Control messages that have not been looked at.</summary>
    public byte[][] Inbox { get; init; } = [];
    /// <summary>Lists of pages.</summary>
    public GpadlSavedState[] Gpadls { get; init; } = [];
    /// <summary>Channels.</summary>
    public ChannelSavedState[] Channels { get; init; } = [];
}

/// <summary>A list of pages at rest.</summary>
public sealed record GpadlSavedState
{
    /// <summary>The guest's handle.</summary>
    public uint Handle { get; init; }
    /// <summary>Channel.</summary>
    public uint RelId { get; init; }
    /// <summary>How many pages were announced.</summary>
    public int Pages { get; init; }
    /// <summary>Those that are known.</summary>
    public ulong[] PageNumbers { get; init; } = [];
}

/// <summary>A channel at rest.</summary>
public sealed record ChannelSavedState
{
    /// <summary>Name of its device.</summary>
    public string Device { get; init; } = "";
    /// <summary>Its number.</summary>
    public uint RelId { get; init; }
    /// <summary>0 not offered, 1 offered, 2 open, 3 rescinded.</summary>
    public int State { get; init; }
    /// <summary>Handle of the list that holds the rings.</summary>
    public uint? Rings { get; init; }
    /// <summary>Page at which the ring to the guest begins.</summary>
    public int DownstreamPage { get; init; }
    /// <summary>The guest's number for the opening.</summary>
    public uint OpenId { get; init; }
    /// <summary>Processor that takes signals.</summary>
    public int Target { get; init; }
    /// <summary>Host's index of the ring from the guest.</summary>
    public int ReadIndex { get; init; }
    /// <summary>Host's index of the ring to the guest.</summary>
    public int WriteIndex { get; init; }
    /// <summary>The guest has broken its rings.</summary>
    public bool IsBroken { get; init; }
    /// <summary>The device's own.</summary>
    public string? DeviceState { get; init; }
}
