using Aerostat.Processors;

namespace Aerostat.Debugger;

/// <summary>A register as GDB knows it: its place in the list is its number.</summary>
/// <param name="Name">GDB's name.</param>
/// <param name="Bits">Width.</param>
/// <param name="Type">GDB's type.</param>
/// <param name="Read">Puts its value, little endian, into a span of its width.</param>
/// <param name="Write">Takes it from one.</param>
/// <param name="Group">Group for display, or null.</param>
internal sealed record GdbRegister(string Name, int Bits, string Type, GdbRegister.Access Read, GdbRegister.Access Write, string? Group = null)
{
    /// <summary>Moves a value between registers and bytes.</summary>
    public delegate void Access(ProcessorState state, Span<byte> bytes);

    /// <summary>Width in bytes.</summary>
    public int Bytes => Bits / 8;
}
