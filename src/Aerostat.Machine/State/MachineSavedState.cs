using Aerostat.State;

namespace Aerostat.Machine;

/// <summary>All of a machine at rest but its memory.</summary>
/// <param name="Timestamp">VM time in nanoseconds.</param>
/// <param name="BootTime">Time of day when VM time was zero.</param>
/// <param name="TscFrequencyHz">Increments of the time-stamp counter in a second of VM time.</param>
/// <param name="Cpuid">What CPUID answers on vCPU 0: the guest has made up its mind by it.</param>
/// <param name="Asleep">Whether the guest is suspended to RAM.</param>
/// <param name="Elements">The parts, in the order in which they are put back.</param>
public sealed record MachineSavedState(
    long Timestamp, DateTimeOffset BootTime, long TscFrequencyHz, IReadOnlyList<CpuidEntry> Cpuid, bool Asleep, IReadOnlyList<SavedElement> Elements);

/// <summary>What CPUID answers for one leaf.</summary>
/// <param name="Leaf">EAX.</param>
/// <param name="Subleaf">ECX; 0xFFFFFFFF: any.</param>
/// <param name="Eax">EAX of the answer.</param>
/// <param name="Ebx">EBX of the answer.</param>
/// <param name="Ecx">ECX of the answer.</param>
/// <param name="Edx">EDX of the answer.</param>
public readonly record struct CpuidEntry(uint Leaf, uint Subleaf, uint Eax, uint Ebx, uint Ecx, uint Edx);

/// <summary>What a machine goes on from.</summary>
/// <param name="State">Everything but the memory.</param>
/// <param name="FillMemory">Puts the memory's contents into a memory that is all zeros.</param>
/// <param name="NewIdentity">
/// Whether the guest is told that it goes on from a copy of itself. Only false when the original never runs again.
/// </param>
public sealed record MachineOrigin(MachineSavedState State, Action<Memory.GuestMemory> FillMemory, bool NewIdentity = true);
