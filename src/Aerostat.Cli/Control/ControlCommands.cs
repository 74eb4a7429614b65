using System.CommandLine;

namespace Aerostat.Cli;

/// <summary>The commands on running machines, one line each.</summary>
internal static class ControlCommands
{
    public static IEnumerable<Command> All() =>
    [
        PsCommand.Create(),
        ShowCommand.Create(),
        InspectCommand.Create(),
        LifecycleCommands.Pause(),
        LifecycleCommands.Resume(),
        LifecycleCommands.Reset(),
        StopCommand.Create(),
        DebugCommand.Create(),
        MemoryCommands.Balloon(),
        MemoryCommands.Memory(),
        ToolsCommand.Create(),
        EventsCommands.Logs(),
        EventsCommands.Events(),
        SnapshotCommand.Create(),
        FreezeCommands.Freeze(),
        FreezeCommands.Thaw(),
        BackupCommand.Create(),
    ];
}
