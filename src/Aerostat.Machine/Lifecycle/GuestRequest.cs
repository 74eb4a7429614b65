namespace Aerostat.Machine;

/// <summary>What a guest asked of its machine through a device: PoweredOff, Reset or DebugExit.</summary>
/// <param name="Kind">Which.</param>
/// <param name="Code">With debug-exit: the exit status, (value written &lt;&lt; 1) | 1.</param>
internal readonly record struct GuestRequest(MachineExitKind Kind, int Code = 0);
