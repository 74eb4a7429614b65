using System.CommandLine;
using System.Globalization;
using Aerostat.Backup;
using Aerostat.Control;
using Aerostat.Machine;
using Aerostat.Platform;

namespace Aerostat.Cli;

/// <summary><c>aerostat backup</c>: a running machine's disks into a store; <c>restore</c> and <c>verify</c> read it.</summary>
internal static class BackupCommand
{
    private static readonly TimeSpan s_interval = TimeSpan.FromMilliseconds(200);

    public static Command Create()
    {
        Option<string?> to = new("--to") { HelpName = "DIR", Description = "Directory for backups; made when it is not there" };
        Option<bool> incremental = new("--incremental") { Description = "Only what has changed since the latest backup of this machine in DIR" };
        Option<string?> keep = new("--keep") { HelpName = "N", Description = "Afterwards remove all but the latest N backups of this machine and those they build on" };
        Option<bool> crash = new("--crash-consistent") { Description = "If the guest cannot be frozen, back up what is on its disks all the same" };
        Option<string?> timeout = new("--timeout") { HelpName = "SECONDS", Description = "How long the guest may take to freeze (60)" };
        Option<string?> compress = new("--compress") { HelpName = "LEVEL|none", Description = $"Zstandard's level, -7 to 19 ({BackupOptions.DefaultLevel})" };
        Option<string?> hash = new("--hash") { HelpName = "NAME", Description = "By what damage is found: xxh128 (fast, with a secret seed) or sha256 (xxh128)" };
        return MachineCommand.Create("backup", "Back up a running machine's disks, its guest's file systems frozen for a moment (needs --personality hyperv and hv_vss_daemon in the guest, or vmware and open-vm-tools).", async call =>
        {
            if (call.Result.GetValue(to) is not { Length: > 0 } directory)
                throw new ConfigurationException("where to? give --to DIR");
            BackupArguments arguments = new(Path.GetFullPath(directory), call.Result.GetValue(incremental), call.Result.GetValue(crash));
            if (call.Result.GetValue(keep) is { } number)
                arguments = arguments with { Keep = ParseNumber("--keep", number, 1, 1_000_000) };
            if (call.Result.GetValue(timeout) is { } limit)
                arguments = arguments with { Timeout = MachineArguments.ParseTimeout(limit).TotalSeconds };
            if (call.Result.GetValue(compress) is { } level)
                arguments = level == "none" ? arguments with { Compress = false } : arguments with { Level = ParseNumber("--compress", level, -7, 19) };
            if (call.Result.GetValue(hash) is { } name)
                arguments = arguments with { Hash = name is "xxh128" or "sha256" ? name : throw new ConfigurationException($"--hash: '{name}' is not xxh128 or sha256") };
            return await RunAsync(call, arguments).ConfigureAwait(false);
        }, extra: null, to, incremental, keep, crash, timeout, compress, hash);
    }

    private static async Task<int> RunAsync(MachineCall call, BackupArguments arguments)
    {
        using HostSignals signals = new();
        using CancellationTokenSource over = CancellationTokenSource.CreateLinkedTokenSource(signals.Stopping, call.Cancellation);
        Task watch = WatchAsync(call, over.Token);
        try
        {
            // How long it takes is the disks' affair: only Ctrl-C ends it. Closing the connection is what the machine's process sees of that.
            System.Text.Json.JsonElement element = await call.Client.AskAsync("backup", arguments, BackupVerbJson.Default.BackupArguments, Timeout.InfiniteTimeSpan, over.Token).ConfigureAwait(false);
            await over.CancelAsync().ConfigureAwait(false);
            await watch.ConfigureAwait(false);
            if (call.Json)
                call.Print(element);
            else
                Write(call.Output, ControlClient.Decode(element, BackupVerbJson.Default.BackupAnswer));
            return ExitStatus.Success;
        }
        catch (OperationCanceledException) when (signals.Received != 0)
        {
            call.Client.Dispose();
            await watch.ConfigureAwait(false);
            call.Result.InvocationConfiguration.Error.WriteLine("aerostat backup: given up; the guest goes on, and nothing of this backup is kept");
            return signals.ExitStatus;
        }
        finally
        {
            await over.CancelAsync().ConfigureAwait(false);
            await watch.ConfigureAwait(false);
        }
    }

    // Over a connection of its own: the other one waits for the answer.
    private static async Task WatchAsync(MachineCall call, CancellationToken cancellation)
    {
        if (call.Json || Terminal.ColumnsOf(2) is null)
            return;
        using ProgressLine line = new(call.Result.InvocationConfiguration.Error);
        try
        {
            using ControlClient client = await ControlClient.ConnectAsync(call.Client.Endpoint, cancellation).ConfigureAwait(false);
            using PeriodicTimer timer = new(s_interval);
            while (await timer.WaitForNextTickAsync(cancellation).ConfigureAwait(false))
            {
                BackupProgressAnswer now = await client.AskAsync(
                    "backup-progress", new NoArguments(), BackupVerbJson.Default.NoArguments, BackupVerbJson.Default.BackupProgressAnswer, TimeSpan.FromSeconds(60), cancellation).ConfigureAwait(false);
                if (now.Phase != "none")
                    line.Show(now.Phase, now.TotalBytes, now.DoneBytes, now.ReadBytes);
            }
        }
        catch (Exception e) when (e is OperationCanceledException or ControlException)
        {
            // There is an answer, or there will be an error.
        }
    }

    private static void Write(TextWriter output, BackupAnswer answer)
    {
        string consistency = answer.Consistency == "guest"
            ? $"guest-consistent; frozen for {Milliseconds(answer.FrozenSeconds)} after {Milliseconds(answer.FreezeSeconds)} of freezing"
            : $"crash-consistent: {answer.ConsistencyReason}";
        output.WriteLine($"{answer.Name}: {consistency}");
        double rate = answer.CopySeconds > 0 ? answer.ReadBytes / answer.CopySeconds / 1e6 : 0;
        output.WriteLine(string.Create(CultureInfo.InvariantCulture, $"{answer.ReadBytes / 1e6:0.0} MB of {answer.DiskBytes / 1e6:0} MB read, {answer.StoredBytes / 1e6:0.0} MB stored{(answer.Parent is null ? "" : $" on top of {answer.Parent}")} in {answer.CopySeconds:0.00} s ({rate:0} MB/s)"));
        foreach (string note in answer.Notes)
            output.WriteLine($"note: {note}");
        foreach (string removed in answer.Removed)
            output.WriteLine($"removed {removed}");
    }

    private static string Milliseconds(double? seconds) => string.Create(CultureInfo.InvariantCulture, $"{seconds * 1000:0.0} ms");

    private static int ParseNumber(string option, string text, int least, int most) =>
        int.TryParse(text, NumberStyles.AllowLeadingSign, CultureInfo.InvariantCulture, out int number) && number >= least && number <= most
            ? number
            : throw new ConfigurationException($"{option}: '{text}' is not a number from {least} to {most}");
}
