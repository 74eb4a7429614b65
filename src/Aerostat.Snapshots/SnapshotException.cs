namespace Aerostat.Snapshots;

/// <summary>A snapshot cannot be taken, read or gone on from. The message is for people, and says which file and why.</summary>
public sealed class SnapshotException : Exception
{
    /// <summary>Says what is wrong.</summary>
    public SnapshotException(string message)
        : base(message)
    {
    }

    /// <summary>Says what is wrong, and what told of it.</summary>
    public SnapshotException(string message, Exception inner)
        : base(message, inner)
    {
    }
}
