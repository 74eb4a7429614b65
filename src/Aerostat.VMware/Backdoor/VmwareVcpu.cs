using Aerostat.Memory;
using Aerostat.Processors;
using Aerostat.State;

namespace Aerostat.VMware;

/// <summary>One vCPU's way to the backdoor and to the balloon's channel, and what is its own there. On the vCPU's thread, or while it is not running.</summary>
public sealed class VmwareVcpu : ISavable<VmwareVcpuSavedState>
{
    private readonly VmwareBackdoor _backdoor;
    private readonly VmwareBalloon _balloon;
    private readonly ITimestampCounter _timestamp;

    /// <summary>Connects a vCPU.</summary>
    /// <param name="backdoor">The machine's backdoor.</param>
    /// <param name="balloon">The machine's balloon.</param>
    /// <param name="memory">Guest memory.</param>
    /// <param name="timestamp">The vCPU's time-stamp counter.</param>
    /// <param name="thread">The host's number of the vCPU's thread. Called on any thread.</param>
    public VmwareVcpu(VmwareBackdoor backdoor, VmwareBalloon balloon, GuestMemory memory, ITimestampCounter timestamp, Func<int> thread)
    {
        ArgumentNullException.ThrowIfNull(backdoor);
        _backdoor = backdoor;
        _balloon = balloon;
        _timestamp = timestamp;
        StealClock = new StealClock(memory, backdoor.Options, thread);
    }

    /// <summary>The time it wanted to run and could not.</summary>
    internal StealClock StealClock { get; }

    /// <summary>Whether this is one of our ports.</summary>
    public static bool IsBackdoor(ushort port) => port is VmwareBackdoor.Port or VmwareBackdoor.MessagePort or VmwareBalloon.Port;

    /// <summary>A 32-bit IN; false: no call of ours.</summary>
    /// <param name="port">The port.</param>
    /// <param name="privilege">The caller's privilege level: the balloon's channel is the kernel's.</param>
    /// <param name="registers">RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, ...</param>
    public bool Call(ushort port, int privilege, Span<ulong> registers) => port switch
    {
        VmwareBackdoor.Port => _backdoor.Call(this, privilege, registers),
        VmwareBalloon.Port => privilege == 0 && _balloon.Call(registers),
        _ => false,
    };

    /// <summary>A part of REP INSB or OUTSB; false: no message of ours.</summary>
    /// <param name="port">The port.</param>
    /// <param name="output">OUTSB.</param>
    /// <param name="bytes">What is put out, or to be filled; none: the question whether any may be.</param>
    /// <param name="registers">As for <see cref="Call"/>.</param>
    public bool Transfer(ushort port, bool output, Span<byte> bytes, Span<ulong> registers) =>
        port == VmwareBackdoor.MessagePort && _backdoor.Transfer(output, bytes, registers);

    /// <summary>RDPMC of an index that no processor has; false: not of ours either.</summary>
    public bool ReadPseudoCounter(uint index, out ulong value) => _backdoor.ReadPseudoCounter(index, _timestamp.Read(), out value);

    /// <summary>Back to the power-on state.</summary>
    public void Reset() => StealClock.Reset();

    /// <inheritdoc/>
    public VmwareVcpuSavedState Save() => new() { StealClock = StealClock.Address, Stolen = StealClock.Published };

    /// <inheritdoc/>
    public void Restore(VmwareVcpuSavedState state)
    {
        ArgumentNullException.ThrowIfNull(state);
        StealClock.Restore(state.StealClock, state.Stolen);
    }
}

/// <summary>One vCPU's part of the personality at rest.</summary>
[SavedState("vmware-vcpu", 1)]
public sealed record VmwareVcpuSavedState
{
    /// <summary>Where the guest wants to see stolen time; null: nowhere.</summary>
    public ulong? StealClock { get; init; }
    /// <summary>What it has seen there last, in ticks of the time-stamp counter.</summary>
    public ulong Stolen { get; init; }
}
