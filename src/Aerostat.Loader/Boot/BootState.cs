using System.Buffers.Binary;
using Aerostat.Processors;
using Aerostat.X86;

namespace Aerostat.Loader;

/// <summary>Processor states that boot protocols ask for.</summary>
internal static class BootState
{
    // Attributes: type, S, P, then L (13), D/B (14), G (15); accessed bit set as after a real load (Intel SDM vol. 3 section 3.4.5).
    public const uint Code64 = 0xA09B, Code32 = 0xC09B, Data32 = 0xC093, Tss32 = 0x008B;

    /// <summary>
    /// IA32_MTRR_DEF_TYPE: firmware leaves the MTRRs on with write-back as the default type; Linux distrusts memory that is not covered.
    /// </summary>
    public const ulong MemoryTypes = 0x806;

    private const uint LdtAttributes = 0x0082;

    /// <summary>64-bit mode with the given page tables and GDT selectors.</summary>
    public static ProcessorState Long(ulong entry, ulong cr3, DescriptorTableState gdt, ushort code, ushort data)
    {
        ProcessorState state = Common(entry);
        state.Cr0 = Cr0.Pe | Cr0.Et | Cr0.Ne | Cr0.Wp | Cr0.Pg;
        state.Cr3 = cr3;
        state.Cr4 = Cr4.Pae;
        state.Efer = Efer.Lme | Efer.Lma;
        SetFlat(state, code, Code64, data);
        state.Gdtr = gdt;
        return state;
    }

    /// <summary>32-bit protected mode, paging off, flat segments.</summary>
    public static ProcessorState Flat32(ulong entry, DescriptorTableState gdt, ushort code, ushort data)
    {
        ProcessorState state = Common(entry);
        state.Cr0 = Cr0.Pe | Cr0.Et;
        SetFlat(state, code, Code32, data);
        state.Gdtr = gdt;
        return state;
    }

    /// <summary>A GDT descriptor with base 0 and limit 4 GiB - 1 (or, for a TSS, 0x67).</summary>
    public static ulong Descriptor(uint attributes) => attributes == Tss32
        ? 0x67UL | ((ulong)attributes << 40)
        : 0xFFFFUL | (0xFUL << 48) | ((ulong)(attributes & 0xFF) << 40) | ((ulong)(attributes >> 12) << 52);

    private static void SetFlat(ProcessorState state, ushort code, uint codeAttributes, ushort data)
    {
        for (int i = 0; i < 6; i++)
            state.Segments[i] = new SegmentState(data, 0, 0xFFFFFFFF, Data32);
        state.Segments[1] = new SegmentState(code, 0, 0xFFFFFFFF, codeAttributes);
        state.Tr = new SegmentState(0, 0, 0x67, Tss32);
        state.Ldtr = new SegmentState(0, 0, 0xFFFF, LdtAttributes);
    }

    private static ProcessorState Common(ulong entry)
    {
        ProcessorState state = new() { Rip = entry };
        state.Dr[6] = 0xFFFF0FF0;
        state.Dr[7] = 0x400;
        // FCW and MXCSR as firmware leaves them; XSTATE_BV says that x87 and SSE are present in the area.
        BinaryPrimitives.WriteUInt16LittleEndian(state.Xsave, 0x37F);
        BinaryPrimitives.WriteUInt32LittleEndian(state.Xsave.AsSpan(24), 0x1F80);
        BinaryPrimitives.WriteUInt32LittleEndian(state.Xsave.AsSpan(28), 0xFFFF);
        state.Xsave[512] = 3;
        state.Msrs[Msr.Pat] = 0x0007040600070406;
        state.Msrs[Msr.MiscEnable] = 1;
        state.Msrs[Msr.MtrrDefType] = MemoryTypes;
        return state;
    }
}
