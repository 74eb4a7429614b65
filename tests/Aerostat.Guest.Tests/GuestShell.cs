using System.Globalization;
using System.Text;
using System.Text.RegularExpressions;
using Aerostat.Machine;
using Xunit;

namespace Aerostat.Guest.Tests;

/// <summary>The guest's command shell, on whatever it runs.</summary>
internal sealed class GuestShell(SerialTranscript console, Func<string, Task> type)
{
    private static readonly TimeSpan s_limit = TimeSpan.FromMinutes(1);

    public SerialTranscript Console => console;

    /// <summary>Waits for the first prompt.</summary>
    public Task ReadyAsync() => PromptAsync("start");

    /// <summary>What a command answered.</summary>
    public async Task<string> AskAsync(string command)
    {
        int from = console.Text.Length;
        await type(command + "\n");
        await PromptAsync(command);
        return console.Text[from..];
    }

    /// <summary>A figure, "name=value", of what a command answers.</summary>
    public async Task<long> FigureAsync(string command, string name) => Figure(await AskAsync(command), name);

    public static long Figure(string text, string name)
    {
        Match match = Regex.Match(text, $@"(?:^|\s){Regex.Escape(name)}=(\d+)");
        Assert.True(match.Success, $"no {name} in: {text}");
        return long.Parse(match.Groups[1].Value, CultureInfo.InvariantCulture);
    }

    /// <summary>Asks for the balloon's figures until they are right.</summary>
    public async Task<string> BalloonAsync(Func<string, bool> condition, string what)
    {
        string text = "";
        for (int i = 0; i < 1500; i++)
        {
            text = await AskAsync("balloon");
            if (condition(text))
                return text;
            await Task.Delay(20, TestContext.Current.CancellationToken);
        }
        throw new InvalidOperationException($"{what}: {text}");
    }

    /// <summary>The balloon has so many pages, and is done.</summary>
    public Task<string> SettledAsync(long pages) => BalloonAsync(t => Figure(t, "settled") == 1 && Figure(t, "pages") == pages, $"balloon of {pages} pages");

    public Task EndAsync() => type("off\n");

    private async Task PromptAsync(string what)
    {
        try
        {
            if (await console.WaitForAsync("> ", TestContext.Current.CancellationToken).WaitAsync(s_limit))
                return;
        }
        catch (TimeoutException)
        {
        }
        throw new InvalidOperationException($"no prompt after {what}; the console ends with:\n{Encoding.UTF8.GetString(Encoding.Latin1.GetBytes(console.Text))}");
    }
}
