using System.Buffers.Binary;

namespace Aerostat.HyperV;

/// <content>What the guest asks for.</content>
public sealed partial class VmBusServer
{
    private static uint Word(ReadOnlySpan<byte> message, int at) => BinaryPrimitives.ReadUInt32LittleEndian(message[at..]);

    // Least sizes are those of the fields that are looked at.
    private static int LeastSize(VmBusMessageType type) => type switch
    {
        VmBusMessageType.RequestOffers or VmBusMessageType.Unload => 8,
        VmBusMessageType.CloseChannel or VmBusMessageType.RelIdReleased => 12,
        VmBusMessageType.GpadlTeardown or VmBusMessageType.ModifyChannel or VmBusMessageType.GpadlBody => 16,
        VmBusMessageType.OpenChannel or VmBusMessageType.GpadlHeader => 28,
        VmBusMessageType.InitiateContact => 24,
        _ => int.MaxValue,
    };

    private void Handle(ReadOnlySpan<byte> message)
    {
        var type = (VmBusMessageType)Word(message, 0);
        if (message.Length < LeastSize(type))
        {
            Complain($"a message of type {(uint)type} and {message.Length} bytes");
            return;
        }
        if (type == VmBusMessageType.InitiateContact)
        {
            Contact(message);
            return;
        }
        if (version is null)
        {
            Complain($"a message of type {(uint)type} before a version was agreed on");
            return;
        }
        switch (type)
        {
            case VmBusMessageType.RequestOffers:
                offersWanted = true;
                foreach (VmBusChannel channel in channels)
                    OfferIfWanted(channel);
                Answer(VmBusProtocol.Message(VmBusMessageType.AllOffersDelivered));
                break;
            case VmBusMessageType.GpadlHeader:
                BeginGpadl(message);
                break;
            case VmBusMessageType.GpadlBody:
                ContinueGpadl(message);
                break;
            case VmBusMessageType.GpadlTeardown:
                TearDown(Word(message, 12));
                break;
            case VmBusMessageType.OpenChannel:
                Open(message);
                break;
            case VmBusMessageType.CloseChannel:
                if (Find(Word(message, 8)) is { State: ChannelState.Open } closing)
                    Close(closing);
                break;
            case VmBusMessageType.RelIdReleased:
                Release(Word(message, 8));
                break;
            case VmBusMessageType.ModifyChannel:
                Modify(Word(message, 8), Word(message, 12));
                break;
            case VmBusMessageType.Unload:
                Disconnect();
                Answer(VmBusProtocol.Message(VmBusMessageType.UnloadResponse));
                break;
        }
    }

    // Comes at any time: a kernel that was started by another does not know what that has agreed on.
    private void Contact(ReadOnlySpan<byte> message)
    {
        VmBusVersion wanted = VmBusVersion.Of(Word(message, 8));
        uint processor = Word(message, 12);
        bool choosesSource = wanted.Major >= 5;
        int source = choosesSource ? message[16] : 2;
        Disconnect();
        bool makesSense = processor < (uint)partition.Processors.Count && source < SyntheticInterruptController.Sources && (!choosesSource || message[17] == 0);
        // What is queued is for a kernel that is no more.
        partition.Processors[target].Drop(sint);
        Volatile.Write(ref target, makesSense ? (int)processor : 0);
        Volatile.Write(ref sint, makesSense ? source : 2);
        if (!makesSense)
            Complain($"a contact for processor {processor}, source {source}");
        bool accepted = makesSense && wanted.IsKnown && wanted.CompareTo(options.Version) <= 0;
        if (accepted)
            version = wanted;
        Answer(VmBusProtocol.VersionResponse(accepted));
    }

    // Header: relid, handle, length of the list, number of ranges, then for the one range bytes and offset, then page numbers.
    private void BeginGpadl(ReadOnlySpan<byte> message)
    {
        uint relId = Word(message, 8), handle = Word(message, 12), bytes = Word(message, 20), offset = Word(message, 24);
        int ranges = BinaryPrimitives.ReadUInt16LittleEndian(message[18..]);
        ulong pages = ((ulong)bytes + 4095) / 4096;
        bool refused = Find(relId) is not { State: ChannelState.Offered or ChannelState.Open } || gpadls.ContainsKey(handle) || ranges != 1 || offset != 0
            || pages is 0 or > Gpadl.MaxPages || gpadls.Count >= MaxGpadls || gpadlPages + (int)pages > MaxGpadlPages;
        if (refused)
        {
            Complain($"a list of {pages} pages in {ranges} ranges for channel {relId}");
            Answer(VmBusProtocol.Message(VmBusMessageType.GpadlCreated, relId, handle, unchecked((uint)VmBusProtocol.StatusInvalid)));
            return;
        }
        Gpadl list = new(memory, handle, relId, (int)pages);
        gpadls.Add(handle, list);
        gpadlPages += list.Pages;
        AddPages(list, message[GpadlHeaderSize..]);
    }

