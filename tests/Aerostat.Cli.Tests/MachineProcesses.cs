using System.Diagnostics;
using Xunit;

namespace Aerostat.Cli.Tests;

/// <summary>Runs of the program, as processes, with guests of a few bytes that other commands find.</summary>
public abstract class MachineProcesses : IDisposable
{
    private protected static readonly TimeSpan s_limit = TimeSpan.FromSeconds(120);

    // Short: it becomes part of a socket's path.
    private protected string Folder { get; } = Directory.CreateTempSubdirectory("ctl-").FullName;
    private readonly List<Process> machines = [];

    private protected static CancellationToken Token => TestContext.Current.CancellationToken;

    /// <summary>Ends what a test has left.</summary>
    public void Dispose()
    {
        GC.SuppressFinalize(this);
        foreach (Process machine in machines)
        {
            if (!machine.HasExited)
                machine.Kill();
            machine.WaitForExit();
            machine.Dispose();
        }
        Directory.Delete(Folder, recursive: true);
    }

    private protected string SocketOf(string name) => Path.Combine(Folder, "aerostat", name + ".sock");

    private protected Process Start(params string[] arguments)
    {
        ProcessStartInfo info = new(Path.Combine(AppContext.BaseDirectory, "aerostat"), arguments)
        {
            RedirectStandardInput = true,
            RedirectStandardOutput = true,
            RedirectStandardError = true,
        };
        info.Environment["XDG_RUNTIME_DIR"] = Folder;
        return Process.Start(info)!;
    }

    private protected async Task<(int Status, string Output, string Error)> Run(params string[] arguments)
    {
        using Process process = Start(arguments);
        process.StandardInput.Close();
        return await End(process);
    }

    private protected static async Task<(int Status, string Output, string Error)> End(Process process)
    {
        Task<string> output = process.StandardOutput.ReadToEndAsync(Token), error = process.StandardError.ReadToEndAsync(Token);
        await process.WaitForExitAsync(Token).WaitAsync(s_limit, Token);
        return (process.ExitCode, await output, await error);
    }

    /// <summary>A machine whose guest runs: it has sent back what was typed.</summary>
    private protected async Task<Process> Boot(params string[] options)
    {
        string kernel = Path.Combine(Folder, "kernel");
        if (!File.Exists(kernel))
            File.WriteAllBytes(kernel, TinyKernel.Image(TinyKernel.Echo));
        Process process = Start(["run", "--kernel", kernel, "--memory", "16M", "--accel", "interpreter", .. options]);
        machines.Add(process);
        await process.StandardInput.WriteAsync("x");
        await process.StandardInput.FlushAsync(Token);
        Assert.Equal('x', await Task.Run(process.StandardOutput.Read, Token).WaitAsync(s_limit, Token));
        return process;
    }

    private protected static void OneLine(string expected, string error)
    {
        Assert.StartsWith(expected, error, StringComparison.Ordinal);
        Assert.Single(error.TrimEnd('\n').Split('\n'));
    }
}
