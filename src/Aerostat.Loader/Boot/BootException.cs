namespace Aerostat.Loader;

/// <summary>
/// Something the user gave cannot be booted. The message is one line that says what failed, why, and what to do; it is meant to be
/// printed as it is.
/// </summary>
public sealed class BootException : Exception
{
    /// <summary>Creates the exception with its one-line message.</summary>
    public BootException(string message)
        : base(message)
    {
    }

    /// <summary>Creates the exception with its one-line message and what caused it.</summary>
    public BootException(string message, Exception inner)
        : base(message, inner)
    {
    }
}
