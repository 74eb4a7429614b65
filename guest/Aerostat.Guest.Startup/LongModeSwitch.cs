using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace Aerostat.Guest.Startup;

/// <summary>From 32-bit protected mode to 64-bit code (Intel SDM vol. 3, section 10.8.5), for every guest of ours that is assembled.</summary>
internal static class LongModeSwitch
{
    /// <summary>Writes it. CR3 has the page tables; EAX, ECX and EDX change.</summary>
    /// <param name="a">Takes the code.</param>
    /// <param name="gdtPointer">Where the operand of LGDT is. The table's second entry is a 64-bit code segment.</param>
    /// <param name="target">Where the 64-bit code begins.</param>
    /// <param name="noExecute">Whether page tables may forbid execution.</param>
    public static void Write(Assembler a, uint gdtPointer, uint target, bool noExecute = false)
    {
        // PAE, OSFXSR, OSXMMEXCPT, for compiled code uses SSE2.
        a.mov(eax, 0x620);
        a.mov(cr4, eax);
        // LME, and NXE.
        a.mov(ecx, 0xC000_0080);
        a.rdmsr();
        a.or(eax, noExecute ? 0x900 : 0x100);
        a.wrmsr();
        // PG, WP, NE, ET, MP, PE.
        a.mov(eax, 0x8001_0033);
        a.mov(cr0, eax);
        a.lgdt(__[gdtPointer]);
        a.db(0xEA);
        a.dd(target);
        a.dw(8);
    }
}
