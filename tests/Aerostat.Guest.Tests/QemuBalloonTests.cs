using System.Diagnostics;
using System.Text.Json;
using Aerostat.Cli;
using Aerostat.Machine;
using Xunit;

namespace Aerostat.Guest.Tests;

/// <summary>The same image and driver on QEMU's virtio balloon: a host side that we did not write.</summary>
public sealed class QemuBalloonTests
{
    private const long MiB = 1 << 20, Memory = 64 * MiB;
    private const int PagesPerMiB = 256;

    internal static async Task RunAsync(string commandLine, string[] devices, Func<QemuMonitor, GuestShell, Task> script)
    {
        string socket = Path.Combine(Path.GetTempPath(), $"aerostat-qmp-{Guid.NewGuid():n}");
        using TemporaryFile image = GuestKernel.WriteImage("multiboot");
        using Process qemu = Qemu.Start(image.Path, commandLine, [.. devices, "-qmp", $"unix:{socket},server=on,wait=off"]);
        SerialTranscript console = new();
        Task pump = PumpAsync(qemu.StandardOutput.BaseStream, console);
        try
        {
            GuestShell shell = new(console, async text =>
            {
                await qemu.StandardInput.WriteAsync(text);
                await qemu.StandardInput.FlushAsync();
            });
            await shell.ReadyAsync();
            using QemuMonitor monitor = await QemuMonitor.ConnectAsync(socket, TestContext.Current.CancellationToken);
            await script(monitor, shell);
            await shell.EndAsync();
            await qemu.WaitForExitAsync(TestContext.Current.CancellationToken).WaitAsync(TimeSpan.FromMinutes(1), TestContext.Current.CancellationToken);
            Assert.Equal(0, qemu.ExitCode);
        }
        finally
        {
            if (!qemu.HasExited)
                qemu.Kill();
            await pump;
            File.Delete(socket);
        }
    }

    private static async Task PumpAsync(Stream from, SerialTranscript to)
    {
        byte[] buffer = new byte[4096];
        for (int n; (n = await from.ReadAsync(buffer)) > 0;)
            to.Append(buffer.AsSpan(0, n));
        to.Close();
    }

    private static async Task<JsonElement> AskAsync(QemuMonitor monitor, string command)
    {
        JsonElement? answer = await monitor.AskAsync(command, TestContext.Current.CancellationToken);
        Assert.True(answer is not null, $"QEMU refused {command}");
        return answer.Value;
    }

    private static async Task<JsonElement> UntilAsync(QemuMonitor monitor, string command, Func<JsonElement, bool> condition)
    {
        for (int i = 0; i < 1000; i++)
        {
            JsonElement answer = await AskAsync(monitor, command);
            if (condition(answer))
                return answer;
            await Task.Delay(30, TestContext.Current.CancellationToken);
        }
        throw new InvalidOperationException($"{command}: {await AskAsync(monitor, command)}");
    }

    [Fact]
    public async Task GivesTakesBackReportsAndCounts() => await RunAsync("poison", ["-device", "virtio-balloon-pci,id=b0,deflate-on-oom=on,free-page-reporting=on"], async (monitor, shell) =>
    {
        await shell.AskAsync("alloc 8");
        foreach (long target in (long[])[16 * MiB, 40 * MiB, 4 * MiB])
        {
            await AskAsync(monitor, $$$"""{"execute":"balloon","arguments":{"value":{{{Memory - target}}}}}""");
            await shell.SettledAsync(target / 4096);
            await UntilAsync(monitor, """{"execute":"query-balloon"}""", b => b.GetProperty("actual").GetInt64() == Memory - target);
        }
        await AskAsync(monitor, """{"execute":"qom-set","arguments":{"path":"/machine/peripheral/b0","property":"guest-stats-polling-interval","value":1}}""");
        JsonElement statistics = await UntilAsync(monitor, """{"execute":"qom-get","arguments":{"path":"/machine/peripheral/b0","property":"guest-stats"}}""", s => s.GetProperty("last-update").GetInt64() != 0);
        Assert.Equal(await shell.FigureAsync("mem", "total-pages") * 4096, statistics.GetProperty("stats").GetProperty("stat-total-memory").GetInt64());
        await shell.BalloonAsync(t => GuestShell.Figure(t, "reported-mib") >= 40, "reports");
        // More than is free outside of the balloon.
        await AskAsync(monitor, $$$"""{"execute":"balloon","arguments":{"value":{{{Memory - (30 * MiB)}}}}}""");
        await shell.SettledAsync(30 * PagesPerMiB);
        Assert.Equal(40 * PagesPerMiB, await shell.FigureAsync("alloc 40", "got-pages"));
        Assert.InRange(await shell.FigureAsync("balloon", "oom"), PagesPerMiB, 30 * PagesPerMiB);
        Assert.Equal(0, await shell.FigureAsync("check", "wrong-words"));
    });

    /// <summary>A migration asks for free pages and leaves out what is named; what the guest keeps is whole when it goes on.</summary>
    [Fact]
    public async Task NamesFreePagesForAMigration() => await RunAsync("", ["-object", "iothread,id=io", "-device", "virtio-balloon-pci,free-page-hint=on,iothread=io"], async (monitor, shell) =>
    {
        // All memory has something in it, and most of it is free.
        await shell.AskAsync("alloc 56");
        await shell.AskAsync("free");
        await shell.AskAsync("alloc 8");
        await AskAsync(monitor, """{"execute":"migrate-set-parameters","arguments":{"max-bandwidth":8388608}}""");
        await AskAsync(monitor, """{"execute":"migrate","arguments":{"uri":"exec:cat > /dev/null"}}""");
        JsonElement done = await UntilAsync(monitor, """{"execute":"query-migrate"}""", m => m.GetProperty("status").GetString() is "completed" or "failed");
        Assert.Equal("completed", done.GetProperty("status").GetString());
        await AskAsync(monitor, """{"execute":"cont"}""");
        string text = await shell.BalloonAsync(t => GuestShell.Figure(t, "hints-held") == 0, "the blocks held for hints come back");
        long sent = done.GetProperty("ram").GetProperty("normal-bytes").GetInt64();
        Assert.True(sent is >= 8 * MiB and <= 40 * MiB, $"{sent} bytes sent; {text}");
        Assert.InRange(GuestShell.Figure(text, "hinted-mib"), 32, 1000);
        Assert.Equal(0, await shell.FigureAsync("check", "wrong-words"));
    });
}
