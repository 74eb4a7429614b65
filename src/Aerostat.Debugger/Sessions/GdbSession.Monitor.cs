using System.Text;
using Aerostat.Machine;
using Aerostat.Processors;

namespace Aerostat.Debugger;

/// <content>GDB's <c>monitor</c> commands.</content>
internal sealed partial class GdbSession
{
    private const int MostMappings = 200;

    private const string Help = """
        help            this list
        info registers  all registers of this vCPU, the code at RIP, the last branches
        info tlb        what the page tables of this vCPU map
        info exits      how often the guest was left, and for what
        reset           reset the machine; it stays stopped
        quit            end the machine

        """;

    private async Task<string?> Monitor(string command)
    {
        string words = string.Join(' ', command.Split(' ', StringSplitOptions.RemoveEmptyEntries));
        switch (words)
        {
            case "help" or "":
                await Print(Help).ConfigureAwait(false);
                return Ok;
            case "info registers":
                await Print(await debugger.DescribeAsync(selected).ConfigureAwait(false) + "\n").ConfigureAwait(false);
                return Ok;
            case "info tlb":
                await Print(Mappings(await State(selected).ConfigureAwait(false))).ConfigureAwait(false);
                return Ok;
            case "info exits":
                await Print(Exits(debugger.Machine.GetStatistics())).ConfigureAwait(false);
                return Ok;
            case "reset":
                await debugger.HaltAsync().ConfigureAwait(false);
                await debugger.Machine.ResetAsync().ConfigureAwait(false);
                ForgetStates();
                return Ok;
            case "quit":
                await debugger.Machine.StopAsync().ConfigureAwait(false);
                return Ok;
            default:
                await Print($"there is no command '{Shown(words)}'; 'monitor help' lists them\n").ConfigureAwait(false);
                return Ok;
        }
    }

    private static string Shown(string words) => new([.. words.Take(40).Select(c => char.IsAscii(c) && !char.IsControl(c) ? c : '?')]);

    private async Task Print(string text)
    {
        byte[] bytes = Encoding.UTF8.GetBytes(text);
        for (int at = 0; at < bytes.Length; at += MostMemory)
            await Send("O" + Hex.Of(bytes.AsSpan(at, Math.Min(MostMemory, bytes.Length - at)))).ConfigureAwait(false);
    }

    private string Mappings(ProcessorState s)
    {
        StringBuilder text = new();
        int shown = 0;
        foreach (PageMapping m in debugger.Mappings(s))
        {
            if (shown++ == MostMappings)
            {
                text.Append("... and more\n");
                break;
            }
            text.Append($"{m.Linear:x16} -> {m.Physical:x12} {m.Length,12:x} r{(m.Writable ? 'w' : '-')}{(m.Executable ? 'x' : '-')} {(m.User ? "user" : "supervisor")}\n");
        }
        return shown == 0 ? "paging is off: linear addresses are physical ones\n" : text.ToString();
    }

    private static string Exits(MachineStatistics statistics)
    {
        StringBuilder text = new($"{statistics.Accelerator}, {statistics.Instructions} instructions\n");
        foreach ((string name, long count) in statistics.Exits.Concat(statistics.Handled).Where(e => e.Value != 0).OrderByDescending(e => e.Value).ThenBy(e => e.Key, StringComparer.Ordinal))
            text.Append($"{count,14} {name}\n");
        return text.ToString();
    }
}
