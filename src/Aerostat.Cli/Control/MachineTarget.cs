using System.CommandLine;
using Aerostat.Control;
using Aerostat.Machine;

namespace Aerostat.Cli;

/// <summary>Which running machine a command is about: NAME, or --control PATH.</summary>
internal static class MachineTarget
{
    public static Option<string?> ControlOption(string description) => new("--control") { HelpName = "PATH", Description = description };

    /// <summary>Where a new machine can be controlled; null: nowhere, because it has no name.</summary>
    public static ControlEndpoint? ForNew(string? name, string? path, TextWriter error, string verb)
    {
        if (path is not null)
            return new ControlEndpoint(NotEmpty(path));
        if (name is null)
            return null;
        if (ControlEndpoint.Folders.Count > 0)
            return ControlEndpoint.ForNew(name);
        error.WriteLine($"{verb}: warning: the machine '{name}' cannot be reached by name, because XDG_RUNTIME_DIR is not set; set it to a folder of your own, or give --control PATH");
        return null;
    }

    /// <summary>Where a running machine is.</summary>
    public static ControlEndpoint Of(string? name, string? path) => path is not null
        ? new ControlEndpoint(NotEmpty(path))
        : ControlEndpoint.Find(MachineArguments.ParseName(name ?? throw new ConfigurationException("which machine? give its NAME ('aerostat ps' lists those that run) or --control PATH")));

    /// <summary>What a machine says begins with the verb, and so does every error here.</summary>
    public static string WithoutVerb(string message, string verb)
    {
        string head = verb.Split(' ')[^1] + ": ";
        return message.StartsWith(head, StringComparison.Ordinal) ? message[head.Length..] : message;
    }

    private static string NotEmpty(string path) => path.Length > 0 ? path : throw new ConfigurationException("--control: the path is empty; give that of a socket");
}
