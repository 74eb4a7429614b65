using Aerostat.Processors;

namespace Aerostat.Cpu;

// Signatures that the core fills in next; see Mmu/ and Interpreter/.
internal sealed unsafe partial class Interpreter
{
    internal ProcessorExit PendingExit;
    internal TimestampCounter Timestamp { get; } = null!;
    internal void UpdateMode() { }
    internal void FlushTlb() { }
    internal void InvalidatePage(ulong linear) { }
    internal bool LoadSystem<T>(CpuState* s, ulong linear, out ulong value) where T : unmanaged { value = 0; return false; }
    internal Outcome StoreSystem<T>(CpuState* s, ulong linear, ulong value) where T : unmanaged => Outcome.Fault;
    internal bool LoadSlow(CpuState* s, ulong linear, int segment, int size, out ulong value) { value = 0; return false; }
    internal Outcome StoreSlow(CpuState* s, ulong linear, int segment, int size, ulong value) => Outcome.Fault;
    internal byte* MapRmwSlow(CpuState* s, ulong linear, int segment, int size) => null;
    internal Outcome FinishRmwSlow(CpuState* s) => Outcome.Next;
    internal bool LoadBytesSlow(CpuState* s, ulong linear, int segment, byte* destination, int count) => false;
    internal Outcome StoreBytesSlow(CpuState* s, ulong linear, int segment, byte* source, int count) => Outcome.Fault;
}
