using System.Diagnostics;
using System.Globalization;
using System.Text;

namespace Aerostat.Cli;

/// <summary>A monitor in a process of its own with a guest whose console lines are awaited; it is killed when disposed of.</summary>
internal sealed class GuestProcess : IDisposable
{
    private readonly Process process;
    private readonly Lock gate = new();
    private readonly StringBuilder text = new();
    private readonly List<(string Text, TaskCompletionSource<bool> Found)> waiting = [];
    private bool over;

    public GuestProcess(string program, IEnumerable<string> arguments)
    {
        ProcessStartInfo info = new(program, arguments) { RedirectStandardInput = true, RedirectStandardOutput = true, RedirectStandardError = true };
        process = Process.Start(info)!;
        process.StandardInput.Close();
        process.OutputDataReceived += Collect;
        process.ErrorDataReceived += Collect;
        process.EnableRaisingEvents = true;
        process.Exited += (_, _) => End();
        process.BeginOutputReadLine();
        process.BeginErrorReadLine();
        if (process.HasExited)
            End();
    }

    /// <summary>The end of what it has written.</summary>
    public string Tail
    {
        get
        {
            lock (gate)
                return text.ToString(Math.Max(0, text.Length - 1000), Math.Min(text.Length, 1000));
        }
    }

    /// <summary>CPU time of all its threads (proc_pid_stat(5)), to 10 ms.</summary>
    public TimeSpan Cpu
    {
        get
        {
            string stat = File.ReadAllText($"/proc/{process.Id}/stat");
            string[] fields = stat[(stat.LastIndexOf(')') + 2)..].Split(' ');
            return TimeSpan.FromMilliseconds(10 * (long.Parse(fields[11], CultureInfo.InvariantCulture) + long.Parse(fields[12], CultureInfo.InvariantCulture)));
        }
    }

    /// <summary>Resident memory of the whole process, in bytes (proc_pid_statm(5)).</summary>
    public ulong ResidentBytes =>
        ulong.Parse(File.ReadAllText($"/proc/{process.Id}/statm").Split(' ')[1], CultureInfo.InvariantCulture) * (ulong)Environment.SystemPageSize;

    /// <summary>Waits for a text on its output. False: the process ended, or the time ran out.</summary>
    public async Task<bool> WaitForAsync(string what, TimeSpan limit, CancellationToken cancellation)
    {
        TaskCompletionSource<bool> found = new(TaskCreationOptions.RunContinuationsAsynchronously);
        lock (gate)
        {
            if (text.ToString().Contains(what, StringComparison.Ordinal))
                return true;
            if (over)
                return false;
            waiting.Add((what, found));
        }
        Task first = await Task.WhenAny(found.Task, Task.Delay(limit, cancellation)).ConfigureAwait(false);
        cancellation.ThrowIfCancellationRequested();
        return first == found.Task && await found.Task.ConfigureAwait(false);
    }

    public void Dispose()
    {
        try
        {
            process.Kill();
            process.WaitForExit();
        }
        catch (InvalidOperationException)
        {
            // It is gone already.
        }
        process.Dispose();
    }

    private void Collect(object sender, DataReceivedEventArgs e)
    {
        lock (gate)
        {
            text.Append(e.Data).Append('\n');
            waiting.RemoveAll(w => e.Data?.Contains(w.Text, StringComparison.Ordinal) == true && w.Found.TrySetResult(true));
        }
    }

    private void End()
    {
        lock (gate)
        {
            over = true;
            waiting.ForEach(w => w.Found.TrySetResult(false));
            waiting.Clear();
        }
    }
}
