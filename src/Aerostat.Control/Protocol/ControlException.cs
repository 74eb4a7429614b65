namespace Aerostat.Control;

/// <summary>Why a request was not carried out. The names go over the wire, in lower case.</summary>
public enum ControlErrorKind
{
    /// <summary>The request cannot be understood: not JSON, no such verb, a wrong argument.</summary>
    Usage,
    /// <summary>There is no such machine.</summary>
    NotFound,
    /// <summary>Not now, or not on this machine.</summary>
    Refused,
    /// <summary>The time for it ran out.</summary>
    Timeout,
    /// <summary>The host or the monitor could not do it.</summary>
    Failed,
}

/// <summary>A request that was not carried out. The message is one line: what, why, and what to do.</summary>
public sealed class ControlException : Exception
{
    /// <summary>Creates the exception with its one-line message.</summary>
    public ControlException(ControlErrorKind kind, string message)
        : base(message)
    {
        Kind = kind;
    }

    /// <summary>Creates the exception with its one-line message and what caused it.</summary>
    public ControlException(ControlErrorKind kind, string message, Exception inner)
        : base(message, inner)
    {
        Kind = kind;
    }

    /// <summary>Why.</summary>
    public ControlErrorKind Kind { get; }

    /// <summary>The kind's name on the wire.</summary>
    public static string NameOf(ControlErrorKind kind) => kind switch
    {
        ControlErrorKind.Usage => "usage",
        ControlErrorKind.NotFound => "not-found",
        ControlErrorKind.Refused => "refused",
        ControlErrorKind.Timeout => "timeout",
        _ => "failed",
    };

    /// <summary>The kind of a name on the wire.</summary>
    public static ControlErrorKind KindOf(string? name) => name switch
    {
        "usage" => ControlErrorKind.Usage,
        "not-found" => ControlErrorKind.NotFound,
        "refused" => ControlErrorKind.Refused,
        "timeout" => ControlErrorKind.Timeout,
        _ => ControlErrorKind.Failed,
    };
}
