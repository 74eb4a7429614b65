using System.Buffers.Binary;
using System.Security.Cryptography;

namespace Aerostat.VMware;

/// <summary>Takes what comes over a channel of the guest's, and has what goes the other way. Called with the channels' lock held; never throws.</summary>
internal interface IRpcEndpoint
{
    /// <summary>A whole message has come. The answer is what the guest fetches next from the channel; null: nothing.</summary>
    byte[]? Received(RpcChannel channel, byte[] message);

    /// <summary>The guest asks whether there is something for it.</summary>
    byte[]? Next(RpcChannel channel);

    /// <summary>The channel is open, or has been closed.</summary>
    void Changed(RpcChannel channel, bool open);
}

/// <summary>One open channel.</summary>
internal sealed class RpcChannel(int id, uint protocol, uint cookieHigh, uint cookieLow)
{
    public int Id => id;
    public uint Protocol => protocol;
    public uint CookieHigh => cookieHigh;
    public uint CookieLow => cookieLow;

    /// <summary>What is coming, and how much of it is there.</summary>
    public byte[]? Incoming { get; set; }
    public int IncomingAt { get; set; }

    /// <summary>What is going, and how much of it is gone.</summary>
    public byte[]? Outgoing { get; set; }
    public int OutgoingAt { get; set; }

    /// <summary>A transfer was cut off by a snapshot's restoration: the guest is to begin it anew.</summary>
    public bool CutOff { get; set; }
}

/// <summary>
/// The channels behind command 30 of the backdoor: messages of up to 64 KiB in either direction, four bytes with each call, or in one piece through port
/// 0x5659 (open-vm-tools: lib/message/message.c, guest_msg_def.h). A channel belongs to whoever knows its two cookies.
/// </summary>
internal sealed class GuestRpcChannels(IRpcEndpoint endpoint)
{
    public const uint Rpci = 0x4943_5052, Tclo = 0x4F4C_4354;
    public const int Most = 8, LongestMessage = 64 << 10;

    private const uint Open = 0, SendSize = 1, SendPayload = 2, ReceiveSize = 3, ReceivePayload = 4, ReceiveStatus = 5, Close = 6;
    private const uint Success = 1, HasMessage = 2, Checkpoint = 0x10, HighBandwidth = 0x80;
    private const uint CookieFlag = 0x8000_0000;
    private const int Rax = VmwareBackdoor.Rax, Rcx = VmwareBackdoor.Rcx, Rdx = VmwareBackdoor.Rdx, Rbx = VmwareBackdoor.Rbx, Rbp = 5, Rsi = VmwareBackdoor.Rsi, Rdi = VmwareBackdoor.Rdi;

    private readonly Lock gate = new();
    private readonly RpcChannel?[] channels = new RpcChannel?[Most];

    /// <summary>Held while the endpoint is called.</summary>
    public Lock Gate => gate;

    /// <summary>Whether a message may go in one piece: not where string instructions do not come here.</summary>
    public bool InOnePiece { get; init; } = true;

    /// <summary>What is open.</summary>
    public IEnumerable<RpcChannel> OpenChannels => channels.OfType<RpcChannel>();

    /// <summary>Command 30.</summary>
    public void Call(Span<ulong> registers)
    {
        lock (gate)
        {
            uint type = (uint)registers[Rcx] >> 16;
            uint status = type == Open ? OpenChannel(registers) : Find((uint)registers[Rdx] >> 16, (uint)registers[Rsi], (uint)registers[Rdi]) is { } channel ? Serve(channel, type, registers) : 0;
            registers[Rcx] = ((uint)registers[Rcx] & 0xFFFF) | (status << 16);
            registers[Rax] = (uint)registers[Rax];
        }
    }

    private RpcChannel? Find(uint id, uint high, uint low) =>
        id < Most && channels[id] is { } channel && channel.CookieHigh == high && channel.CookieLow == low ? channel : null;

    private uint OpenChannel(Span<ulong> registers)
    {
        uint protocol = (uint)registers[Rbx] & ~CookieFlag;
        int id = Array.IndexOf(channels, null);
        // Without a cookie any program could take a channel over.
        if (id < 0 || protocol is not (Rpci or Tclo) || ((uint)registers[Rbx] & CookieFlag) == 0)
            return 0;
        Span<byte> cookie = stackalloc byte[8];
        RandomNumberGenerator.Fill(cookie);
        RpcChannel channel = new(id, protocol, BinaryPrimitives.ReadUInt32LittleEndian(cookie), BinaryPrimitives.ReadUInt32LittleEndian(cookie[4..]));
        channels[id] = channel;
        SetHigh(registers, Rdx, (uint)id);
        registers[Rsi] = channel.CookieHigh;
        registers[Rdi] = channel.CookieLow;
        endpoint.Changed(channel, open: true);
        return Success;
    }

    private static void SetHigh(Span<ulong> registers, int register, uint value) => registers[register] = ((uint)registers[register] & 0xFFFF) | (value << 16);

