using Aerostat.Chipset;
using Aerostat.Memory;
using Aerostat.Processors;
using Aerostat.State;

namespace Aerostat.HyperV;

/// <summary>
/// A virtual processor of a Hyper-V partition (Hypervisor Top-Level Functional Specification 6.0b): its synthetic registers, its synthetic
/// interrupt controller, and hypercalls on their way to the partition.
/// <para>Not emulated: run time and idle registers, re-enlightenment, nested virtualization, hypercalls with operands in XMM registers.</para>
/// </summary>
/// <remarks>Registers and hypercalls belong to the vCPU's thread; <see cref="Post"/> and <see cref="Signal"/> to any.</remarks>
public sealed class HyperVProcessor : ISavable<HyperVProcessorSavedState>
{
    private const ulong EnableBit = 1;

    private readonly HyperVPartition partition;
    private readonly GuestMemory memory;
    private readonly LocalApic apic;
    private readonly SyntheticInterruptController synic;
    private ulong assistPage;

    internal HyperVProcessor(HyperVPartition partition, int index, ITimestampCounter timestamp, LocalApic apic, GuestMemory memory, TimeProvider clock)
    {
        this.partition = partition;
        this.memory = memory;
        this.apic = apic;
        Index = index;
        Timestamp = timestamp;
        synic = new SyntheticInterruptController(memory, apic, partition.Time, clock);
        timestamp.Adjusted += () => partition.OnTimestampAdjusted(timestamp);
    }

    /// <summary>The VP index; the APIC ID equals it.</summary>
    public int Index { get; }

    /// <summary>The processor's time-stamp counter.</summary>
    internal ITimestampCounter Timestamp { get; }

    internal LocalApic Apic => apic;

    /// <summary>Sends a message to a source; false: too many wait already.</summary>
    public bool Post(int sint, SynicMessage message)
    {
        ArgumentNullException.ThrowIfNull(message);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(message.Payload.Length, SynicMessage.MaxPayload, nameof(message));
        return synic.Post(CheckSource(sint), message);
    }

    /// <summary>Messages that wait for a source's slot.</summary>
    public int Waiting(int sint) => synic.Waiting(CheckSource(sint));

    /// <summary>Sets an event flag of a source, 0 to 2047, and raises its interrupt if the flag was clear.</summary>
    public void Signal(int sint, int flag)
    {
        ArgumentOutOfRangeException.ThrowIfGreaterThanOrEqual((uint)flag, (uint)SyntheticInterruptController.EventFlags, nameof(flag));
        synic.Signal(CheckSource(sint), flag);
    }

    /// <summary>Raises a source's interrupt; false: it is masked, or the controller is off.</summary>
    public bool Raise(int sint) => synic.Raise(CheckSource(sint));

    /// <summary>Drops what waits for a source: its sender has started anew.</summary>
    public void Drop(int sint) => synic.Drop(CheckSource(sint));

    /// <summary>RDMSR; false: there is no such register.</summary>
    public bool ReadMsr(uint index, out ulong value)
    {
        if (synic.Read(index, out value) || partition.ReadMsr(index, out value))
            return true;
        switch (index)
        {
            case HyperVMsr.VpIndex:
                value = (ulong)Index;
                return true;
            case HyperVMsr.TimeRefCount:
                value = partition.Time.Read(Timestamp);
                return true;
            case HyperVMsr.TscFrequency:
                value = (ulong)Timestamp.FrequencyHz;
                return true;
            case HyperVMsr.ApicFrequency:
                value = (ulong)apic.TimerFrequencyHz;
                return true;
            case HyperVMsr.Icr when !apic.IsHosted:
                value = apic.ReadInterruptCommand();
                return true;
            case HyperVMsr.Tpr when !apic.IsHosted:
                value = apic.TaskPriority << 4;
                return true;
            case HyperVMsr.VpAssistPage:
                value = assistPage;
                return true;
            default:
                value = 0;
                return false;
        }
    }

