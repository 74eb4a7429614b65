using System.Text;
using Aerostat.Devices;
using Aerostat.State;

namespace Aerostat.VMware;

/// <summary>What a guest's tools can be asked to do with the guest.</summary>
public enum GuestPowerOperation
{
    /// <summary>Shut down.</summary>
    Halt,
    /// <summary>Shut down and start again.</summary>
    Reboot,
}

/// <summary>
/// The host's end of VMware's tools in the guest (open-vm-tools' vmtoolsd): requests of the guest's (RPCI) are answered, and commands go to it (TCLO) when
/// it asks for them, several times a second.
/// <para>
/// Not served: everything that has to do with desktops, shared folders, guest operations with credentials, upgrades, and time synchronization by command
/// (the tools read the host's time from the backdoor themselves). Such requests are answered as unknown.
/// </para>
/// </summary>
/// <remarks>Any thread. What the guest says is bounded: so many variables, so many bytes, so many lines in the log.</remarks>
public sealed class GuestTools : IDevice, IRpcEndpoint, ISavable<GuestToolsSavedState>
{
    /// <summary>Bytes of a variable's name and value that are kept, in all.</summary>
    public const int MostInformationBytes = 1 << 20;

    private const int MostVariables = 1024, LongestName = 256, MostCommands = 64, MostLogLines = 100;
    private const string Prefix = "guestinfo.";
    private static readonly TimeSpan s_silence = TimeSpan.FromSeconds(30);

    private readonly TimeProvider clock;
    private readonly IDeviceLog? log;
    private readonly GuestRpcChannels channels;
    private readonly SortedDictionary<string, string> information = new(StringComparer.Ordinal);
    private readonly SortedSet<string> capabilities = new(StringComparer.Ordinal);
    private readonly Queue<ToolsCommand> commands = new();
    private ToolsCommand? underWay;
    private int informationBytes, logLines;
    private uint version;
    private long? heardAt;
    private long requests, unknown;
    private string? powerState;
    private QuiesceState quiesce;
    private TaskCompletionSource<bool>? frozen, thawed;

    private sealed record ToolsCommand(string Text, TaskCompletionSource<string?>? Answer);

    private enum QuiesceState
    {
        None,
        Asked,
        Frozen,
        Thawing,
    }

    /// <summary>Makes it.</summary>
    /// <param name="clock">VM time.</param>
    /// <param name="log">Where the tools' own messages go; null: nowhere.</param>
    /// <param name="inOnePiece">Whether string instructions on the second port come to the machine.</param>
    public GuestTools(TimeProvider clock, IDeviceLog? log = null, bool inOnePiece = true)
    {
        ArgumentNullException.ThrowIfNull(clock);
        this.clock = clock;
        this.log = log;
        channels = new GuestRpcChannels(this) { InOnePiece = inOnePiece };
    }

    /// <inheritdoc/>
    public string Name => "vmtools";

    internal GuestRpcChannels Channels => channels;

    /// <summary>Its figures, by name.</summary>
    public IEnumerable<(string Name, long Value)> Counters => [("requests", Volatile.Read(ref requests)), ("unknown", Volatile.Read(ref unknown))];

    /// <summary>Version as major, minor, patch; null: the tools have not said.</summary>
    public Version? ToolsVersion
    {
        get
        {
            lock (channels.Gate)
                return version == 0 ? null : new Version((int)(version >> 10), (int)(version >> 5 & 31), (int)(version & 31));
        }
    }

    /// <summary>VM time since the tools last asked for commands: their heartbeat. Null: they never have.</summary>
    public TimeSpan? Heartbeat
    {
        get
        {
            lock (channels.Gate)
                return heardAt is { } at ? clock.GetElapsedTime(at) : null;
        }
    }

    /// <summary>Whether the tools are at work.</summary>
    public bool IsRunning => Heartbeat is { } silent && silent < s_silence;

    /// <summary>What the tools said last of a change of power; null: nothing.</summary>
    public string? PowerState
    {
        get
        {
            lock (channels.Gate)
                return powerState;
        }
    }

