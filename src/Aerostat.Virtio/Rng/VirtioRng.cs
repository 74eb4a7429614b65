using System.Security.Cryptography;
using Aerostat.Platform;
using Aerostat.State;

namespace Aerostat.Virtio;

/// <summary>
/// An entropy source: virtio 1.2, 5.4. Fills the driver's buffers from the host's random number generator.
/// <para>Not emulated: a limit on how much a guest takes in a time; the host's generator does not run dry.</para>
/// </summary>
public sealed class VirtioRng : VirtioDevice, ISavable<VirtioRngSavedState>
{
    // What one request gets at most; the driver asks again for more (the used length says how much it was).
    private const int LargestRequest = 64 << 10;

    private readonly DescriptorChain _chain = new();
    private long _bytes;

    /// <summary>Makes the device.</summary>
    /// <param name="name">Its name.</param>
    /// <param name="packed">Offers the packed ring.</param>
    /// <param name="context">The machine.</param>
    public VirtioRng(string name, bool packed, VirtioContext context)
        : base(name, VirtioDeviceId.Entropy, packed ? VirtioFeatures.RingPacked : 0, [64], context)
    {
    }

    /// <inheritdoc/>
    public override IEnumerable<(string Name, long Value)> Counters => [.. base.Counters, ("bytes", Volatile.Read(ref _bytes))];

    /// <inheritdoc/>
    protected override void Serve()
    {
        Virtqueue queue = Queues[0];
        Span<HostBuffer> buffers = stackalloc HostBuffer[16];
        while (!IsPausing)
        {
            lock (Gate)
            {
                if (!queue.TryTake(_chain))
                {
                    if (queue.EnableNotification())
                        continue;
                    return;
                }
                BeginWork(queue);
            }
            int count = _chain.GetBuffers(Memory, writable: true, 0, LargestRequest, buffers, out ulong length);
            foreach (ref readonly HostBuffer buffer in buffers[..count])
                RandomNumberGenerator.Fill(buffer.AsSpan());
            _chain.NotifyWritten(Memory, 0, length);
            lock (Gate)
            {
                queue.Complete(_chain, (uint)length);
                queue.Signal();
                _bytes += (long)length;
                EndWork(queue);
            }
        }
    }

    /// <inheritdoc/>
    public VirtioRngSavedState Save() => new() { Device = SaveDevice() };

    /// <inheritdoc/>
    public void Restore(VirtioRngSavedState state) => RestoreDevice(state.Device);
}

/// <summary>An entropy source at rest.</summary>
[SavedState("virtio-rng", 1)]
public sealed record VirtioRngSavedState
{
    /// <summary>The common part.</summary>
    public VirtioDeviceSavedState Device { get; init; } = new();
}
