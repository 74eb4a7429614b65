using System.Text.Json;
using Aerostat.State;
using Aerostat.Storage;

namespace Aerostat.HyperV;

/// <content>The controller at rest: its threads stand still, and requests wait to be carried out or to be completed.</content>
public sealed partial class StorageController
{
    /// <inheritdoc/>
    /// <exception cref="SavedStateException">An image cannot be written, and would not be what the guest believes.</exception>
    protected internal override string? Save()
    {
        // Whoever goes on from the state has only the files, not what this process still knows of them.
        foreach (ScsiDisk disk in disks)
            if (!disk.Contents.ReadOnly && disk.Contents.Flush() == DiskResult.Failed)
                throw new SavedStateException($"{disk.Name} has a disk image that the host cannot write");
        return JsonSerializer.Serialize(
            new StorageSavedState
            {
                Version = version,
                Initialized = initialized,
                Disks = [.. disks.Select(d => d.Contents.Length)],
                Waiting = [.. waiting.Select(Describe)],
                Done = [.. done.Select(Describe)],
            },
            HyperVStates.Default.StorageSavedState);
    }

    private static StorageRequestSavedState Describe(Request request) =>
        new() { Transaction = request.Transaction, Packet = request.Packet, Pages = request.Pages?.ToPieces() };

    /// <inheritdoc/>
    /// <exception cref="FormatException">The state makes no sense.</exception>
    /// <exception cref="SavedStateException">The disks are of other sizes.</exception>
    protected internal override void Restore(string? saved)
    {
        StorageSavedState? state;
        try
        {
            state = JsonSerializer.Deserialize(saved ?? "", HyperVStates.Default.StorageSavedState);
        }
        catch (JsonException e)
        {
            throw new FormatException($"the state of {Name} makes no sense: {e.Message}");
        }
        if (state is null or { Waiting: null } or { Done: null } or { Disks: null } || state.Waiting.Length + state.Done.Length > MostOutstanding)
            throw new FormatException($"the state of {Name} makes no sense");
        if (!state.Disks.AsSpan().SequenceEqual([.. disks.Select(d => d.Contents.Length)]))
            throw new SavedStateException($"the disks on {Name} had {string.Join(", ", state.Disks)} bytes, and have {string.Join(", ", disks.Select(d => d.Contents.Length))} here; give the same disks");
        Forget();
        version = state.Version;
        initialized = state.Initialized;
        foreach (StorageRequestSavedState request in state.Waiting)
            waiting.Enqueue(Read(request));
        foreach (StorageRequestSavedState request in state.Done)
            done.Enqueue(Read(request));
        outstanding = state.Waiting.Length + state.Done.Length;
    }

    private Request Read(StorageRequestSavedState saved)
    {
        if (saved.Packet is null || saved.Packet.Length is < StorageProtocol.LeastPacket or > StorageProtocol.PacketSize)
            throw new FormatException($"the state of {Name} makes no sense");
        GuestPages? pages = saved.Pages is null ? null
            : GuestPages.FromPieces(memory, saved.Pages, MostBytes) ?? throw new FormatException($"the state of {Name} names pages that are not memory");
        return new Request(saved.Transaction, saved.Packet, pages);
    }
}

/// <summary>A storage controller at rest; the contents of its disks are not part of it.</summary>
[SavedState("hyperv-storage", 1)]
public sealed record StorageSavedState
{
    /// <summary>Version agreed on; 0: none.</summary>
    public ushort Version { get; init; }
    /// <summary>The guest has initialized it.</summary>
    public bool Initialized { get; init; }
    /// <summary>Bytes of each disk.</summary>
    public ulong[] Disks { get; init; } = [];
    /// <summary>Requests that were not begun.</summary>
    public StorageRequestSavedState[] Waiting { get; init; } = [];
    /// <summary>Completions that the guest has not got.</summary>
    public StorageRequestSavedState[] Done { get; init; } = [];
}

/// <summary>A request at rest.</summary>
public sealed record StorageRequestSavedState
{
    /// <summary>The guest's number.</summary>
    public ulong Transaction { get; init; }
    /// <summary>The packet.</summary>
    public byte[] Packet { get; init; } = [];
    /// <summary>Address and length of each piece of guest memory; null: what the guest named made no sense.</summary>
    public ulong[]? Pages { get; init; }
}
