namespace Aerostat.Cli;

/// <summary>What a user asked of the console rather than of the guest.</summary>
internal enum ConsoleCommand
{
    None,
    Help,
    Quit,
}

/// <summary>Takes Ctrl-A commands out of what a user types.</summary>
internal sealed class EscapeFilter
{
    private const byte Escape = 1;

    private bool escaped;

    /// <summary>
    /// Moves what belongs to the guest to the front of <paramref name="keys"/> and answers how much that is. After
    /// <see cref="ConsoleCommand.Quit"/> the rest is dropped.
    /// </summary>
    public int Filter(Span<byte> keys, out ConsoleCommand command)
    {
        command = ConsoleCommand.None;
        int kept = 0;
        foreach (byte key in keys)
        {
            if (!escaped)
            {
                if (key == Escape)
                    escaped = true;
                else
                    keys[kept++] = key;
                continue;
            }
            escaped = false;
            switch (key)
            {
                case Escape:
                    keys[kept++] = Escape;
                    break;
                case (byte)'x' or (byte)'X':
                    command = ConsoleCommand.Quit;
                    return kept;
                case (byte)'h' or (byte)'H' or (byte)'?':
                    command = ConsoleCommand.Help;
                    break;
            }
        }
        return kept;
    }
}
