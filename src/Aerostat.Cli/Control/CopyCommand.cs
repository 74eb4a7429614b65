using System.CommandLine;
using System.Globalization;
using Aerostat.Control;
using Aerostat.Machine;
using Aerostat.Platform;

namespace Aerostat.Cli;

/// <summary><c>aerostat copy</c>: a file into a guest.</summary>
internal static class CopyCommand
{
    public static Command Create()
    {
        Argument<string?> file = new("FILE") { Description = "A file of the host's", Arity = ArgumentArity.ZeroOrOne };
        Option<string?> to = new("--to") { HelpName = "PATH", Description = "Full path in the guest; with a slash at its end a folder, in which the file keeps its name" };
        Option<bool> overwrite = new("--overwrite") { Description = "Replace a file that is there" };
        Option<bool> folders = new("--create-folders") { Description = "Make folders that are not there" };
        return MachineCommand.Create("copy", "Copy a file into a guest (needs --personality hyperv, and hv_fcopy_daemon in the guest).", async call =>
        {
            if (call.Extra is not { Length: > 0 } path)
                throw new ConfigurationException("which file? 'aerostat copy NAME FILE --to PATH'");
            if (call.Result.GetValue(to) is not { Length: > 0 } destination)
                throw new ConfigurationException("where to? give --to PATH, a full path in the guest");
            using HostSignals signals = new();
            using CancellationTokenSource over = CancellationTokenSource.CreateLinkedTokenSource(signals.Stopping, call.Cancellation);
            try
            {
                // How long it takes is the file's affair; the guest's own silence ends it.
                return await (call with { Cancellation = over.Token }).AskAsync(
                    new CopyArguments(Path.GetFullPath(path), destination, call.Result.GetValue(overwrite), call.Result.GetValue(folders)), CopyJson.Default.CopyArguments, CopyJson.Default.CopyAnswer,
                    (output, answer) => output.WriteLine(string.Create(CultureInfo.InvariantCulture, $"{answer.To}: {answer.Bytes} bytes in {answer.Seconds:0.00} s")), Timeout.InfiniteTimeSpan).ConfigureAwait(false);
            }
            catch (OperationCanceledException) when (signals.Received != 0)
            {
                call.Result.InvocationConfiguration.Error.WriteLine("aerostat copy: given up; the guest removes what it has of the file");
                return signals.ExitStatus;
            }
        }, file, to, overwrite, folders);
    }
}
