using System.ComponentModel;
using System.Diagnostics;
using System.Globalization;
using System.Text;

namespace Aerostat.Cli;

/// <summary>One run of another program, with what it cost.</summary>
/// <param name="ExitCode">Its exit status; -1 when it was killed because it took too long.</param>
/// <param name="Output">What it wrote to standard output and error.</param>
/// <param name="Wall">Wall-clock time.</param>
/// <param name="Cpu">CPU time, to 10 ms.</param>
internal sealed record ChildRun(int ExitCode, string Output, TimeSpan Wall, TimeSpan Cpu)
{
    /// <summary>Runs a program with no input. Runs of one process must not overlap: CPU time is told apart by difference.</summary>
    /// <param name="program">Its file.</param>
    /// <param name="arguments">Its arguments.</param>
    /// <param name="limit">After this time it is killed.</param>
    /// <param name="cancellation">Kills it at once.</param>
    /// <param name="onLine">Called with each line as it is written, and with what the process has cost so far.</param>
    public static async Task<ChildRun> StartAsync(
        string program, IEnumerable<string> arguments, TimeSpan limit, CancellationToken cancellation, Action<string, ChildCost>? onLine = null)
    {
        ProcessStartInfo info = new(program, arguments) { RedirectStandardInput = true, RedirectStandardOutput = true, RedirectStandardError = true };
        TimeSpan cpuBefore = ChildrenCpu();
        long start = Stopwatch.GetTimestamp();
        using Process process = Process.Start(info)!;
        process.StandardInput.Close();
        StringBuilder text = new();
        void Collect(object sender, DataReceivedEventArgs e)
        {
            lock (text)
                text.Append(e.Data).Append('\n');
            if (onLine is not null && e.Data is { } line && !process.HasExited)
                onLine(line, new ChildCost(Stopwatch.GetElapsedTime(start), CpuOf($"/proc/{process.Id}/stat", 11)));
        }
        process.OutputDataReceived += Collect;
        process.ErrorDataReceived += Collect;
        process.BeginOutputReadLine();
        process.BeginErrorReadLine();
        using CancellationTokenSource ending = CancellationTokenSource.CreateLinkedTokenSource(cancellation);
        ending.CancelAfter(limit);
        int code = -1;
        try
        {
            await process.WaitForExitAsync(ending.Token).ConfigureAwait(false);
            code = process.ExitCode;
        }
        catch (OperationCanceledException)
        {
            process.Kill();
            await process.WaitForExitAsync(CancellationToken.None).ConfigureAwait(false);
            cancellation.ThrowIfCancellationRequested();
        }
        TimeSpan wall = Stopwatch.GetElapsedTime(start);
        lock (text)
            return new ChildRun(code, text.ToString(), wall, ChildrenCpu() - cpuBefore);
    }

    /// <summary>Full path of a program in PATH, or null.</summary>
    public static string? Find(string name) => (Environment.GetEnvironmentVariable("PATH") ?? "").Split(':')
        .Select(folder => Path.Combine(folder, name)).FirstOrDefault(File.Exists);

    /// <summary>How this program is started: the program file, and what must stand before its arguments.</summary>
    public static (string Program, string[] Prefix) Self()
    {
        string path = Environment.ProcessPath ?? throw new Win32Exception("the path of this program is not known");
        return Path.GetFileNameWithoutExtension(path) == "dotnet" ? (path, [Path.Combine(AppContext.BaseDirectory, "aerostat.dll")]) : (path, []);
    }

    private static TimeSpan ChildrenCpu() => CpuOf("/proc/self/stat", 13);

    // proc_pid_stat(5): utime and stime are the 14th and 15th field, cutime and cstime the next two, in ticks of 10 ms; the second field
    // may hold spaces, so counting starts behind its parenthesis. A process that has just gone has cost nothing.
    private static TimeSpan CpuOf(string path, int field)
    {
        try
        {
            string stat = File.ReadAllText(path);
            string[] fields = stat[(stat.LastIndexOf(')') + 2)..].Split(' ');
            return TimeSpan.FromMilliseconds(10 * (long.Parse(fields[field], CultureInfo.InvariantCulture) + long.Parse(fields[field + 1], CultureInfo.InvariantCulture)));
        }
        catch (IOException)
        {
            return default;
        }
    }
}

/// <summary>What a process that still runs has cost.</summary>
/// <param name="Wall">Wall-clock time since its start.</param>
/// <param name="Cpu">CPU time of all its threads, to 10 ms.</param>
internal readonly record struct ChildCost(TimeSpan Wall, TimeSpan Cpu);
