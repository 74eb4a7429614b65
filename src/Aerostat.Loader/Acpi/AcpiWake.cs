using Aerostat.Memory;
using Aerostat.Processors;
using Aerostat.X86;

namespace Aerostat.Loader;

/// <summary>The part of the firmware that runs after S3: ACPI 6.5 sections 5.2.10 (FACS) and 16.3.2.</summary>
public static class AcpiWake
{
    private const uint RealModeCode = 0x9B, RealModeData = 0x93;
    private const uint Signature = 0x5343_4146; // "FACS"
    private const int WakingVector = 12, WideWakingVector = 24;

    /// <summary>
    /// What makes the state of the bootstrap processor out of its reset state, by the waking vector in the FACS: real mode, or 32-bit
    /// protected mode without paging when the guest gave the wide vector. Null: there is no vector, and the machine boots anew.
    /// </summary>
    /// <param name="memory">Guest memory as the guest left it; it may have written anything there.</param>
    public static Func<ProcessorState, ProcessorState>? Find(GuestMemory memory)
    {
        ArgumentNullException.ThrowIfNull(memory);
        if (memory.Regions.Count == 0 || memory.Regions[0].Size < E820Map.SmallestMemory)
            return null;
        ulong facs = AcpiTables.FacsAddress(memory);
        if (!memory.TryRead(new(facs), out uint signature) || signature != Signature)
            return null;
        if (memory.TryRead(new(facs + WideWakingVector), out ulong wide) && wide is not 0 and <= uint.MaxValue)
            return _ => BootState.Flat32(wide, default, FlatLoader.Code, FlatLoader.Data);
        return memory.TryRead(new(facs + WakingVector), out uint vector) && vector is not 0 and < 1 << 20
            ? reset => RealMode(reset, vector)
            : null;
    }

    // CS:IP is vector >> 4 and vector & 15, as the specification has it.
    private static ProcessorState RealMode(ProcessorState state, uint vector)
    {
        for (int i = 0; i < state.Segments.Length; i++)
            state.Segments[i] = new SegmentState(0, 0, 0xFFFF, RealModeData);
        state.Segments[1] = new SegmentState((ushort)(vector >> 4), vector & ~15UL, 0xFFFF, RealModeCode);
        state.Rip = vector & 15;
        state.Msrs[Msr.MtrrDefType] = BootState.MemoryTypes;
        return state;
    }
}
