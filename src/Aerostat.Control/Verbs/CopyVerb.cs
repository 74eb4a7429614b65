using System.Diagnostics;
using System.Text.Json;
using System.Text.Json.Serialization;
using Aerostat.HyperV;
using Aerostat.Machine;

namespace Aerostat.Control;

/// <summary>Arguments of <c>copy</c>.</summary>
/// <param name="File">The host's file, a full path.</param>
/// <param name="To">Full path in the guest; what ends with a slash is a folder, in which the file has its name.</param>
/// <param name="Overwrite">Whether a file of the guest's may be replaced.</param>
/// <param name="CreateFolders">Whether folders that are not there are made.</param>
public sealed record CopyArguments(string? File = null, string? To = null, bool Overwrite = false, bool CreateFolders = false);

/// <summary>The answer to <c>copy</c>.</summary>
/// <param name="To">Where the file is in the guest.</param>
/// <param name="Bytes">How long it is.</param>
/// <param name="Seconds">How long that took.</param>
public sealed record CopyAnswer(string To, long Bytes, double Seconds);

/// <summary><c>copy</c>: a file of the host's into the guest.</summary>
internal sealed class CopyVerb() : ControlVerb<CopyArguments, CopyAnswer>(CopyJson.Default.CopyArguments, CopyJson.Default.CopyAnswer)
{
    public override string Name => "copy";

    public override bool EndsWithClient => true;

    protected override async Task<CopyAnswer> AnswerAsync(ControlledMachine machine, CopyArguments arguments, CancellationToken cancellation)
    {
        if (arguments.File is not { Length: > 0 } path || !Path.IsPathFullyQualified(path))
            throw new ControlException(ControlErrorKind.Usage, "copy: 'file' is the full path of a file of the host's");
        if (arguments.To is not { Length: > 0 } destination)
            throw new ControlException(ControlErrorKind.Usage, "copy: 'to' is a full path in the guest");
        VirtualMachine vm = machine.Machine;
        if (vm.IntegrationComponents?.Files is not { } files)
            throw new ControlException(ControlErrorKind.Refused, "copy: only guests with --personality hyperv take files");
        if (vm.State != MachineState.Running)
            throw new ControlException(ControlErrorKind.Refused, "copy: the machine does not run, and its guest can do nothing; resume it first");
        if (destination.EndsWith('/'))
            destination += Path.GetFileName(path);
        try
        {
            using FileStream file = new(path, FileMode.Open, FileAccess.Read, FileShare.ReadWrite, 1 << 16, FileOptions.Asynchronous | FileOptions.SequentialScan);
            long start = Stopwatch.GetTimestamp();
            // A guest that has stopped answering keeps nobody.
            long bytes = await files.CopyAsync(file, destination, arguments.Overwrite, arguments.CreateFolders, null, cancellation).WaitAsync(cancellation).ConfigureAwait(false);
            vm.Journal.Write("file-copied", $"was given {ControlRequest.Shorten(destination)}, {bytes} bytes");
            return new CopyAnswer(destination, bytes, Math.Round(Stopwatch.GetElapsedTime(start).TotalSeconds, 6));
        }
        catch (ArgumentException e)
        {
            throw new ControlException(ControlErrorKind.Usage, $"copy: {e.Message}", e);
        }
        catch (FileCopyException e)
        {
            throw new ControlException(ControlErrorKind.Refused, $"copy: {e.Message}", e);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            throw new ControlException(ControlErrorKind.Failed, $"copy: {path} cannot be read: {e.Message}", e);
        }
    }
}

/// <summary>How the verb's arguments and answer are written.</summary>
[JsonSourceGenerationOptions(
    PropertyNamingPolicy = JsonKnownNamingPolicy.CamelCase, DefaultIgnoreCondition = JsonIgnoreCondition.WhenWritingNull,
    UnmappedMemberHandling = JsonUnmappedMemberHandling.Skip, MaxDepth = ControlRequest.MaxDepth)]
[JsonSerializable(typeof(CopyArguments))]
[JsonSerializable(typeof(CopyAnswer))]
public sealed partial class CopyJson : JsonSerializerContext;