    private void ContinueGpadl(ReadOnlySpan<byte> message)
    {
        uint handle = Word(message, 12);
        if (gpadls.TryGetValue(handle, out Gpadl? list) && !list.IsComplete)
            AddPages(list, message[GpadlBodySize..]);
        else
            Complain($"more pages for list 0x{handle:x}, which waits for none");
    }

    // What follows the last page is padding.
    private void AddPages(Gpadl list, ReadOnlySpan<byte> numbers)
    {
        for (; numbers.Length >= 8 && !list.IsComplete; numbers = numbers[8..])
        {
            if (list.Add(BinaryPrimitives.ReadUInt64LittleEndian(numbers)))
                continue;
            Complain($"list 0x{list.Handle:x} has a page that is not memory");
            Forget(list);
            Answer(VmBusProtocol.Message(VmBusMessageType.GpadlCreated, list.RelId, list.Handle, unchecked((uint)VmBusProtocol.StatusInvalid)));
            return;
        }
        if (list.IsComplete)
            Answer(VmBusProtocol.Message(VmBusMessageType.GpadlCreated, list.RelId, list.Handle, VmBusProtocol.StatusSuccess));
    }

    private void TearDown(uint handle)
    {
        if (gpadls.TryGetValue(handle, out Gpadl? list))
        {
            if (list.InUse && Find(list.RelId) is { } user)
            {
                // The rings go before their memory does.
                Complain($"list 0x{handle:x} is torn down under an open channel");
                Close(user);
            }
            Forget(list);
        }
        Answer(VmBusProtocol.Message(VmBusMessageType.GpadlTornDown, handle));
    }

    private void Forget(Gpadl list)
    {
        if (gpadls.Remove(list.Handle))
            gpadlPages -= list.Pages;
    }

    private void Open(ReadOnlySpan<byte> message)
    {
        uint relId = Word(message, 8), openId = Word(message, 12), handle = Word(message, 16), processor = Word(message, 20), downstream = Word(message, 24);
        VmBusChannel? channel = Find(relId);
        // The guest learns of the rescission, and waits for no answer then.
        if (channel?.State == ChannelState.Rescinded)
            return;
        bool opened = channel?.State == ChannelState.Offered && processor < (uint)partition.Processors.Count && downstream <= Gpadl.MaxPages
            && gpadls.TryGetValue(handle, out Gpadl? list) && list is { IsComplete: true, InUse: false } && list.RelId == relId
            && channel.Open(list, (int)downstream, openId, (int)processor);
        if (!opened)
        {
            Complain($"channel {relId} cannot be opened with list 0x{handle:x}, ring at page {downstream}, processor {processor}");
            Answer(VmBusProtocol.Message(VmBusMessageType.OpenResult, relId, openId, unchecked((uint)VmBusProtocol.StatusInvalid)));
            return;
        }
        // The guest may signal as soon as it has the answer.
        partition.Connections.Add(VmBusProtocol.SignalConnection(relId), (IEventPort)channel!);
        channel!.Outgoing!.Open();
        Answer(VmBusProtocol.Message(VmBusMessageType.OpenResult, relId, openId, VmBusProtocol.StatusSuccess));
        channel.Device.Opened();
    }

    private void Release(uint relId)
    {
        if (Find(relId) is not { State: ChannelState.Rescinded } channel)
        {
            Complain($"channel {relId} is released, which was not taken back");
            return;
        }
        foreach (Gpadl list in gpadls.Values.Where(g => g.RelId == relId).ToArray())
            Forget(list);
        Replace(channel);
    }

    private void Modify(uint relId, uint processor)
    {
        bool done = Find(relId) is { State: ChannelState.Open } && processor < (uint)partition.Processors.Count;
        if (done)
            Find(relId)!.TargetProcessor = (int)processor;
        if (version!.Value.CompareTo(new VmBusVersion(5, 3)) >= 0)
            Answer(VmBusProtocol.Message(VmBusMessageType.ModifyResponse, relId, done ? 0 : unchecked((uint)VmBusProtocol.StatusInvalid)));
    }
}
