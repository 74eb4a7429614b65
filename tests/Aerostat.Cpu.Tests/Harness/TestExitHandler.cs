using Aerostat.Processors;

namespace Aerostat.Cpu.Tests;

/// <summary>The outside world of a test: ports and MMIO that remember, interrupts that a test queues.</summary>
internal sealed class TestExitHandler : IExitHandler
{
    /// <summary>What happened, in order.</summary>
    public List<(string Kind, ulong Address, int Size, ulong Value)> Log { get; } = [];

    /// <summary>Answers reads of ports and MMIO; null: all ones.</summary>
    public Func<string, ulong, int, ulong>? Input { get; set; }

    /// <summary>Vectors that acknowledge cycles take.</summary>
    public Queue<int> Interrupts { get; } = new();

    /// <summary>Called after each acknowledge.</summary>
    public Action? Acknowledged { get; set; }

    /// <summary>Called for every port write.</summary>
    public Action<ushort, uint>? PortWritten { get; set; }

    public ulong TaskPriority { get; set; }

    public bool LocalApicEnabled { get; set; } = true;

    public bool LeaveRequested { get; set; }

    public Func<IVirtualProcessor, ulong[], bool>? OnHypercall { get; set; }

    public Dictionary<uint, ulong> Msrs { get; } = [];

    public uint ReadPort(ushort port, int size)
    {
        ulong value = Input?.Invoke("in", port, size) ?? uint.MaxValue;
        Log.Add(("in", port, size, value));
        return (uint)value;
    }

    public void WritePort(ushort port, int size, uint value)
    {
        Log.Add(("out", port, size, value));
        PortWritten?.Invoke(port, value);
    }

    public ulong ReadMmio(ulong address, int size)
    {
        ulong value = Input?.Invoke("read", address, size) ?? ulong.MaxValue;
        Log.Add(("read", address, size, value));
        return value;
    }

    public void WriteMmio(ulong address, int size, ulong value) => Log.Add(("write", address, size, value));

    public bool ReadMsr(uint index, out ulong value) => Msrs.TryGetValue(index, out value);

    public bool WriteMsr(uint index, ulong value)
    {
        if (!Msrs.ContainsKey(index))
            return false;
        Msrs[index] = value;
        return true;
    }

    public int AcknowledgeInterrupt()
    {
        int vector = Interrupts.TryDequeue(out int v) ? v : -1;
        Acknowledged?.Invoke();
        return vector;
    }

    public bool Hypercall(IVirtualProcessor processor, Span<ulong> registers)
    {
        if (OnHypercall == null)
            return false;
        ulong[] copy = registers.ToArray();
        bool known = OnHypercall(processor, copy);
        copy.CopyTo(registers);
        return known;
    }
}
