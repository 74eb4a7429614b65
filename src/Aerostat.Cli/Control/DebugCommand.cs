using System.CommandLine;
using Aerostat.Control;

namespace Aerostat.Cli;

/// <summary><c>aerostat debug</c>: opens GDB's port on a running machine.</summary>
internal static class DebugCommand
{
    public static Command Create()
    {
        Argument<string?> port = new("PORT") { Description = "A TCP port on loopback, ADDRESS:PORT, or the path of a socket (default: a free port on loopback)", Arity = ArgumentArity.ZeroOrOne };
        return MachineCommand.Create("debug", "Let GDB attach to a running machine.", call =>
            call.AskAsync(new DebugArguments(Absolute(call.Extra)), ControlJson.Default.DebugArguments, ControlJson.Default.DebugAnswer,
                (output, answer) => output.WriteLine($"gdb: target remote {answer.Target}")), port);
    }

    // A path is the caller's, not the machine's.
    private static string? Absolute(string? endpoint) => endpoint is not null && endpoint.Contains('/') ? Path.GetFullPath(endpoint) : endpoint;
}
