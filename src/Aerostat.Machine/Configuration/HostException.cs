namespace Aerostat.Machine;

/// <summary>The host cannot give what the machine needs. The message is one line: what, why, and what to do.</summary>
public sealed class HostException : Exception
{
    /// <summary>Creates the exception with its one-line message.</summary>
    public HostException(string message)
        : base(message)
    {
    }

    /// <summary>Creates the exception with its one-line message and what caused it.</summary>
    public HostException(string message, Exception inner)
        : base(message, inner)
    {
    }
}