    /// <summary>What the tools have said they can do.</summary>
    public IReadOnlyList<string> Capabilities
    {
        get
        {
            lock (channels.Gate)
                return [.. capabilities];
        }
    }

    /// <summary>The variables that host and guest share, with names from "guestinfo." on.</summary>
    public IReadOnlyDictionary<string, string> Information
    {
        get
        {
            lock (channels.Gate)
                return new SortedDictionary<string, string>(information, StringComparer.Ordinal);
        }
    }

    /// <summary>Sets a variable for the guest to read.</summary>
    /// <param name="name">Its name; "guestinfo." is put before it if it is not there.</param>
    /// <param name="value">Its value; null takes the variable away.</param>
    /// <returns>False: there is no room, or the name is none.</returns>
    public bool SetInformation(string name, string? value)
    {
        ArgumentNullException.ThrowIfNull(name);
        lock (channels.Gate)
            return Keep(name.StartsWith(Prefix, StringComparison.Ordinal) ? name : Prefix + name, value);
    }

    /// <summary>Sends the tools a command and waits for their answer.</summary>
    /// <returns>What they answered after "OK ", or null: they failed, are not there, or have gone.</returns>
    public async Task<string?> SendAsync(string command, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(command);
        TaskCompletionSource<string?> answer = new(TaskCreationOptions.RunContinuationsAsynchronously);
        lock (channels.Gate)
        {
            if (!channels.OpenChannels.Any(c => c.Protocol == GuestRpcChannels.Tclo) || commands.Count >= MostCommands)
                return null;
            commands.Enqueue(new ToolsCommand(command, answer));
        }
        return await answer.Task.WaitAsync(cancellation).ConfigureAwait(false);
    }

    /// <summary>Asks the tools to shut the guest down, or to restart it. True: they have begun.</summary>
    public async Task<bool> RequestPowerAsync(GuestPowerOperation operation, CancellationToken cancellation = default) =>
        await SendAsync(operation == GuestPowerOperation.Halt ? "OS_Halt" : "OS_Reboot", cancellation).ConfigureAwait(false) is not null;

    /// <summary>Whether the tools hold the file systems frozen.</summary>
    internal bool IsFrozen
    {
        get
        {
            lock (channels.Gate)
                return quiesce == QuiesceState.Frozen;
        }
    }

    /// <summary>
    /// Has the tools run what is to be run before a snapshot and freeze the file systems. True: they are frozen until <see cref="ThawAsync"/>, or until the
    /// tools lose patience.
    /// </summary>
    internal async Task<bool> FreezeAsync(CancellationToken cancellation = default)
    {
        Task<bool> done;
        lock (channels.Gate)
        {
            if (quiesce != QuiesceState.None)
                return false;
            quiesce = QuiesceState.Asked;
            frozen = new(TaskCreationOptions.RunContinuationsAsynchronously);
            thawed = new(TaskCreationOptions.RunContinuationsAsynchronously);
            done = frozen.Task;
        }
        try
        {
            // No manifests, all volumes.
            if (await SendAsync("vmbackup.start 0", cancellation).ConfigureAwait(false) is not null && await done.WaitAsync(cancellation).ConfigureAwait(false))
                return true;
        }
        catch (OperationCanceledException)
        {
            _ = SendAsync("vmbackup.abort", CancellationToken.None);
            EndQuiesce();
            throw;
        }
        EndQuiesce();
        return false;
    }

    /// <summary>Tells the tools that the snapshot is taken. True: they have thawed what they froze, which had stayed frozen until now.</summary>
    internal async Task<bool> ThawAsync(CancellationToken cancellation = default)
    {
        Task<bool> done;
        lock (channels.Gate)
        {
            if (quiesce != QuiesceState.Frozen || thawed is null)
                return false;
            quiesce = QuiesceState.Thawing;
            done = thawed.Task;
        }
        try
        {
            return await SendAsync("vmbackup.snapshotDone", cancellation).ConfigureAwait(false) is not null && await done.WaitAsync(cancellation).ConfigureAwait(false);
        }
        finally
        {
            EndQuiesce();
        }
    }

