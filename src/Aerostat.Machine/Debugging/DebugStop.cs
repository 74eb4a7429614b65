using Aerostat.Processors;

namespace Aerostat.Machine;

/// <summary>Why a debugged machine stands still.</summary>
public enum DebugStopKind
{
    /// <summary>A step is complete.</summary>
    Step,
    /// <summary>Before the instruction of a code breakpoint.</summary>
    CodeBreakpoint,
    /// <summary>Before the instruction of a hardware breakpoint.</summary>
    HardwareBreakpoint,
    /// <summary>After an instruction that a data breakpoint was waiting for.</summary>
    Watchpoint,
    /// <summary>The guest cannot go on (triple fault, failed entry). The run ends when the machine is let go.</summary>
    Crashed,
}

/// <summary>A stop of the whole machine, and the vCPU that caused it.</summary>
/// <param name="Vcpu">Its number.</param>
/// <param name="Kind">Why.</param>
/// <param name="Address">Its RIP.</param>
/// <param name="Dr6">What DR6 would say (<see cref="GuestDebugBits"/>); 0 for a crash.</param>
/// <param name="Breakpoint">Which hardware or data breakpoint, by its place in the list given to <see cref="MachineDebugger.SetBreakpoints"/>; -1: none.</param>
public sealed record DebugStop(int Vcpu, DebugStopKind Kind, ulong Address, ulong Dr6, int Breakpoint = -1);

/// <summary>What a vCPU does when a debugged machine goes on.</summary>
public enum VcpuResume
{
    /// <summary>It stays where it is.</summary>
    Hold,
    /// <summary>It runs.</summary>
    Run,
    /// <summary>It executes one instruction, and then the machine stops.</summary>
    Step,
}

/// <summary>Part of a guest's linear address space.</summary>
/// <param name="Linear">First linear address.</param>
/// <param name="Physical">Where it lies.</param>
/// <param name="Length">Bytes.</param>
/// <param name="Writable">May be written.</param>
/// <param name="User">User mode may use it.</param>
/// <param name="Executable">Code may run there.</param>
public readonly record struct PageMapping(ulong Linear, ulong Physical, ulong Length, bool Writable, bool User, bool Executable);
