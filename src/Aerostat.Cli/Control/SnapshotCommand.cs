using System.CommandLine;
using Aerostat.Control;
using Aerostat.Machine;

namespace Aerostat.Cli;

/// <summary><c>aerostat snapshot</c>: a running machine to disk; <c>aerostat run --from</c> goes on from it.</summary>
internal static class SnapshotCommand
{
    // Writing takes as long as the disk takes.
    private static readonly TimeSpan s_patience = TimeSpan.FromHours(1);

    public static Command Create()
    {
        Option<string?> to = new("--to") { HelpName = "DIR", Description = "The snapshot's directory; a snapshot that is there is replaced once the new one is whole" };
        Option<bool> differential = new("--differential") { Description = "Only what has changed since the last snapshot of this run, which must stay where it is" };
        return MachineCommand.Create("snapshot", "Save a running machine to disk, and let it go on ('run --from DIR' goes on from there).", call =>
        {
            if (call.Result.GetValue(to) is not { Length: > 0 } directory)
                throw new ConfigurationException("where to? give --to DIR");
            return call.AskAsync(
                new SnapshotArguments(Path.GetFullPath(directory), call.Result.GetValue(differential)), SnapshotJson.Default.SnapshotArguments, SnapshotJson.Default.SnapshotAnswer,
                (output, answer) => output.WriteLine($"{answer.Directory}: {answer.DataBytes >> 20} MiB of memory in {answer.Seconds:0.00} s; the guest stood still for {answer.PausedSeconds * 1000:0} ms"),
                s_patience);
        }, extra: null, to, differential);
    }
}
