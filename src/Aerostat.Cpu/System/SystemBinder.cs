using Iced.Intel;

namespace Aerostat.Cpu;

/// <summary>Binds the system instructions: everything that deals with privilege, segments, modes, ports and the model.</summary>
internal static unsafe class SystemBinder
{
    internal static bool Bind(in Instruction i, MicroOp* op, DecodeContext c) =>
        SegmentInstructions.Bind(i, op) || FarTransfers.Bind(i, op, c) || Syscalls.Bind(i, op) || ControlRegisters.Bind(i, op, c)
        || DescriptorTables.Bind(i, op, c) || ModelRegisters.Bind(i, op, c) || Ports.Bind(i, op) || Miscellany.Bind(i, op, c);
}