    /// <summary>WRMSR; false: there is no such register, or it does not take the value.</summary>
    public bool WriteMsr(uint index, ulong value)
    {
        switch (index)
        {
            // Registers that the hypervisor keeps are reached in its own way, and CPUID does not announce these.
            case HyperVMsr.Eoi or HyperVMsr.Icr or HyperVMsr.Tpr when apic.IsHosted:
                return false;
            case HyperVMsr.Eoi:
                apic.WriteEndOfInterrupt();
                return value >> 32 == 0;
            case HyperVMsr.Icr:
                return apic.WriteInterruptCommand(value);
            case HyperVMsr.Tpr:
                if (value > 0xFF)
                    return false;
                apic.TaskPriority = value >> 4;
                return true;
            case HyperVMsr.VpAssistPage:
                WriteAssistPage(value);
                return true;
            default:
                return synic.Write(index, value) || partition.WriteMsr(index, value, Timestamp);
        }
    }

    /// <summary>A hypercall at privilege level 0; false: the instruction does not exist, since no hypercall page is enabled.</summary>
    /// <param name="registers">RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.</param>
    /// <param name="wide">Whether the code segment is a 64-bit one.</param>
    public bool Hypercall(Span<ulong> registers, bool wide)
    {
        if (!partition.IsHypercallEnabled)
            return false;
        if (wide)
        {
            registers[0] = partition.Hypercalls.Call(registers[1], registers[2], registers[8]);
            return true;
        }
        // 32-bit: EDX:EAX control, EBX:ECX input, EDI:ESI output; the result comes in EDX:EAX (TLFS, 3.7.2).
        static ulong Pair(ulong high, ulong low) => high << 32 | (uint)low;
        ulong result = partition.Hypercalls.Call(Pair(registers[2], registers[0]), Pair(registers[3], registers[1]), Pair(registers[7], registers[6]));
        registers[0] = (uint)result;
        registers[2] = result >> 32;
        return true;
    }

    internal void Reset()
    {
        synic.Reset();
        assistPage = 0;
        apic.EndOfInterruptFlag = null;
    }

    /// <inheritdoc/>
    public HyperVProcessorSavedState Save() => new() { Synic = synic.Save(), AssistPage = assistPage, EndsByFlag = apic.EndOfInterruptFlag is not null };

    /// <inheritdoc/>
    public void Restore(HyperVProcessorSavedState state)
    {
        ArgumentNullException.ThrowIfNull(state);
        synic.Restore(state.Synic);
        assistPage = state.AssistPage;
        apic.EndOfInterruptFlag = state.EndsByFlag ? new AssistFlag(memory, new GuestAddress(assistPage & ~0xFFFUL)) : null;
    }

    // The page tells of the end of interrupts (TLFS, 7.8.7). Linux writes the register on every processor; where there is no memory nothing is lent.
    private void WriteAssistPage(ulong value)
    {
        assistPage = value;
        GuestAddress at = new(value & ~0xFFFUL);
        apic.EndOfInterruptFlag = (value & EnableBit) != 0 && !apic.IsHosted && memory.TryWrite(at, 0u) ? new AssistFlag(memory, at) : null;
    }

    private static int CheckSource(int sint)
    {
        ArgumentOutOfRangeException.ThrowIfGreaterThanOrEqual((uint)sint, (uint)SyntheticInterruptController.Sources, nameof(sint));
        return sint;
    }

    // "No EOI required": bit 0 of the first word.
    private sealed class AssistFlag(GuestMemory memory, GuestAddress at) : IEndOfInterruptFlag
    {
        public bool Set() => memory.TryWrite(at, 1u);

        public bool Clear()
        {
            if (!memory.TryRead(at, out uint value) || (value & 1) == 0)
                return false;
            memory.TryWrite(at, value & ~1u);
            return true;
        }
    }
}

/// <summary>A virtual processor's part of the personality at rest.</summary>
[SavedState("hyperv-processor", 1)]
public sealed record HyperVProcessorSavedState
{
    /// <summary>Synthetic interrupt controller and timers.</summary>
    public SynicSavedState Synic { get; init; } = new();
    /// <summary>VP assist page register.</summary>
    public ulong AssistPage { get; init; }
    /// <summary>Whether interrupts may be ended through the page; INIT turns it off.</summary>
    public bool EndsByFlag { get; init; }
}
