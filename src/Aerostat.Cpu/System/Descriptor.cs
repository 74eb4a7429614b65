namespace Aerostat.Cpu;

/// <summary>Eight bytes of a descriptor table, taken apart (Intel SDM vol. 3 sections 3.4.5 and 3.5).</summary>
internal readonly struct Descriptor(ulong raw)
{
    public ulong Raw => raw;

    public uint Base => (uint)((raw >> 16) & 0xFF_FFFF) | ((uint)(raw >> 56) << 24);

    /// <summary>Limit in bytes, granularity applied.</summary>
    public uint Limit
    {
        get
        {
            uint limit = (uint)(raw & 0xFFFF) | (uint)(raw >> 32 & 0xF_0000);
            return (raw >> 55 & 1) != 0 ? (limit << 12) | 0xFFF : limit;
        }
    }

    /// <summary>In the layout of <see cref="SegmentRegister.Attributes"/>.</summary>
    public uint Attributes => (uint)(raw >> 40) & 0xF0FF;

    /// <summary>Type with the S bit at 4: 0x10..0x1F are data and code.</summary>
    public int Type => (int)(raw >> 40) & 0x1F;

    public int Dpl => (int)(raw >> 45) & 3;
    public bool IsPresent => (raw >> 47 & 1) != 0;
    public bool IsLong => (raw >> 53 & 1) != 0;
    public bool IsBig => (raw >> 54 & 1) != 0;
    public bool IsSystem => (Type & 0x10) == 0;
    public bool IsCode => (Type & 0x18) == 0x18;
    public bool IsConforming => (Type & 0x1C) == 0x1C;
    public bool IsWritableData => (Type & 0x1A) == 0x12;
    public bool IsReadable => (Type & 0x18) == 0x10 || (Type & 0x1A) == 0x1A;
    public bool IsAccessed => (raw >> 40 & 1) != 0;

    // System descriptor types.
    public const int Tss16 = 1, Ldt = 2, Tss16Busy = 3, CallGate16 = 4, TaskGate = 5, InterruptGate16 = 6, TrapGate16 = 7;
    public const int Tss32 = 9, Tss32Busy = 11, CallGate32 = 12, InterruptGate32 = 14, TrapGate32 = 15;

    /// <summary>Fills a segment register; code and data come with their accessed bit set.</summary>
    public unsafe void CopyTo(SegmentRegister* register, ushort selector)
    {
        register->Base = Base;
        register->Limit = Limit;
        register->Attributes = Attributes | ((uint)Type >> 4);
        register->Selector = selector;
    }
}