    private uint Serve(RpcChannel channel, uint type, Span<ulong> registers)
    {
        switch (type)
        {
            case SendSize:
                uint size = (uint)registers[Rbx];
                if (size > LongestMessage)
                    return 0;
                channel.CutOff = false;
                channel.Incoming = new byte[size];
                channel.IncomingAt = 0;
                if (size == 0)
                    Deliver(channel);
                return Success | (InOnePiece ? HighBandwidth : 0);
            case SendPayload:
                if (channel.Incoming is null)
                    return CutOffOrFailed(channel);
                Span<byte> four = stackalloc byte[4];
                BinaryPrimitives.WriteUInt32LittleEndian(four, (uint)registers[Rbx]);
                TakeIn(channel, four[..Math.Min(4, channel.Incoming.Length - channel.IncomingAt)]);
                return Success;
            case ReceiveSize:
                channel.CutOff = false;
                channel.OutgoingAt = 0;
                channel.Outgoing ??= endpoint.Next(channel);
                if (channel.Outgoing is null)
                    return Success;
                SetHigh(registers, Rdx, SendSize);
                registers[Rbx] = (uint)channel.Outgoing.Length;
                return Success | HasMessage | (InOnePiece ? HighBandwidth : 0);
            case ReceivePayload:
                if (channel.Outgoing is null)
                    return CutOffOrFailed(channel);
                Span<byte> word = stackalloc byte[4];
                word.Clear();
                GiveOut(channel, word);
                SetHigh(registers, Rdx, SendPayload);
                registers[Rbx] = BinaryPrimitives.ReadUInt32LittleEndian(word);
                return Success;
            case ReceiveStatus:
                if (channel.Outgoing is null)
                    return CutOffOrFailed(channel);
                channel.Outgoing = null;
                return Success;
            case Close:
                channels[channel.Id] = null;
                endpoint.Changed(channel, open: false);
                return Success;
            default:
                return 0;
        }
    }

    private static uint CutOffOrFailed(RpcChannel channel)
    {
        uint status = channel.CutOff ? Checkpoint : 0;
        channel.CutOff = false;
        return status;
    }

    private void TakeIn(RpcChannel channel, ReadOnlySpan<byte> bytes)
    {
        bytes.CopyTo(channel.Incoming.AsSpan(channel.IncomingAt));
        channel.IncomingAt += bytes.Length;
        if (channel.IncomingAt == channel.Incoming!.Length)
            Deliver(channel);
    }

    private static void GiveOut(RpcChannel channel, Span<byte> bytes)
    {
        int count = Math.Min(bytes.Length, channel.Outgoing!.Length - channel.OutgoingAt);
        channel.Outgoing.AsSpan(channel.OutgoingAt, count).CopyTo(bytes);
        channel.OutgoingAt += count;
    }

    private void Deliver(RpcChannel channel)
    {
        byte[] message = channel.Incoming!;
        channel.Incoming = null;
        channel.Outgoing = endpoint.Received(channel, message);
    }

    /// <summary>A part of REP INSB or OUTSB. False: this is no such transfer.</summary>
    public bool Transfer(bool output, Span<byte> bytes, Span<ulong> registers)
    {
        if ((uint)registers[Rax] != VmwareBackdoor.Magic || (ushort)registers[Rbx] != 0)
            return false;
        if (bytes.IsEmpty)
            return true;
        lock (gate)
        {
            uint id = (uint)registers[Rdx] >> 16;
            RpcChannel? channel = output ? Find(id, (uint)registers[Rbp], (uint)registers[Rdi]) : Find(id, (uint)registers[Rsi], (uint)registers[Rbp]);
            uint status = channel is null ? 0 : MoveBytes(channel, output, bytes);
            SetHigh(registers, Rbx, status);
        }
        return true;
    }

    private uint MoveBytes(RpcChannel channel, bool output, Span<byte> bytes)
    {
        if (output)
        {
            if (channel.Incoming is null || bytes.Length > channel.Incoming.Length - channel.IncomingAt)
                return CutOffOrFailed(channel);
            TakeIn(channel, bytes);
            return Success;
        }
        if (channel.Outgoing is null || bytes.Length > channel.Outgoing.Length - channel.OutgoingAt)
            return CutOffOrFailed(channel);
        GiveOut(channel, bytes);
        return Success;
    }

    public void Clear() => Array.Clear(channels);

    public RpcChannelSavedState[] Save()
    {
        lock (gate)
            return [.. OpenChannels.Select(c => new RpcChannelSavedState(c.Id, c.Protocol, c.CookieHigh, c.CookieLow))];
    }

    public void Restore(IEnumerable<RpcChannelSavedState> saved)
    {
        lock (gate)
        {
            Clear();
            foreach (RpcChannelSavedState one in saved)
                if ((uint)one.Id < Most && one.Protocol is Rpci or Tclo)
                    channels[one.Id] = new RpcChannel(one.Id, one.Protocol, one.CookieHigh, one.CookieLow) { CutOff = true };
        }
    }
}

/// <summary>A channel at rest. What was being moved is not part of it: the guest begins anew.</summary>
/// <param name="Id">Its number.</param>
/// <param name="Protocol">RPCI or TCLO.</param>
/// <param name="CookieHigh">First cookie.</param>
/// <param name="CookieLow">Second cookie.</param>
public sealed record RpcChannelSavedState(int Id, uint Protocol, uint CookieHigh, uint CookieLow);
