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
    public static async Task<ChildRun> StartAsync(string program, IEnumerable<string> arguments, TimeSpan limit, CancellationToken cancellation)
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

    // proc_pid_stat(5): cutime and cstime, the 16th and 17th field, in ticks of 10 ms; the second field may hold spaces.
    private static TimeSpan ChildrenCpu()
    {
        string stat = File.ReadAllText("/proc/self/stat");
        string[] fields = stat[(stat.LastIndexOf(')') + 2)..].Split(' ');
        return TimeSpan.FromMilliseconds(10 * (long.Parse(fields[13], CultureInfo.InvariantCulture) + long.Parse(fields[14], CultureInfo.InvariantCulture)));
    }
}
