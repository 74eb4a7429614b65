using Iced.Intel;

namespace Aerostat.Cpu;

/// <summary>Iced's numbering of instruction forms.</summary>
internal static class InstructionForms
{
    /// <summary>How many there are. A constant, since asking the enumeration for its values takes longer than all else about them at start.</summary>
    public const int Count = (int)Code.VEX_Vsm3rnds2_xmm_xmm_xmmm128_imm8 + 1;
}
