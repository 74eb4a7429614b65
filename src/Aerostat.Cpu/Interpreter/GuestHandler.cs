using Aerostat.Processors;

namespace Aerostat.Cpu;

/// <summary>Wraps the machine's exit handler so that a vCPU counts as outside the guest while a call runs.</summary>
internal sealed class GuestHandler(Interpreter cpu, ExecutionGate gate) : IExitHandler
{
    /// <summary>The machine's handler, for the present Run.</summary>
    public IExitHandler Inner { get; set; } = null!;

    public uint ReadPort(ushort port, int size)
    {
        ExecutionGate.Leave(cpu);
        uint value = Inner.ReadPort(port, size);
        After();
        return value;
    }

    public void WritePort(ushort port, int size, uint value)
    {
        ExecutionGate.Leave(cpu);
        Inner.WritePort(port, size, value);
        After();
    }

    public ulong ReadMmio(ulong address, int size)
    {
        ExecutionGate.Leave(cpu);
        ulong value = Inner.ReadMmio(address, size);
        After();
        return value;
    }

    public void WriteMmio(ulong address, int size, ulong value)
    {
        ExecutionGate.Leave(cpu);
        Inner.WriteMmio(address, size, value);
        After();
    }

    public bool ReadMsr(uint index, out ulong value)
    {
        ExecutionGate.Leave(cpu);
        bool known = Inner.ReadMsr(index, out value);
        After();
        return known;
    }

    public bool WriteMsr(uint index, ulong value)
    {
        ExecutionGate.Leave(cpu);
        bool known = Inner.WriteMsr(index, value);
        After();
        return known;
    }

    public int AcknowledgeInterrupt()
    {
        ExecutionGate.Leave(cpu);
        int vector = Inner.AcknowledgeInterrupt();
        After();
        return vector;
    }

    public ulong TaskPriority
    {
        get => Inner.TaskPriority;
        set
        {
            ExecutionGate.Leave(cpu);
            Inner.TaskPriority = value;
            After();
        }
    }

    public bool LocalApicEnabled => Inner.LocalApicEnabled;

    public bool Hypercall(IVirtualProcessor processor, Span<ulong> registers)
    {
        ExecutionGate.Leave(cpu);
        bool known = Inner.Hypercall(processor, registers);
        After();
        return known;
    }

    public bool IsBackdoor(ushort port) => Inner.IsBackdoor(port);

    public bool CallBackdoor(ushort port, int privilege, Span<ulong> registers)
    {
        ExecutionGate.Leave(cpu);
        bool served = Inner.CallBackdoor(port, privilege, registers);
        After();
        return served;
    }

    public bool TransferBackdoor(ushort port, bool output, Span<byte> bytes, Span<ulong> registers)
    {
        ExecutionGate.Leave(cpu);
        bool served = Inner.TransferBackdoor(port, output, bytes, registers);
        After();
        return served;
    }

    public bool ReadPseudoCounter(uint index, out ulong value)
    {
        ExecutionGate.Leave(cpu);
        bool known = Inner.ReadPseudoCounter(index, out value);
        After();
        return known;
    }

    public bool LeaveRequested => Inner.LeaveRequested;

    private void After()
    {
        gate.Enter(cpu);
        if (Inner.LeaveRequested)
            cpu.RequestHandlerExit();
    }
}
