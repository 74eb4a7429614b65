using System.CommandLine;
using Aerostat.Machine;
using Aerostat.Snapshots;

namespace Aerostat.Cli;

/// <summary><c>aerostat flatten</c>: a differential snapshot and those it builds on become a full one.</summary>
internal static class FlattenCommand
{
    public static Command Create()
    {
        Argument<string> from = new("DIR") { Description = "A snapshot, full or differential; it stays as it is" };
        Option<string?> to = new("--to") { HelpName = "DIR", Description = "The new snapshot's directory; a snapshot that is there is replaced once the new one is whole" };
        Command command = new("flatten", "Make a full snapshot, which builds on no other, out of a differential one; everything is read and checked before and after.")
        {
            from, to,
        };
        command.SetAction(result =>
        {
            if (result.GetValue(to) is not { Length: > 0 } target)
                throw new ConfigurationException("where to? give --to DIR");
            Snapshot snapshot = Snapshot.Open(result.GetRequiredValue(from));
            string place = Path.TrimEndingDirectorySeparator(Path.GetFullPath(target));
            if (snapshot.Chain.Any(s => s.Path == place))
                throw new ConfigurationException($"{target} is part of what would be flattened; give another name");
            snapshot.Flatten(place);
            Snapshot whole = Snapshot.Open(place);
            whole.Verify();
            result.InvocationConfiguration.Output.WriteLine(
                $"{place}: {whole.Manifest.Memory.DataPages >> 8} MiB of memory out of {snapshot.Chain.Count} snapshot{(snapshot.Chain.Count == 1 ? "" : "s")}, verified");
            return ExitStatus.Success;
        });
        return command;
    }
}
