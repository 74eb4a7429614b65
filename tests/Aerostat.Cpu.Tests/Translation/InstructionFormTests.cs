using Iced.Intel;
using Xunit;

namespace Aerostat.Cpu.Tests;

/// <summary>What is known of Iced's numbering without asking it.</summary>
public sealed class InstructionFormTests
{
    [Fact]
    public void ThereAreAsManyAsItIsSaid() => Assert.Equal(InstructionForms.Count, Enum.GetValues<Code>().Length);
}
