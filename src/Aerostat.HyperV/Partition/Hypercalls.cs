using System.Buffers.Binary;
using System.Numerics;
using Aerostat.Memory;

namespace Aerostat.HyperV;

/// <summary>
/// The hypercalls (TLFS, chapters 3 and appendix A): posting messages, signalling events, inter-processor interrupts and flushes of translations,
/// these with a mask in one word and with a sparse set of processors.
/// </summary>
internal sealed class Hypercalls(HyperVPartition partition, GuestMemory memory, Action<ulong>? flush)
{
    private const ushort FlushSpace = 0x02, FlushList = 0x03, SendIpi = 0x0B, FlushSpaceEx = 0x13, FlushListEx = 0x14, SendIpiEx = 0x15;
    private const ushort PostMessage = 0x5C, SignalEvent = 0x5D;

    // Control: code, fast, size of a variable header, repetitions, first repetition; the rest is zero (TLFS, 3.7.1).
    private const ulong FastBit = 1 << 16, ReservedBits = 0xF000_F000_7800_0000 | 1UL << 31;
    private const int PostHeader = 16, FlushHeader = 24, FlushHeaderEx = 16, FirstVector = 16;
    private const ulong FlushAllProcessors = 1, FlushFlags = 0xF;

    /// <summary>Makes a hypercall; answers the result word.</summary>
    public ulong Call(ulong control, ulong input, ulong output)
    {
        if ((control & ReservedBits) != 0)
            return (ushort)HypercallStatus.InvalidInput;
        bool fast = (control & FastBit) != 0;
        int header = (int)(control >> 17) & 0x3FF, repetitions = (int)(control >> 32) & 0xFFF, first = (int)(control >> 48) & 0xFFF;
        var code = (ushort)control;
        bool repeats = code is FlushList or FlushListEx;
        bool hasSet = code is SendIpiEx or FlushSpaceEx or FlushListEx;
        if (!IsKnown(code))
            return (ushort)HypercallStatus.InvalidCode;
        if ((repeats ? repetitions == 0 || first >= repetitions : repetitions != 0 || first != 0) || (!hasSet && header != 0))
            return (ushort)HypercallStatus.InvalidInput;
        HypercallStatus status = code switch
        {
            PostMessage => fast ? HypercallStatus.InvalidInput : Post(input),
            SignalEvent => Signal(fast, input),
            SendIpi => Interrupt(fast, input, output),
            SendIpiEx => fast ? HypercallStatus.InvalidInput : InterruptSet(input, header),
            FlushSpace or FlushList => fast ? HypercallStatus.InvalidInput : Flush(input, repetitions),
            _ => fast ? HypercallStatus.InvalidInput : FlushSet(input, header, repetitions),
        };
        // What is flushed is flushed all at once.
        return (ushort)status | (repeats && status == HypercallStatus.Success ? (ulong)repetitions << 32 : 0);
    }

    private bool IsKnown(ushort code) => code is PostMessage or SignalEvent or SendIpi or SendIpiEx || (flush is not null && code is FlushSpace or FlushList or FlushSpaceEx or FlushListEx);

    // Input lies within a page, aligned to eight bytes (TLFS, 3.5). Copied once: the guest may change it meanwhile.
    private HypercallStatus Read(ulong input, Span<byte> into)
    {
        if ((input & 7) != 0 || (input & 0xFFF) + (ulong)into.Length > GuestAddress.PageSize)
            return HypercallStatus.InvalidAlignment;
        return memory.TryRead(new GuestAddress(input), into) ? HypercallStatus.Success : HypercallStatus.InvalidParameter;
    }

    private HypercallStatus Post(ulong input)
    {
        Span<byte> block = stackalloc byte[PostHeader + SynicMessage.MaxPayload];
        if (Read(input, block) is not HypercallStatus.Success and var error)
            return error;
        uint connection = BinaryPrimitives.ReadUInt32LittleEndian(block), type = BinaryPrimitives.ReadUInt32LittleEndian(block[8..]);
        uint size = BinaryPrimitives.ReadUInt32LittleEndian(block[12..]);
        // Types with the top bit are the hypervisor's own.
        if (connection >> 24 != 0 || size > SynicMessage.MaxPayload || type is 0 or >= 0x8000_0000)
            return HypercallStatus.InvalidParameter;
        return partition.Connections.Post(connection, type, block.Slice(PostHeader, (int)size));
    }

