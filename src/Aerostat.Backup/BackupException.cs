namespace Aerostat.Backup;

/// <summary>A backup that could not be made, read or restored; the message is one line: what, why, and what to do.</summary>
public sealed class BackupException : Exception
{
    /// <summary>Says why.</summary>
    public BackupException(string message)
        : base(message)
    {
    }

    /// <summary>Says why, and what caused it.</summary>
    public BackupException(string message, Exception inner)
        : base(message, inner)
    {
    }

    /// <summary>Whether something is damaged that was whole.</summary>
    public bool IsDamage { get; init; }

    /// <summary>Whether the host refused, and not the guest or the one who asked.</summary>
    public bool IsHost => InnerException is IOException or UnauthorizedAccessException;

    internal static BackupException Damaged(string message) => new(message) { IsDamage = true };

    // ENOSPC is what the runtime says in many words.
    internal static BackupException Of(string what, Exception e) => new(
        (e.HResult & 0xFFFF) == 28 || e.Message.Contains("No space left", StringComparison.Ordinal)
            ? $"{what}: its file system is full; free some space, or give another directory"
            : $"{what}: {e.Message.ReplaceLineEndings(" ").TrimEnd('.')}", e);
}