    private void EndQuiesce()
    {
        lock (channels.Gate)
        {
            quiesce = QuiesceState.None;
            frozen?.TrySetResult(false);
            thawed?.TrySetResult(false);
        }
    }

    byte[]? IRpcEndpoint.Next(RpcChannel channel)
    {
        if (channel.Protocol != GuestRpcChannels.Tclo)
            return null;
        heardAt = clock.GetTimestamp();
        if (underWay is not null || !commands.TryDequeue(out ToolsCommand? next))
            return null;
        underWay = next;
        return Encoding.UTF8.GetBytes(next.Text);
    }

    byte[]? IRpcEndpoint.Received(RpcChannel channel, byte[] message)
    {
        // Programs in C end their texts with a zero.
        string text = Encoding.UTF8.GetString(message).TrimEnd('\0');
        if (channel.Protocol == GuestRpcChannels.Rpci)
            return Encoding.UTF8.GetBytes(Answer(text));
        heardAt = clock.GetTimestamp();
        if (underWay is { } command)
        {
            underWay = null;
            if (!text.StartsWith("OK", StringComparison.Ordinal) && logLines++ < MostLogLines)
                log?.Warn(Name, $"'{command.Text}' is answered: {Printable(text)}");
            command.Answer?.TrySetResult(text == "OK" ? "" : text.StartsWith("OK ", StringComparison.Ordinal) ? text[3..] : null);
        }
        return null;
    }

    void IRpcEndpoint.Changed(RpcChannel channel, bool open)
    {
        if (channel.Protocol != GuestRpcChannels.Tclo)
            return;
        FailCommands();
        if (!open)
        {
            heardAt = null;
            return;
        }
        heardAt = clock.GetTimestamp();
        // The tools begin when they are reset; then they say what they are and can, and what the guest's addresses and disks are.
        foreach (string text in (ReadOnlySpan<string>)["reset", "Capabilities_Register", "Set_Option broadcastIP 1", "OS_PowerOn"])
            commands.Enqueue(new ToolsCommand(text, null));
    }

    private void FailCommands()
    {
        underWay?.Answer?.TrySetResult(null);
        underWay = null;
        while (commands.TryDequeue(out ToolsCommand? command))
            command.Answer?.TrySetResult(null);
        quiesce = QuiesceState.None;
        frozen?.TrySetResult(false);
        thawed?.TrySetResult(false);
    }

    /// <summary>One request: "1 " and an answer, or "0 " and what is wrong.</summary>
    private string Answer(string request)
    {
        requests++;
        (string name, string rest) = Split(request);
        switch (name)
        {
            case "info-get":
                return information.TryGetValue(rest.Trim(), out string? value) ? "1 " + value : "0 No value found";
            case "info-set":
                (string variable, string text) = Split(rest);
                return !variable.StartsWith(Prefix, StringComparison.Ordinal) ? "0 Permission denied" : Keep(variable, text) ? "1 " : "0 Request too large";
            case "SetGuestInfo":
                // A number for what is told (host name, system, ...), and the value.
                (string kind, string told) = Split(rest.TrimStart());
                return uint.TryParse(kind, out uint number) && number < 100 && Keep($"{Prefix}reported.{number}", told) ? "1 " : "0 Request too large";
            case "tools.set.version" or "tools.set.versiontype":
                return uint.TryParse(Split(rest).Name, out version) ? "1 " : "0 Invalid version";
            case "tools.os.statechange.status":
                powerState = rest.Length <= LongestName ? rest : rest[..LongestName];
                return "1 ";
            case "vmbackup.eventSet":
                TakeBackupEvent(Split(rest).Name, Split(Split(rest).Others).Name);
                return "1 ";
            case "log":
                if (logLines++ < MostLogLines)
                    log?.Warn(Name, Printable(rest));
                return "1 ";
            case "vmx.capability.unified_loop":
                return "1 ";
            default:
                if (name.StartsWith("tools.capability.", StringComparison.Ordinal))
                {
                    if (capabilities.Count < MostCommands && request.Length <= LongestName)
                        capabilities.Add(request["tools.capability.".Length..]);
                    return "1 ";
                }
                unknown++;
                return "0 Unknown command";
        }
    }

