namespace Aerostat.Virtio.Tests;

/// <summary>A device for tests: gives back in the writable part what is in the readable part, and has eight bytes of configuration.</summary>
internal sealed class EchoDevice : VirtioDevice
{
    private readonly DescriptorChain _chain = new();
    private readonly byte[] _config = new byte[8];

    public EchoDevice(VirtioContext context, ulong features = VirtioFeatures.RingPacked, int queues = 2)
        : base("echo", VirtioDeviceId.Entropy, features, [.. Enumerable.Repeat((ushort)64, queues)], context)
    {
    }

    /// <summary>Runs in the middle of the work on a chain.</summary>
    public Action? Midway { get; set; }

    public int Resets { get; private set; }

    public override int ConfigLength => _config.Length;

    public void ChangeConfig(byte value)
    {
        lock (Gate)
        {
            _config[0] = value;
            ConfigChanged();
        }
    }

    protected override void FillConfig(Span<byte> space) => _config.CopyTo(space);

    protected override void OnConfigWritten(int offset, ReadOnlySpan<byte> bytes) => bytes.CopyTo(_config.AsSpan(offset));

    protected override void OnReset() => Resets++;

    protected override void Serve()
    {
        byte[] buffer = new byte[4096];
        foreach (Virtqueue queue in Queues)
        {
            while (!IsPausing)
            {
                lock (Gate)
                {
                    if (!queue.TryTake(_chain))
                    {
                        if (queue.EnableNotification())
                            continue;
                        break;
                    }
                    BeginWork(queue);
                }
                Midway?.Invoke();
                uint written = 0;
                for (ulong at = 0; at < Math.Min(1 << 20, Math.Min(_chain.ReadableLength, _chain.WritableLength));)
                {
                    int count = _chain.Read(Memory, at, buffer);
                    count = _chain.Write(Memory, at, buffer.AsSpan(0, count));
                    written += (uint)count;
                    at += (ulong)count;
                    if (count == 0)
                        break;
                }
                lock (Gate)
                {
                    queue.Complete(_chain, written);
                    queue.Signal();
                    EndWork(queue);
                }
            }
        }
    }

    public VirtioDeviceSavedState Save() => SaveDevice();

    public void Restore(VirtioDeviceSavedState state) => RestoreDevice(state);
}
