using System.Runtime.CompilerServices;
using Aerostat.X86;

namespace Aerostat.Cpu;

/// <content>Short ways back into generated code behind an instruction that the interpreter has executed.</content>
internal sealed unsafe partial class Interpreter
{
    /// <summary>
    /// Whether generated code can go on at RIP at once: nothing has to be looked at first, and the jump table knows a block there. False: the
    /// dispatcher decides.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private bool TryGoOn(CpuState* s, TranslationState t, ref int variant, out nint entry)
    {
        entry = 0;
        if ((((s->Request & Deliverable(s)) | s->Shadow | s->Activity | debug | s->Poll) | (int)(s->SystemFlags & (RFlags.Tf | RFlags.Rf))) != 0
            || s->Bitness != 64 || s->TlbSet == EmptySet)
            return false;
        variant = Variant(s);
        entry = t.Cache.Target(variant, s->Rip);
        // What the table has checks R10.
        s->ExitAddress = s->Rip;
        t.Sought = entry == 0;
        return entry != 0;
    }
}
