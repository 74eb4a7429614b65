// Placeholders for what other files bring; whoever lands the real thing deletes the line here (and the file with the last one).
using Iced.Intel;
using Aerostat.Processors;
namespace Aerostat.Cpu;
internal enum EventKind { HardwareException, ExternalInterrupt, Nmi, SoftwareInterrupt, SoftwareException, PrivilegedSoftwareException }
internal sealed class FeatureGate(CpuidTable t) { public bool IsSupported(in Instruction i) => t != null; }
internal static unsafe class SystemBinder { internal static bool Bind(in Instruction i, MicroOp* op, DecodeContext c) => false; }
internal sealed unsafe partial class Interpreter {
    internal bool Deliver(CpuState* s, EventKind kind, int vector, bool hasError, uint error) => false;
    internal void ResetState(bool init) { }
    internal ProcessorState GetState() => new();
    internal void SetState(ProcessorState p) { }
}
