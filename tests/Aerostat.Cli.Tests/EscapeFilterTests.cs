using System.Text;
using Xunit;

namespace Aerostat.Cli.Tests;

public sealed class EscapeFilterTests
{
    [Theory]
    [InlineData("plain", "plain", ConsoleCommand.None)]
    [InlineData("a\u0001\u0001b", "a\u0001b", ConsoleCommand.None)]
    [InlineData("a\u0001zb", "ab", ConsoleCommand.None)]
    [InlineData("a\u0001hb", "ab", ConsoleCommand.Help)]
    [InlineData("a\u0001xrest", "a", ConsoleCommand.Quit)]
    [InlineData("a\u0001Xrest", "a", ConsoleCommand.Quit)]
    public void TakesCommandsOut(string typed, string kept, object command)
    {
        byte[] keys = Encoding.Latin1.GetBytes(typed);
        int count = new EscapeFilter().Filter(keys, out ConsoleCommand found);
        Assert.Equal(kept, Encoding.Latin1.GetString(keys, 0, count));
        Assert.Equal(command, found);
    }

    [Fact]
    public void ACommandMayBeSplitOverTwoReads()
    {
        EscapeFilter filter = new();
        byte[] first = [(byte)'a', 1], second = [(byte)'x'];
        Assert.Equal(1, filter.Filter(first, out ConsoleCommand command));
        Assert.Equal(ConsoleCommand.None, command);
        Assert.Equal(0, filter.Filter(second, out command));
        Assert.Equal(ConsoleCommand.Quit, command);
    }
}
