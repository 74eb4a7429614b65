using System.CommandLine;
using System.CommandLine.Help;
using System.CommandLine.Invocation;
using Aerostat.Backup;
using Aerostat.Control;
using Aerostat.Loader;
using Aerostat.Machine;
using Aerostat.Platform;
using Aerostat.Snapshots;

namespace Aerostat.Cli;

/// <summary>All verbs, and what every verb has in common: one-line errors and exit statuses.</summary>
internal static class CommandTree
{
    private const int NarrowestHelp = 40;

    // What the parser understands by itself.
    private static readonly string[] s_asksForMore = ["--help", "-h", "/h", "-?", "/?", "--version"];

    // In the order of the help, but for completion, which comes last.
    private static readonly string[] s_verbs =
    [
        "run", "flatten", "restore", "verify", "demo", "doctor", "bench", "conformance", "ps", "show", "inspect", "pause", "resume", "reset", "stop", "debug",
        "balloon", "memory", "tools", "kvp", "copy", "logs", "events", "snapshot", "freeze", "thaw", "backup",
    ];

    /// <summary>What a command line begins with.</summary>
    public static IEnumerable<string> Verbs => [.. s_verbs, "completion"];

    /// <summary>The whole tree, as the help shows it.</summary>
    public static RootCommand Create()
    {
        RootCommand root = new("Aerostat, a virtual machine monitor.");
        foreach (string verb in s_verbs)
            root.Add(Create(verb));
        root.Add(CompletionCommand.Create(root));
        // Left to itself the help asks the runtime's console, which changes the terminal's keypad mode for good.
        foreach (HelpAction help in root.Options.OfType<HelpOption>().Select(o => o.Action).OfType<HelpAction>())
            help.MaxWidth = Math.Max(Terminal.ColumnsOf(1) ?? int.MaxValue, NarrowestHelp);
        return root;
    }

    // What a command line needs of the tree: start-up time is a promise, and most of it is help. What asks for help or the version gets all of it.
    private static Command CreateFor(string[] args)
    {
        if (Array.IndexOf(s_verbs, args[0]) < 0)
            return Create();
        foreach (string argument in args)
            if (Array.IndexOf(s_asksForMore, argument) >= 0)
                return Create();
        return new Command("aerostat") { Create(args[0]) };
    }

    private static Command Create(string verb) => verb switch
    {
        "run" => RunCommand.Create(),
        "flatten" => FlattenCommand.Create(),
        "restore" => RestoreCommands.Restore(),
        "verify" => RestoreCommands.Verify(),
        "demo" => DemoCommand.Create(),
        "doctor" => DoctorCommand.Create(),
        "bench" => BenchCommand.Create(),
        "conformance" => ConformanceCommand.Create(),
        "ps" => PsCommand.Create(),
        "show" => ShowCommand.Create(),
        "inspect" => InspectCommand.Create(),
        "pause" => LifecycleCommands.Pause(),
        "resume" => LifecycleCommands.Resume(),
        "reset" => LifecycleCommands.Reset(),
        "stop" => StopCommand.Create(),
        "debug" => DebugCommand.Create(),
        "balloon" => MemoryCommands.Balloon(),
        "memory" => MemoryCommands.Memory(),
        "tools" => ToolsCommand.Create(),
        "kvp" => KvpCommand.Create(),
        "copy" => CopyCommand.Create(),
        "logs" => EventsCommands.Logs(),
        "events" => EventsCommands.Events(),
        "snapshot" => SnapshotCommand.Create(),
        "freeze" => FreezeCommands.Freeze(),
        "thaw" => FreezeCommands.Thaw(),
        "backup" => BackupCommand.Create(),
        _ => throw new ArgumentOutOfRangeException(nameof(verb), verb, "no such verb"),
    };

    /// <summary>Carries a command line out. Errors are one line on <paramref name="error"/>.</summary>
    public static int Invoke(string[] args, TextWriter output, TextWriter error)
    {
        if (args.Length == 0)
            return Report(error, "aerostat: no command given; 'aerostat --help' lists the commands", ExitStatus.Usage);
        Command root = CreateFor(args);
        // A kernel command line is text: no response files, no bundles of one-letter options.
        ParseResult result = root.Parse(args, new ParserConfiguration { ResponseFileTokenReplacer = null, EnablePosixBundling = false });
        string verb = Verb(result);
        try
        {
            if (result.Action is ParseErrorAction)
            {
                string what = result.UnmatchedTokens is [string unknown, ..] ? $"there is no command or option '{unknown}'" : Explain(result);
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
        catch (Exception e) when (e is ConfigurationException or BootException or SnapshotException)
        {
            return Report(error, $"{verb}: {OneLine(e.Message)}", ExitStatus.Usage);
        }
        catch (BackupException e)
        {
            return Report(error, $"{verb}: {OneLine(e.Message)}", e.IsHost ? ExitStatus.Failure : e.IsDamage ? ExitStatus.Refused : ExitStatus.Usage);
        }
        catch (ControlException e)
        {
            return Report(error, $"{verb}: {OneLine(MachineTarget.WithoutVerb(e.Message, verb))}", ExitStatus.Of(e.Kind));
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

    // The parser's own sentences name neither the option first nor what to do.
    private static string Explain(ParseResult result)
    {
        foreach (System.CommandLine.Parsing.OptionResult option in result.CommandResult.Children.OfType<System.CommandLine.Parsing.OptionResult>())
        {
            if (option.IdentifierTokenCount > 1 && option.Option.Arity.MaximumNumberOfValues == 1)
                return $"{option.Option.Name} is there {option.IdentifierTokenCount} times; give it once";
            if (option.Tokens.Count == 0 && option.Option.Arity.MinimumNumberOfValues > 0 && !option.Implicit)
                return $"{option.Option.Name} needs a value ({option.Option.HelpName})";
        }
        return OneLine(result.Errors[0].Message);
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
