using System.CommandLine;
using System.Globalization;
using Aerostat.Control;
using Aerostat.Machine;

namespace Aerostat.Cli;

/// <summary><c>aerostat balloon</c> and <c>aerostat memory</c>: memory between a guest and its host.</summary>
internal static class MemoryCommands
{
    public static Command Balloon()
    {
        Argument<string?> size = new("SIZE") { Description = "How much memory the host is to take back, such as 256M; 0 gives all of it to the guest again; 'auto' lets the policy decide again", Arity = ArgumentArity.ZeroOrOne };
        return MachineCommand.Create("balloon", "Read or set how much of a guest's memory the host takes back.", call =>
            call.AskAsync(
                call.Extra == "auto" ? new BalloonArguments(Auto: true) : new BalloonArguments(call.Extra is { } text ? MemorySize.Parse(text, "SIZE") : null),
                ControlJson.Default.BalloonArguments, ControlJson.Default.BalloonAnswer, WriteBalloon), size);
    }

    public static Command Memory() => MachineCommand.Create("memory", "Show how a machine's memory stands between guest and host.", call =>
        call.AskAsync(new NoArguments(), ControlJson.Default.NoArguments, ControlJson.Default.MemoryAnswer, (output, answer) =>
        {
            Row(output, "guest memory", answer.Total);
            Row(output, "held by the host", answer.Host);
            Row(output, "never touched", answer.Zero);
            Row(output, "given back", answer.Discarded);
            if (answer.Hinted > 0)
                Row(output, "hinted", answer.Hinted);
            if (answer.Balloon is { } balloon)
                WriteBalloon(output, balloon);
            if (answer.Guest is not { } guest || answer.GuestAge is not { } age)
            {
                output.WriteLine(answer.Balloon is null ? "no balloon, so the guest says nothing" : "the guest has said nothing yet");
                return;
            }
            output.WriteLine(string.Create(CultureInfo.InvariantCulture, $"the guest, {age:0.0} s ago{(answer.GuestPending is { } late ? $" (newer figures asked for {late:0.0} s ago)" : "")}:"));
            foreach ((string name, ulong value) in guest)
                output.WriteLine(string.Create(CultureInfo.InvariantCulture, $"  {name,-24} {value,16}"));
        }));

    internal static void WriteBalloon(TextWriter output, BalloonAnswer answer)
    {
        output.WriteLine($"{"balloon dialect",-20} {answer.Dialect,8}");
        Row(output, "balloon target", answer.Target);
        Row(output, "balloon", answer.Actual);
        if (answer.RefusedPages > 0)
            output.WriteLine(string.Create(CultureInfo.InvariantCulture, $"{"refused pages",-20} {answer.RefusedPages,8}"));
        output.WriteLine(answer.Explanation);
        if (answer.Policy is not { } policy)
            return;
        string range = $"leaves the guest {MemorySize.Format(policy.Floor)} to {MemorySize.Format(policy.Ceiling)}";
        output.WriteLine(policy.Resting ? $"policy: rests, for the target was set by hand ('auto' wakes it); {range}"
            : policy.Reason is null ? $"policy: {range}; nothing decided yet"
            : string.Create(CultureInfo.InvariantCulture, $"policy: {policy.Reason}; {range}; it has {policy.Kept >> 20} MiB{(policy.Used is { } used ? $", uses {used >> 20} MiB and is to have {policy.Reserve >> 20} MiB in reserve" : "")}"));
    }

    private static void Row(TextWriter output, string name, ulong bytes) =>
        output.WriteLine(string.Create(CultureInfo.InvariantCulture, $"{name,-20} {bytes / 1048576.0,8:0.0} MiB"));
}
