using System.ComponentModel;
using System.Diagnostics;

namespace Aerostat.Guest.Agent;

/// <summary>
/// Programs that bring databases and the like to rest: every executable file of a folder is run with "freeze" before, in the order of the names, and
/// with "thaw" after, in the opposite order. One that fails or takes too long with "freeze" keeps the freeze from happening.
/// </summary>
internal sealed class Hooks(string folder, TimeSpan limit, ILog log)
{
    private readonly List<string> _run = [];

    /// <summary>Answers whether all went well; if not, those that had run are told.</summary>
    public bool BeforeFreeze()
    {
        _run.Clear();
        foreach (string hook in List())
        {
            // Also the one that fails may have done half of it.
            _run.Add(hook);
            if (Run(hook, "freeze"))
                continue;
            AfterThaw();
            return false;
        }
        return true;
    }

    public void AfterThaw()
    {
        for (int i = _run.Count - 1; i >= 0; i--)
            Run(_run[i], "thaw");
        _run.Clear();
    }

    private string[] List()
    {
        try
        {
            return Directory.Exists(folder)
                ? [.. Directory.EnumerateFiles(folder).Where(f => (File.GetUnixFileMode(f) & UnixFileMode.UserExecute) != 0).Order(StringComparer.Ordinal)]
                : [];
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            log.Write(LogLevel.Error, $"the hooks in {folder} cannot be listed: {e.Message}");
            return [];
        }
    }

    private bool Run(string hook, string what)
    {
        try
        {
            using Process process = Process.Start(new ProcessStartInfo(hook, [what]) { UseShellExecute = false })!;
            if (!process.WaitForExit(limit))
            {
                process.Kill(entireProcessTree: true);
                log.Write(LogLevel.Error, $"{hook} {what} took longer than {limit.TotalSeconds:0} s and was ended");
                return false;
            }
            if (process.ExitCode == 0)
                return true;
            log.Write(LogLevel.Error, $"{hook} {what} failed with status {process.ExitCode}");
        }
        catch (Exception e) when (e is Win32Exception or InvalidOperationException)
        {
            log.Write(LogLevel.Error, $"{hook} {what} could not be run: {e.Message}");
        }
        return false;
    }
}
