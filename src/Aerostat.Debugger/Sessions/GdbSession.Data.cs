using System.Text;
using Aerostat.Machine;
using Aerostat.Processors;

namespace Aerostat.Debugger;

/// <content>Registers, memory and breakpoints.</content>
internal sealed partial class GdbSession
{
    // Hexadecimal takes two characters a byte, and an answer must fit a packet.
    private const int MostMemory = PacketReader.MostBytes / 2 - 16;
    // People have far fewer; a hostile debugger shall not fill the host.
    private const int MostCodeBreakpoints = 10000;

    private readonly HashSet<ulong> codeBreakpoints = [];
    private readonly List<GdbWatch> watches = [];
    private List<(HardwareBreakpoint Breakpoint, GdbWatch For)> plan = [];

    private async Task<string> ReadAllRegisters()
    {
        ProcessorState s = await State(selected).ConfigureAwait(false);
        return string.Concat(registers.All.Select(r => RegisterFile.Read(r, s)));
    }

    private async Task<string> WriteAllRegisters(string rest)
    {
        if (Hex.TryBytes(rest) is not { } bytes || bytes.Length != registers.All.Sum(r => r.Bytes))
            return BadRequest;
        ProcessorState s = await State(selected).ConfigureAwait(false);
        int at = 0;
        foreach (GdbRegister r in registers.All)
        {
            r.Write(s, bytes.AsSpan(at, r.Bytes));
            at += r.Bytes;
        }
        return await StoreState(s).ConfigureAwait(false);
    }

    private async Task<string> ReadRegister(string rest) =>
        Hex.TryNumber(rest, out ulong n) && n < (ulong)registers.All.Count
            ? RegisterFile.Read(registers.All[(int)n], await State(selected).ConfigureAwait(false))
            : BadRequest;

    private async Task<string> WriteRegister(string rest)
    {
        int equals = rest.IndexOf('=');
        if (equals < 0 || !Hex.TryNumber(rest.AsSpan(0, equals), out ulong n) || n >= (ulong)registers.All.Count)
            return BadRequest;
        GdbRegister register = registers.All[(int)n];
        if (Hex.TryBytes(rest.AsSpan(equals + 1)) is not { } value || value.Length != register.Bytes)
            return BadRequest;
        ProcessorState s = await State(selected).ConfigureAwait(false);
        register.Write(s, value);
        return await StoreState(s).ConfigureAwait(false);
    }

    private async Task<string> StoreState(ProcessorState state)
    {
        await debugger.SetStateAsync(selected, state).ConfigureAwait(false);
        // What the processor made of it.
        states[selected] = null;
        return Ok;
    }

    // ADDRESS,LENGTH
    private static bool TryRange(string text, out ulong address, out ulong length)
    {
        length = address = 0;
        int comma = text.IndexOf(',');
        return comma >= 0 && Hex.TryNumber(text.AsSpan(0, comma), out address) && Hex.TryNumber(text.AsSpan(comma + 1), out length);
    }

    private async Task<string> ReadMemory(string rest)
    {
        if (!TryRange(rest, out ulong address, out ulong length))
            return BadRequest;
        byte[] bytes = new byte[(int)Math.Min(length, MostMemory)];
        int count = debugger.ReadMemory(await State(selected).ConfigureAwait(false), address, bytes);
        // Fewer bytes than asked for are an answer; none are not.
        return count == 0 && bytes.Length != 0 ? NotMapped : Hex.Of(bytes.AsSpan(0, count));
    }

    private async Task<string> WriteMemory(string rest)
    {
        int colon = rest.IndexOf(':');
        if (colon < 0 || !TryRange(rest[..colon], out ulong address, out ulong length) || Hex.TryBytes(rest.AsSpan(colon + 1)) is not { } bytes
            || length != (ulong)bytes.Length)
            return BadRequest;
        return debugger.WriteMemory(await State(selected).ConfigureAwait(false), address, bytes) ? Ok : NotMapped;
    }

    private async Task<string> WriteBinary(byte[] body)
    {
        int colon = body.AsSpan().IndexOf((byte)':');
        if (colon < 0 || !TryRange(Encoding.Latin1.GetString(body, 1, colon - 1), out ulong address, out ulong length)
            || length != (ulong)(body.Length - colon - 1))
            return BadRequest;
        return debugger.WriteMemory(await State(selected).ConfigureAwait(false), address, body.AsSpan(colon + 1)) ? Ok : NotMapped;
    }

    // TYPE,ADDRESS,KIND; conditions and commands are not offered.
    private string ChangeBreakpoint(bool set, string rest)
    {
        int semicolon = rest.IndexOf(';');
        string[] parts = (semicolon < 0 ? rest : rest[..semicolon]).Split(',');
        if (parts.Length != 3 || parts[0].Length != 1 || !Hex.TryNumber(parts[1], out ulong address) || !Hex.TryNumber(parts[2], out ulong length))
            return BadRequest;
        int type = parts[0][0] - '0';
        if (type is < 0 or > 4)
            return "";
        HashSet<ulong> code = [.. codeBreakpoints];
        List<GdbWatch> wanted = [.. watches];
        if (type == 0)
        {
            if (set && code.Count >= MostCodeBreakpoints && !code.Contains(address))
                return NoSpace;
            _ = set ? code.Add(address) : code.Remove(address);
        }
        else
        {
            GdbWatch watch = new(type, address, type == 1 ? 1 : length);
            // Setting or removing twice is the same as once.
            wanted.Remove(watch);
            if (set)
                wanted.Add(watch);
        }
        if (WatchPlan.Make(wanted) is not { } made)
            return NoSpace;
        try
        {
            debugger.SetBreakpoints([.. made.Select(p => p.Breakpoint)], code);
        }
        catch (GuestDebugException)
        {
            return NoSpace;
        }
        plan = made;
        watches.Clear();
        watches.AddRange(wanted);
        codeBreakpoints.Clear();
        codeBreakpoints.UnionWith(code);
        return Ok;
    }
}
