using System.Buffers.Binary;
using System.Text;

namespace Aerostat.HyperV;

/// <summary>
/// Key/value exchange: what the guest's daemon says of its system, asked for when it is ready and every minute after; and what the host says to the
/// guest. Without a daemon the driver agrees on no version, and all of this waits.
/// </summary>
public sealed partial class KeyValueExchange : IntegrationComponent
{
    private const byte SetOperation = 1, Delete = 2, Enumerate = 3;
    private const byte ExternalPool = 0, AutomaticPool = 2;
    private const int KeySize = 512, ValueSize = 2048, EnumerateSize = 2580, SetSize = 2576, DeleteSize = 520, KeyAt = 20, ValueAt = 532;
    // No HRESULT of a guest's: bit 29 makes it ours.
    private const uint Text = 1, NoDaemon = 0xA000_0001;
    private const int MostFacts = 64;
    private static readonly TimeSpan s_interval = TimeSpan.FromMinutes(1);

    private readonly Queue<(byte[] Body, TaskCompletionSource<uint> Done)> wishes = new();
    private readonly Dictionary<string, string> found = [];
    private IReadOnlyDictionary<string, string> facts = new Dictionary<string, string>();
    private TaskCompletionSource<uint>? pending;
    private IDisposable? timer;
    private byte? waiting;
    private int index = -1;

    /// <inheritdoc/>
    public override string Name => "kvp";

    /// <inheritdoc/>
    public override ChannelOffer Offer { get; } = new(new("a9a0f4e7-5a45-4d96-b827-8a841e8c03e6"), new("242ff919-07db-4180-9c2e-b86cb68c8c55"));

    /// <summary>What the guest has said of itself, by the names that Hyper-V knows: OSName, OSVersion, FullyQualifiedDomainName... Any thread.</summary>
    public IReadOnlyDictionary<string, string> Facts => Volatile.Read(ref facts);

    private protected override ushort MessageType => 2;

    private protected override IReadOnlyList<ComponentVersion> MessageVersions { get; } = [new(3, 0), new(4, 0)];

    /// <summary>Gives the guest a value (pool "external"); null takes it away. False: there is no daemon, or it refuses. Any thread.</summary>
    public async Task<bool> SetAsync(string key, string? value)
    {
        ArgumentException.ThrowIfNullOrEmpty(key);
        byte[] body = new byte[value is null ? DeleteSize : SetSize];
        body[0] = value is null ? Delete : SetOperation;
        body[1] = ExternalPool;
        if (value is null)
        {
            BinaryPrimitives.WriteInt32LittleEndian(body.AsSpan(4), WriteText(body.AsSpan(8, KeySize), key));
        }
        else
        {
            BinaryPrimitives.WriteUInt32LittleEndian(body.AsSpan(4), Text);
            BinaryPrimitives.WriteInt32LittleEndian(body.AsSpan(8), WriteText(body.AsSpan(16, KeySize), key));
            BinaryPrimitives.WriteInt32LittleEndian(body.AsSpan(12), WriteText(body.AsSpan(16 + KeySize, ValueSize), value));
        }
        return await WishAsync(body).ConfigureAwait(false) == Succeeded;
    }

    // Answers the guest's status.
    private Task<uint> WishAsync(byte[] body)
    {
        TaskCompletionSource<uint> done = new(TaskCreationOptions.RunContinuationsAsynchronously);
        Bus.Post(() =>
        {
            if (State != ComponentState.Ready)
            {
                done.TrySetResult(NoDaemon);
                return;
            }
            wishes.Enqueue((body, done));
            Next();
        });
        return done.Task;
    }

    private bool isHeld;

    /// <summary>While it is held, no request is sent: the guest's file systems are frozen.</summary>
    internal void Hold(bool held)
    {
        isHeld = held;
        if (!held)
            Next();
    }

    private protected override void Ready()
    {
        index = 0;
        found.Clear();
        Next();
    }

    private protected override void Lost()
    {
        timer?.Dispose();
        timer = null;
        waiting = null;
        index = -1;
        pending?.TrySetResult(NoDaemon);
        pending = null;
        while (wishes.TryDequeue(out (byte[] Body, TaskCompletionSource<uint> Done) wish))
            wish.Done.TrySetResult(NoDaemon);
        Volatile.Write(ref facts, new Dictionary<string, string>());
    }

    private protected override void Answered(byte number, uint status, ReadOnlySpan<byte> body)
    {
        if (number != waiting)
        {
            NoteSpurious();
            return;
        }
        waiting = null;
        if (pending is not null)
        {
            pending.TrySetResult(status == NoDaemon ? Failed : status);
            pending = null;
        }
        else if (status != Succeeded || body.Length < EnumerateSize || found.Count >= MostFacts)
        {
            // That was the last, or the daemon has gone.
            index = -1;
            if (found.Count > 0)
                Volatile.Write(ref facts, new Dictionary<string, string>(found));
            timer?.Dispose();
            timer = Bus.After(s_interval, Ready);
        }
        else
        {
            Take(body);
            index++;
        }
        Next();
    }

    // One request at a time: the driver has one buffer. What the host says goes before what it asks.
    private void Next()
    {
        if (waiting is not null || State != ComponentState.Ready || isHeld)
            return;
        if (wishes.TryDequeue(out (byte[] Body, TaskCompletionSource<uint> Done) wish))
        {
            waiting = Request(wish.Body);
            pending = wish.Done;
            if (waiting is null)
                Lost();
            return;
        }
        if (index < 0)
            return;
        byte[] body = new byte[EnumerateSize];
        body[0] = Enumerate;
        body[1] = AutomaticPool;
        BinaryPrimitives.WriteInt32LittleEndian(body.AsSpan(4), index);
        waiting = Request(body);
    }

    private void Take(ReadOnlySpan<byte> body)
    {
        string key = ReadText(body.Slice(KeyAt, KeySize), BinaryPrimitives.ReadUInt32LittleEndian(body[12..]));
        string value = ReadText(body.Slice(ValueAt, ValueSize), BinaryPrimitives.ReadUInt32LittleEndian(body[16..]));
        if (key.Length > 0)
            found[key] = value;
    }

    private static int WriteText(Span<byte> at, string text)
    {
        int most = (at.Length / 2) - 1;
        return Encoding.Unicode.GetBytes(text.AsSpan(0, Math.Min(text.Length, most)), at) + 2;
    }

    // UTF-16 with a terminator. What the guest says may be anything, and goes to terminals and logs.
    private static string ReadText(ReadOnlySpan<byte> at, uint size)
    {
        string text = Encoding.Unicode.GetString(at[..(int)(Math.Min(size, (uint)at.Length) & ~1u)]);
        int end = text.IndexOf('\0', StringComparison.Ordinal);
        return string.Concat((end < 0 ? text : text[..end]).Where(c => !char.IsControl(c) && !char.IsSurrogate(c)));
    }

    /// <inheritdoc/>
    protected internal override void Resumed()
    {
        if (State != ComponentState.Ready || timer is not null || waiting is not null || index >= 0)
            return;
        // After a restore: what was known is asked for again. An answer that was under way is not waited for.
        timer = Bus.After(TimeSpan.FromSeconds(1), Ready);
    }
}
