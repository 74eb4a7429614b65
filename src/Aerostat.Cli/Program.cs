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
        // The parser is loaded only when there is something to parse: start-up time is a promise.
        if (args is ["--version"])
        {
            Console.Out.WriteLine($"aerostat {Version}");
            return 0;
        }
        return CommandTree.Invoke(args, Console.Out, Console.Error);
    }
}
