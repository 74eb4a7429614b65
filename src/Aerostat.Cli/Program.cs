using System.Reflection;

namespace Aerostat.Cli;

/// <summary>The <c>aerostat</c> command.</summary>
public static class Program
{
    /// <summary>The product's version, without the build's commit.</summary>
    internal static string Version =>
        (typeof(Program).Assembly.GetCustomAttribute<AssemblyInformationalVersionAttribute>()?.InformationalVersion ?? "0").Split('+')[0];

    /// <summary>Entry point. Returns the exit status.</summary>
    public static int Main(string[] args)
    {
        using TextWriter output = StandardStream.Open(error: false), error = StandardStream.Open(error: true);
        // The parser is loaded only when there is something to parse: start-up time is a promise.
        return args is ["--version"] ? PrintVersion(output, error) : CommandTree.Invoke(args, output, error);
    }

    private static int PrintVersion(TextWriter output, TextWriter error)
    {
        try
        {
            output.WriteLine($"aerostat {Version}");
            return 0;
        }
        catch (Machine.HostException e)
        {
            error.WriteLine($"aerostat: {e.Message}");
            return ExitStatus.Failure;
        }
    }
}
