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
        Option<bool> noHints = new("--no-hints") { Description = "Do not ask the guest for its free pages; without this they are not saved, if it has a balloon that can name them" };
        Option<string> timeout = new("--timeout") { HelpName = "SECONDS", Description = "Give up when it takes longer; the guest goes on, and what was in DIR stays" };
        return MachineCommand.Create("snapshot", "Save a running machine to disk, and let it go on ('run --from DIR' goes on from there).", call =>
        {
            if (call.Result.GetValue(to) is not { Length: > 0 } directory)
                throw new ConfigurationException("where to? give --to DIR");
            double? limit = call.Result.GetValue(timeout) is { } seconds ? MachineArguments.ParseTimeout(seconds).TotalSeconds : null;
            return call.AskAsync(
                new SnapshotArguments(Path.GetFullPath(directory), call.Result.GetValue(differential), !call.Result.GetValue(noHints), limit),
                SnapshotJson.Default.SnapshotArguments, SnapshotJson.Default.SnapshotAnswer, Write, s_patience);
        }, extra: null, to, differential, noHints, timeout);
    }

    private static void Write(TextWriter output, SnapshotAnswer answer)
    {
        output.WriteLine($"{answer.Directory}: {answer.DataBytes >> 20} MiB of memory in {answer.Seconds:0.00} s; the guest stood still for {answer.PausedSeconds * 1000:0} ms");
        if (answer.NamedBytes > 0)
            output.WriteLine($"the guest named {answer.NamedBytes >> 20} MiB as free in {answer.HintSeconds:0.00} s ({answer.HintsExplained})");
    }
}
