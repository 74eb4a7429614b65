using Aerostat.Machine;

namespace Aerostat.Boot.Tests;

/// <summary>Guests whose memory is taken and given back: pieces of their scripts, and how a test goes along with them.</summary>
internal static class DrivenGuest
{
    /// <summary>Keeps something in memory; <c>pause WORD</c> says the word and waits for <see cref="ContinueAsync"/>.</summary>
    public const string Keep = """
        stty -echo
        seq 1 20000 > /tmp/kept
        pause() { echo $1; read -r line; }

        """;

    /// <summary>Says whether it is whole.</summary>
    public const string Finish = """

        echo KEPT=$(seq 1 20000 | cmp - /tmp/kept && echo yes)
        """;

    /// <summary>The machine's own time limit ends this.</summary>
    public static async Task Until(VirtualMachine machine, Func<bool> condition)
    {
        while (!condition() && !machine.Exit.IsCompleted)
            await Task.Delay(20);
    }

    public static Task ContinueAsync(VirtualMachine machine) => machine.SendSerialAsync("\n"u8.ToArray());
}
