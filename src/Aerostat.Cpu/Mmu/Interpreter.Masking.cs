using System.Runtime.CompilerServices;
using Aerostat.X86;

namespace Aerostat.Cpu;

/// <content>
/// Linear-address masking (LAM; Intel SDM vol. 3 section 4.4): data pointers in 64-bit mode may carry tags in their upper bits. The TLB
/// holds pages under the addresses with which they were accessed, tags included; so tagged accesses are as fast as others, and what
/// drops a page's entry compares without the tags once masking has been in use.
/// </content>
internal sealed unsafe partial class Interpreter
{
    private const ulong MaskBits = Cr3.LamU48 | Cr3.LamU57;

    // What of an entry's tag INVLPG compares.
    private ulong comparedBits = ulong.MaxValue;

    /// <summary>
    /// A data address without its tag; one whose tag is not allowed comes back as it is and is then not canonical. Bit 63 must agree with the
    /// highest bit below the tag.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal static ulong Unmask(CpuState* s, ulong linear) =>
        ((s->Cr3 & MaskBits) | (s->Cr4 & Cr4.LamSup)) == 0 ? linear : UnmaskTagged(s, linear);

    private static ulong UnmaskTagged(CpuState* s, ulong linear)
    {
        // Outside 64-bit mode the upper half is not part of an address, and CR3 has no such bits.
        if (s->Bitness != 64)
            return linear;
        int tag;
        if ((long)linear < 0)
            tag = (s->Cr4 & Cr4.LamSup) == 0 ? 0 : (s->Cr4 & Cr4.La57) != 0 ? 7 : 16;
        else
            tag = (s->Cr3 & Cr3.LamU57) != 0 ? 7 : (s->Cr3 & Cr3.LamU48) != 0 ? 16 : 0;
        ulong masked = (ulong)((long)(linear << tag) >> tag);
        return (long)(masked ^ linear) < 0 ? linear : masked;
    }

    // Whether CR3's bits for masking stay as they are; if not, entries of any space may be under addresses that are none any more.
    private bool HasMasks(CpuState* s, ulong value)
    {
        if ((value & MaskBits) != 0)
            NoteMasking();
        return ((s->Cr3 ^ value) & MaskBits) == 0;
    }

    /// <summary>From now on there may be tags in the TLB.</summary>
    private void NoteMasking() => comparedBits = (1UL << 48) - 1;
}
