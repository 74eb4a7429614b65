using System.CommandLine;
using System.Text;
using Aerostat.Hosting;
using Aerostat.Machine;
using Aerostat.Platform;

namespace Aerostat.Cli;

/// <summary><c>aerostat completion SHELL</c>: a completion script on standard output, made from the command tree.</summary>
internal static class CompletionCommand
{
    public static Command Create(RootCommand root)
    {
        Argument<string> shell = new("shell") { Description = "bash, zsh or fish", HelpName = "bash|zsh|fish" };
        shell.AcceptOnlyFromAmong("bash", "zsh", "fish");
        Command command = new("completion", "Print a shell's completion script.") { shell };
        command.SetAction(result =>
        {
            result.InvocationConfiguration.Output.Write(result.GetRequiredValue(shell) switch
            {
                "bash" => Bash(root),
                "zsh" => "autoload -Uz bashcompinit && bashcompinit\n" + Bash(root),
                _ => Fish(root),
            });
            return ExitStatus.Success;
        });
        return command;
    }

    private static IEnumerable<Command> Verbs(RootCommand root) => root.Subcommands.Where(c => !c.Hidden);

    private static IEnumerable<string> Options(Command command) =>
        command.Options.Where(o => !o.Hidden).Select(o => o.Name).Where(n => n.StartsWith("--", StringComparison.Ordinal)).Append("--help").Distinct();

    private static string Words(Command command) =>
        string.Join(' ', command.Subcommands.Where(c => !c.Hidden).Select(c => c.Name)
            .Concat(command.Name == "completion" ? ["bash", "zsh", "fish"] : []).Concat(Options(command)));

    // Options whose value nobody can guess: nothing is offered after them.
    private static IEnumerable<string> OptionsWithOtherValues(IEnumerable<Command> commands) =>
        commands.SelectMany(c => c.Options).Where(o => !o.Hidden && o.Arity.MinimumNumberOfValues > 0).Select(o => o.Name)
            .Except(["--kernel", "--initrd", "--stats", "--busybox", "--modules", "--accel", "--cpu", "--device", "--personality"]).Distinct();

    // What this build knows: later versions know more.
    private static string Values(string option) => string.Join(' ', option switch
    {
        "--accel" => Accelerators.Names,
        "--cpu" => Accelerators.CpuModelsOf("auto").Select(m => m.Name).Append("help"),
        "--personality" => ["none", "kvm", "vmware", "hyperv"],
        _ => DeviceOptions.Known.Select(d => d.Syntax.Split('[')[0].Split(',')[0]).Append("help"),
    });

    private static string Bash(RootCommand root)
    {
        StringBuilder text = new();
        text.Append("""
            _aerostat() {
                local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} words
                # bash takes "--accel=t" apart.
                if [ "$word" = "=" ]; then word=
                elif [ "$before" = "=" ]; then before=${COMP_WORDS[COMP_CWORD-2]}
                fi
                case $before in
                    --kernel|--initrd|--stats|--busybox|--modules) local IFS=$'\n'; COMPREPLY=($(compgen -f -- "$word")); return ;;
                    --accel) COMPREPLY=($(compgen -W "ACCELERATORS" -- "$word")); return ;;
                    --cpu) COMPREPLY=($(compgen -W "MODELS" -- "$word")); return ;;
                    --device) COMPREPLY=($(compgen -W "DEVICES" -- "$word")); return ;;
                    --personality) COMPREPLY=($(compgen -W "PERSONALITIES" -- "$word")); return ;;
                    OTHERS) COMPREPLY=(); return ;;
                esac
                case "${COMP_WORDS[1]} ${COMP_WORDS[2]}" in

            """.Replace("ACCELERATORS", Values("--accel"), StringComparison.Ordinal)
               .Replace("MODELS", Values("--cpu"), StringComparison.Ordinal)
               .Replace("DEVICES", Values("--device"), StringComparison.Ordinal)
               .Replace("PERSONALITIES", Values("--personality"), StringComparison.Ordinal)
               .Replace("OTHERS", string.Join('|', OptionsWithOtherValues(Verbs(root).SelectMany(v => v.Subcommands.Append(v)))), StringComparison.Ordinal));
        foreach (Command verb in Verbs(root))
        {
            foreach (Command inner in verb.Subcommands.Where(c => !c.Hidden))
                text.Append($"        \"{verb.Name} {inner.Name}\") [ \"$COMP_CWORD\" -gt 2 ] && words=\"{Words(inner)}\" || words={inner.Name} ;;\n");
            text.Append($"        \"{verb.Name} \"*) words=\"{Words(verb)}\" ;;\n");
        }
        text.Append($"        *) words=\"{string.Join(' ', Verbs(root).Select(v => v.Name))} --help --version\" ;;\n");
        text.Append("""
                esac
                [ "$COMP_CWORD" -gt 1 ] || words="
            """.TrimEnd());
        text.Append(string.Join(' ', Verbs(root).Select(v => v.Name))).Append(" --help --version\"\n");
        text.Append("""
                COMPREPLY=($(compgen -W "$words" -- "$word"))
            }
            complete -o filenames -F _aerostat aerostat

            """);
        return text.ToString();
    }

    private static string Fish(RootCommand root)
    {
        StringBuilder text = new();
        text.Append("complete -c aerostat -f\n");
        foreach (Command verb in Verbs(root))
        {
            text.Append($"complete -c aerostat -n __fish_use_subcommand -a {verb.Name} -d '{verb.Description?.Replace("'", "\\'", StringComparison.Ordinal)}'\n");
            foreach (Command inner in verb.Subcommands.Where(c => !c.Hidden))
                text.Append($"complete -c aerostat -n '__fish_seen_subcommand_from {verb.Name}' -a {inner.Name}\n");
            foreach (string option in verb.Subcommands.Where(c => !c.Hidden).SelectMany(Options).Concat(Options(verb)).Distinct())
            {
                string what = option switch
                {
                    "--kernel" or "--initrd" or "--stats" or "--busybox" or "--modules" => " -rF",
                    "--accel" or "--cpu" or "--device" or "--personality" => $" -xa '{Values(option)}'",
                    _ when OptionsWithOtherValues(verb.Subcommands.Append(verb)).Contains(option) => " -x",
                    _ => "",
                };
                text.Append($"complete -c aerostat -n '__fish_seen_subcommand_from {verb.Name}' -l {option[2..]}{what}\n");
            }
        }
        text.Append("complete -c aerostat -n '__fish_seen_subcommand_from completion' -a 'bash zsh fish'\n");
        return text.ToString();
    }
}
