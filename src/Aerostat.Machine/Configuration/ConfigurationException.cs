namespace Aerostat.Machine;

/// <summary>
/// What was asked for cannot be had. The message is one line: what, why, and what to do; it is meant to be printed as it is.
/// </summary>
public sealed class ConfigurationException : Exception
{
    /// <summary>Creates the exception with its one-line message.</summary>
    public ConfigurationException(string message)
        : base(message)
    {
    }

    /// <summary>Creates the exception with its one-line message and what caused it.</summary>
    public ConfigurationException(string message, Exception inner)
        : base(message, inner)
    {
    }
}
