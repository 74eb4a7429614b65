using System.Diagnostics;
using System.Globalization;
using Aerostat.Platform;

namespace Aerostat.Cli;

/// <summary>A line on standard error that says how far something is, with rate and time left, where that is a terminal; elsewhere nothing.</summary>
internal sealed class ProgressLine(TextWriter error) : IDisposable
{
    private const int BarWidth = 24;
    private static readonly TimeSpan s_interval = TimeSpan.FromMilliseconds(200);

    private readonly bool isTerminal = Terminal.ColumnsOf(2) is not null;
    private long lastShown, firstRead = -1, began;
    private bool isShown;

    /// <summary>Shows how far it is.</summary>
    /// <param name="what">What is done.</param>
    /// <param name="total">Bytes that there are.</param>
    /// <param name="done">Bytes that are done with, those that needed no work too.</param>
    /// <param name="moved">Bytes that needed work.</param>
    public void Show(string what, long total, long done, long moved)
    {
        if (!isTerminal || (isShown && Stopwatch.GetElapsedTime(lastShown) < s_interval))
            return;
        lastShown = Stopwatch.GetTimestamp();
        if (firstRead < 0 && total > 0)
            (firstRead, began) = (moved, lastShown);
        error.Write($"\r{Text(what, total, done, moved)}\u001b[K");
        error.Flush();
        isShown = true;
    }

    private string Text(string what, long total, long done, long moved)
    {
        if (total <= 0)
            return what;
        double part = Math.Clamp((double)done / total, 0, 1), seconds = Stopwatch.GetElapsedTime(began).TotalSeconds;
        int filled = (int)(part * BarWidth);
        string rate = seconds > 0.5 ? string.Create(CultureInfo.InvariantCulture, $"  {(moved - firstRead) / seconds / 1e6:0} MB/s") : "";
        string left = seconds > 1 && part is > 0.01 and < 1 ? $"  {TimeSpan.FromSeconds(seconds / part * (1 - part)):hh\\:mm\\:ss} left" : "";
        return string.Create(CultureInfo.InvariantCulture, $"{what} [{new string('#', filled)}{new string('.', BarWidth - filled)}] {part * 100:0}%{rate}{left}");
    }

    /// <summary>Takes the line away.</summary>
    public void Dispose()
    {
        if (!isShown)
            return;
        error.Write("\r\u001b[K");
        error.Flush();
    }
}