    private HypercallStatus Signal(bool fast, ulong input)
    {
        if (!fast)
        {
            Span<byte> block = stackalloc byte[8];
            if (Read(input, block) is not HypercallStatus.Success and var error)
                return error;
            input = BinaryPrimitives.ReadUInt64LittleEndian(block);
        }
        uint connection = (uint)input, flag = (uint)(input >> 32) & 0xFFFF;
        if (connection >> 24 != 0 || input >> 48 != 0 || flag >= SyntheticInterruptController.EventFlags)
            return HypercallStatus.InvalidParameter;
        return partition.Connections.Signal(connection, (int)flag);
    }

    private HypercallStatus Interrupt(bool fast, ulong first, ulong second)
    {
        if (!fast)
        {
            Span<byte> block = stackalloc byte[16];
            if (Read(first, block) is not HypercallStatus.Success and var error)
                return error;
            first = BinaryPrimitives.ReadUInt64LittleEndian(block);
            second = BinaryPrimitives.ReadUInt64LittleEndian(block[8..]);
        }
        return Interrupt(first, second);
    }

    private HypercallStatus InterruptSet(ulong input, int banks)
    {
        Span<byte> block = stackalloc byte[8];
        if (Read(input, block) is not HypercallStatus.Success and var error)
            return error;
        ulong first = BinaryPrimitives.ReadUInt64LittleEndian(block);
        return ReadSet(input + 8, banks, out ulong mask) is not HypercallStatus.Success and var other ? other : Interrupt(first, mask);
    }

    // Vector, then the trust level, which is always the only one there is (TLFS, 11.12.1).
    private HypercallStatus Interrupt(ulong first, ulong mask)
    {
        var vector = (uint)first;
        if (vector is < FirstVector or > 0xFF || first >> 32 != 0)
            return HypercallStatus.InvalidParameter;
        // Processors that do not exist, or whose local APIC is off, take nothing.
        for (; mask != 0; mask &= mask - 1)
        {
            int index = BitOperations.TrailingZeroCount(mask);
            if (index < partition.Processors.Count)
                partition.Processors[index].Apic.Deliver((byte)vector);
        }
        return HypercallStatus.Success;
    }

    private HypercallStatus Flush(ulong input, int addresses)
    {
        Span<byte> block = stackalloc byte[FlushHeader];
        if ((input & 0xFFF) + FlushHeader + ((ulong)addresses * 8) > GuestAddress.PageSize)
            return HypercallStatus.InvalidAlignment;
        if (Read(input, block) is not HypercallStatus.Success and var error)
            return error;
        return Flush(BinaryPrimitives.ReadUInt64LittleEndian(block[8..]), BinaryPrimitives.ReadUInt64LittleEndian(block[16..]));
    }

    private HypercallStatus FlushSet(ulong input, int banks, int addresses)
    {
        Span<byte> block = stackalloc byte[FlushHeaderEx];
        if (Read(input, block) is not HypercallStatus.Success and var error)
            return error;
        if ((input & 0xFFF) + FlushHeaderEx + 16 + (((ulong)banks + (ulong)addresses) * 8) > GuestAddress.PageSize)
            return HypercallStatus.InvalidAlignment;
        if (ReadSet(input + FlushHeaderEx, banks, out ulong mask) is not HypercallStatus.Success and var other)
            return other;
        return Flush(BinaryPrimitives.ReadUInt64LittleEndian(block[8..]), mask);
    }

    // Whatever the list says, everything goes: more than was asked for is allowed, and what is kept is found again quickly.
    private HypercallStatus Flush(ulong flags, ulong mask)
    {
        if ((flags & ~FlushFlags) != 0)
            return HypercallStatus.InvalidParameter;
        flush!((flags & FlushAllProcessors) != 0 ? ulong.MaxValue : mask);
        return HypercallStatus.Success;
    }

    // A sparse set (TLFS, 7.8.7.3): format, which banks of 64 processors are given, the banks. Only the first holds processors of ours.
    private HypercallStatus ReadSet(ulong input, int banks, out ulong mask)
    {
        const ulong sparse = 0, all = 1;
        mask = 0;
        Span<byte> block = stackalloc byte[16];
        if (Read(input, block) is not HypercallStatus.Success and var error)
            return error;
        ulong format = BinaryPrimitives.ReadUInt64LittleEndian(block), valid = BinaryPrimitives.ReadUInt64LittleEndian(block[8..]);
        if (format == all)
        {
            mask = ulong.MaxValue;
            return HypercallStatus.Success;
        }
        if (format != sparse)
            return HypercallStatus.InvalidParameter;
        if (BitOperations.PopCount(valid) != banks)
            return HypercallStatus.InvalidInput;
        if ((valid & 1) == 0)
            return HypercallStatus.Success;
        if (Read(input + 16, block[..8]) is not HypercallStatus.Success and var other)
            return other;
        mask = BinaryPrimitives.ReadUInt64LittleEndian(block);
        return HypercallStatus.Success;
    }
}
