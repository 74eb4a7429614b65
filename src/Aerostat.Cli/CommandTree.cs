using System.CommandLine;
using System.CommandLine.Invocation;
using Aerostat.Loader;
using Aerostat.Machine;

namespace Aerostat.Cli;

/// <summary>All verbs, and what every verb has in common: one-line errors and exit statuses.</summary>
internal static class CommandTree
{
    public static RootCommand Create()
    {
        RootCommand root = new("Aerostat, a virtual machine monitor.")
        {
            RunCommand.Create(),
            DemoCommand.Create(),
            DoctorCommand.Create(),
            BenchCommand.Create(),
            ConformanceCommand.Create(),
        };
        root.Add(CompletionCommand.Create(root));
        return root;
    }

    /// <summary>Carries a command line out. Errors are one line on <paramref name="error"/>.</summary>
    public static int Invoke(string[] args, TextWriter output, TextWriter error)
    {
        if (args.Length == 0)
            return Report(error, "aerostat: no command given; 'aerostat --help' lists the commands", ExitStatus.Usage);
        RootCommand root = Create();
        // A kernel command line is text: no response files, no bundles of one-letter options.
        ParseResult result = root.Parse(args, new ParserConfiguration { ResponseFileTokenReplacer = null, EnablePosixBundling = false });
        string verb = Verb(result);
        try
        {
            if (result.Action is ParseErrorAction)
            {
                string what = result.UnmatchedTokens is [string unknown, ..] ? $"there is no command or option '{unknown}'" : OneLine(result.Errors[0].Message);
                return Report(error, $"{verb}: {what}; '{verb} --help' lists what there is", ExitStatus.Usage);
            }
            return result.Invoke(new InvocationConfiguration
            {
                Output = output,
                Error = error,
                EnableDefaultExceptionHandler = false,
                ProcessTerminationTimeout = null,
            });
        }
        catch (Exception e) when (e is ConfigurationException or BootException)
        {
            return Report(error, $"{verb}: {OneLine(e.Message)}", ExitStatus.Usage);
        }
        catch (HostException e)
        {
            return Report(error, $"{verb}: {OneLine(e.Message)}", ExitStatus.Failure);
        }
        catch (Exception e)
        {
            return Report(error, $"{verb}: internal error, please report it: {e}", ExitStatus.Failure);
        }
    }

    private static string Verb(ParseResult result)
    {
        Stack<string> names = [];
        for (System.CommandLine.Parsing.SymbolResult? r = result.CommandResult; r is not null; r = r.Parent)
            if (r is System.CommandLine.Parsing.CommandResult c)
                names.Push(c.Command is RootCommand ? "aerostat" : c.Command.Name);
        return string.Join(' ', names);
    }

    private static int Report(TextWriter error, string line, int status)
    {
        error.WriteLine(line);
        return status;
    }

    private static string OneLine(string text) => text.ReplaceLineEndings(" ").Trim().TrimEnd('.');
}
