using System.Buffers.Binary;
using System.Numerics;
using Aerostat.Memory;

namespace Aerostat.HyperV;

/// <summary>
/// The hypercalls (TLFS, chapters 3 and appendix A): posting messages, signalling events, inter-processor interrupts and flushes of translations,
/// these with a mask in one word and with a sparse set of processors; of the extended ones, what there is of them and hints at free memory.
/// </summary>
internal sealed class Hypercalls(HyperVPartition partition, GuestMemory memory, Action<ulong>? flush, Func<GuestAddress, ulong, bool>? reportFree)
{
    // Extended hypercalls (Linux, include/asm-generic/hyperv-tlfs.h): capabilities, and a list of ranges that the guest does not use.
    private const ushort QueryCapabilities = 0x8001, MemoryHeatHint = 0x8003;
    private const ulong ColdDiscardCapability = 1 << 8, ColdDiscard = 2;
    // Of a long list a part is done at a time, so that whoever waits for the processor need not wait for all of it; the guest asks for the rest.
    private const int RangesAtOnce = 64;

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
        bool repeats = code is FlushList or FlushListEx or MemoryHeatHint;
        bool hasSet = code is SendIpiEx or FlushSpaceEx or FlushListEx;
        if (!IsKnown(code))
            return (ushort)HypercallStatus.InvalidCode;
        if ((repeats ? repetitions == 0 || first >= repetitions : repetitions != 0 || first != 0) || (!hasSet && header != 0))
            return (ushort)HypercallStatus.InvalidInput;
        if (code == MemoryHeatHint)
            return fast ? (ushort)HypercallStatus.InvalidInput : Hint(input, first, repetitions);
        HypercallStatus status = code switch
        {
            QueryCapabilities => fast ? HypercallStatus.InvalidInput : Query(output),
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

    private bool IsKnown(ushort code) => code is PostMessage or SignalEvent or SendIpi or SendIpiEx or QueryCapabilities || (reportFree is not null && code == MemoryHeatHint) || (flush is not null && code is FlushSpace or FlushList or FlushSpaceEx or FlushListEx);

    private HypercallStatus Query(ulong output)
    {
        if ((output & 7) != 0)
            return HypercallStatus.InvalidAlignment;
        return memory.TryWrite(new GuestAddress(output), reportFree is null ? 0 : ColdDiscardCapability) ? HypercallStatus.Success : HypercallStatus.InvalidParameter;
    }

    // Kind of hint, then ranges: how many more pages in bits 10..0; bit 11: pages of 2 MiB, whose numbers begin at bit 21 (of 1 GiB with bit 12: not taken, and
    // never sent by Linux), else of 4 KiB, from bit 12 on.
    private ulong Hint(ulong input, int first, int repetitions)
    {
        Span<byte> block = stackalloc byte[8];
        if ((input & 0xFFF) + 8 + ((ulong)repetitions * 8) > GuestAddress.PageSize)
            return (ushort)HypercallStatus.InvalidAlignment;
        if (Read(input, block) is not HypercallStatus.Success and var error)
            return (ushort)error;
        if (BinaryPrimitives.ReadUInt64LittleEndian(block) != ColdDiscard)
            return (ushort)HypercallStatus.InvalidParameter;
        int done = first;
        for (int stop = Math.Min(repetitions, first + RangesAtOnce); done < stop; done++)
        {
            Read(input + 8 + ((ulong)done * 8), block);
            ulong range = BinaryPrimitives.ReadUInt64LittleEndian(block), more = range & 0x7FF;
            bool large = (range & 0x800) != 0;
            int shift = large ? 21 : 12;
            ulong page = range >> shift;
            if ((large && (range & 0x1000) != 0) || page > GuestMemory.AddressLimit >> shift || !reportFree!(new GuestAddress(page << shift), (more + 1) << shift))
                return (ushort)HypercallStatus.InvalidParameter | (ulong)done << 32;
        }
        return (ushort)HypercallStatus.Success | (ulong)done << 32;
    }

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