    private static string Printable(string text) => string.Concat(text.Take(LongestName).Select(c => char.IsControl(c) ? ' ' : c));

    private static (string Name, string Others) Split(string text)
    {
        int space = text.IndexOf(' ', StringComparison.Ordinal);
        return space < 0 ? (text, "") : (text[..space], text[(space + 1)..]);
    }

    private void TakeBackupEvent(string what, string code)
    {
        if (code != "0" && logLines++ < MostLogLines)
            log?.Warn(Name, Printable($"backup event {what}, code {code}"));
        switch (what)
        {
            case "prov.snapshotCommit" when quiesce == QuiesceState.Asked:
                quiesce = QuiesceState.Frozen;
                frozen?.TrySetResult(true);
                break;
            case "req.done":
                frozen?.TrySetResult(false);
                // After a snapshot only: a request that is done before is one that has failed.
                thawed?.TrySetResult(quiesce == QuiesceState.Thawing && code == "0");
                quiesce = QuiesceState.None;
                break;
            case "req.error" or "req.aborted":
                frozen?.TrySetResult(false);
                thawed?.TrySetResult(false);
                quiesce = QuiesceState.None;
                break;
            default:
                break;
        }
    }

    private bool Keep(string name, string? value)
    {
        if (name.Length is 0 or > LongestName || name.Any(char.IsWhiteSpace))
            return false;
        int before = information.TryGetValue(name, out string? old) ? name.Length + old.Length : 0;
        if (string.IsNullOrEmpty(value))
        {
            if (information.Remove(name))
                informationBytes -= before;
            return true;
        }
        int after = informationBytes - before + name.Length + value.Length;
        if (after > MostInformationBytes || (old is null && information.Count >= MostVariables))
            return false;
        information[name] = value;
        informationBytes = after;
        return true;
    }

    /// <inheritdoc/>
    public void Reset()
    {
        lock (channels.Gate)
        {
            channels.Clear();
            FailCommands();
            capabilities.Clear();
            version = 0;
            heardAt = null;
            powerState = null;
            logLines = 0;
        }
    }

    /// <inheritdoc/>
    public GuestToolsSavedState Save()
    {
        lock (channels.Gate)
        {
            return new GuestToolsSavedState
            {
                Channels = channels.Save(),
                Information = new SortedDictionary<string, string>(information, StringComparer.Ordinal),
                Capabilities = [.. capabilities],
                Version = version,
                // Whoever froze the guest that a copy is made of is not there for the copy.
                Commands = [.. commands.Where(c => c.Answer is null).Select(c => c.Text), .. quiesce == QuiesceState.None ? [] : (ReadOnlySpan<string>)["vmbackup.abort"]],
            };
        }
    }

    /// <inheritdoc/>
    public void Restore(GuestToolsSavedState state)
    {
        ArgumentNullException.ThrowIfNull(state);
        lock (channels.Gate)
        {
            Reset();
            channels.Restore(state.Channels);
            information.Clear();
            informationBytes = 0;
            foreach ((string name, string value) in state.Information)
                Keep(name, value);
            capabilities.UnionWith(state.Capabilities.Take(MostCommands));
            version = state.Version;
            foreach (string text in state.Commands.Take(MostCommands))
                commands.Enqueue(new ToolsCommand(text, null));
            heardAt = channels.OpenChannels.Any(c => c.Protocol == GuestRpcChannels.Tclo) ? clock.GetTimestamp() : null;
        }
    }
}

/// <summary>The tools' side at rest.</summary>
[SavedState("vmware-tools", 1)]
public sealed record GuestToolsSavedState
{
    /// <summary>Open channels.</summary>
    public RpcChannelSavedState[] Channels { get; init; } = [];
    /// <summary>Variables by name.</summary>
    public IDictionary<string, string> Information { get; init; } = new Dictionary<string, string>();
    /// <summary>What the tools can do.</summary>
    public string[] Capabilities { get; init; } = [];
    /// <summary>Version as the tools put it; 0: unknown.</summary>
    public uint Version { get; init; }
    /// <summary>Commands that wait to be fetched, and nobody for their answers.</summary>
    public string[] Commands { get; init; } = [];
}
