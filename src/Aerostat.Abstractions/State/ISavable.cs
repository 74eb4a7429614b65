namespace Aerostat.State;

/// <summary>
/// A thing whose state can be taken out and put back. <typeparamref name="TSavedState"/> is a record of plain data that
/// System.Text.Json can write; its shape is stable within a version.
/// </summary>
public interface ISavable<TSavedState>
{
    /// <summary>Takes the state out. The machine is paused.</summary>
    TSavedState Save();

    /// <summary>Puts the state back. The machine is paused.</summary>
    void Restore(TSavedState state);
}

/// <summary>Marks a saved-state record with its stable name and version.</summary>
/// <param name="name">Stable name, lower case with dashes.</param>
/// <param name="version">Starts at 1; grows when the shape changes.</param>
[AttributeUsage(AttributeTargets.Class | AttributeTargets.Struct)]
public sealed class SavedStateAttribute(string name, int version) : Attribute
{
    /// <summary>Stable name.</summary>
    public string Name { get; } = name;
    /// <summary>Version of the shape.</summary>
    public int Version { get; } = version;
    /// <summary>Oldest version that can still be restored; members that it lacks have their defaults.</summary>
    public int Oldest { get; init; } = version;
}
