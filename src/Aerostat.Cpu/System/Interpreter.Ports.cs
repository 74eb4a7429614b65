using System.Runtime.CompilerServices;
using Aerostat.X86;

namespace Aerostat.Cpu;

/// <content>Permission to use I/O ports.</content>
internal sealed unsafe partial class Interpreter
{
    /// <summary>Whether the present code may use these ports; false: the fault is recorded.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal bool MayUsePort(CpuState* s, ushort port, int size) =>
        (s->Cpl <= (int)((s->SystemFlags & RFlags.Iopl) >> 12) && (s->SystemFlags & RFlags.Vm) == 0) || CheckPortBitmap(s, port, size);

    // Intel SDM vol. 1 section 19.5.2: the map starts where the 32- or 64-bit TSS says, and the processor reads two bytes of it.
    private bool CheckPortBitmap(CpuState* s, ushort port, int size)
    {
        if ((s->Cr0 & Cr0.Pe) == 0)
            return true;
        if ((s->Tr.Attributes & SegmentRegister.Unusable) == 0 && (s->Tr.Attributes & 0x1D) == 9 && s->Tr.Limit >= 103)
        {
            if (!LoadSystem<ushort>(s, s->Tr.Base + 102, out ulong start))
                return false;
            ulong offset = start + (ulong)(port >> 3);
            if (offset + 1 <= s->Tr.Limit)
            {
                if (!LoadSystem<ushort>(s, s->Tr.Base + offset, out ulong bits))
                    return false;
                if ((bits >> (port & 7) & ((1UL << size) - 1)) == 0)
                    return true;
            }
        }
        return Fail(Vector.GeneralProtection, 0, 0);
    }
}
