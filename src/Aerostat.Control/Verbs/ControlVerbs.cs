namespace Aerostat.Control;

/// <summary>The verbs of every machine, one line each: a new one is a class in a file of its own, and a line here.</summary>
public static class ControlVerbs
{
    /// <summary>Makes the table.</summary>
    public static IReadOnlyList<ControlVerb> All() =>
    [
        new ShowVerb(),
        new PauseVerb(),
        new ResumeVerb(),
        new StopVerb(),
        new ResetVerb(),
        new DebugVerb(),
        new InspectVerb(),
        new EventsVerb(),
        new SnapshotVerb(),
        new BalloonVerb(),
        new MemoryVerb(),
        new FreezeVerb(),
        new ThawVerb(),
        new BackupVerb(),
        new BackupProgressVerb(),
        new ToolsVerb(),
        new CopyVerb(),
        new KvpVerb(),
    ];
}
