using Iced.Intel;

namespace Aerostat.Cpu.Tests;

/// <summary>Bytes and everything they start from.</summary>
internal sealed class TestCase
{
    public required byte[] Code { get; init; }

    public required int Bitness { get; init; }

    /// <summary>Whether the window is the low one.</summary>
    public bool Low { get; init; }

    public TestState State;

    public byte[] Window { get; init; } = new byte[Layout.WindowSize];

    public ulong WindowBase => Low ? Layout.LowWindow : Layout.Window;

    /// <summary>The instructions of the case.</summary>
    public List<Instruction> Instructions()
    {
        var list = new List<Instruction>();
        var decoder = Decoder.Create(Bitness, Code);
        decoder.IP = Layout.StartRip(Bitness);
        while (decoder.IP < Layout.StartRip(Bitness) + (ulong)Code.Length)
            list.Add(decoder.Decode());
        return list;
    }

    public TestCase Copy()
    {
        var copy = new TestCase { Code = Code, Bitness = Bitness, Low = Low, Window = (byte[])Window.Clone() };
        copy.State = State;
        return copy;
    }
}
