using System.Diagnostics;
using System.Net.Sockets;
using System.Text;
using System.Text.Json;
using Xunit;

namespace Aerostat.Cli.Tests;

/// <summary>Commands on running machines.</summary>
public sealed class ControlTests : MachineProcesses
{
    [Fact]
    public async Task AMachineIsFoundByItsName()
    {
        Process machine = await Boot("--name", "web");
        (int status, string output, string error) = await Run("ps");
        Assert.Equal((0, ""), (status, error));
        string[] lines = output.TrimEnd('\n').Split('\n');
        Assert.Equal(2, lines.Length);
        Assert.Equal(["web", $"{machine.Id}", "running", "interpreter", "1", "16M"], lines[1].Split(' ', StringSplitOptions.RemoveEmptyEntries)[..6]);

        (status, output, _) = await Run("ps", "--json");
        using (JsonDocument json = JsonDocument.Parse(output))
        {
            JsonElement row = Assert.Single(json.RootElement.EnumerateArray());
            Assert.Equal(("web", machine.Id, SocketOf("web")), (row.GetProperty("name").GetString(), row.GetProperty("pid").GetInt32(), row.GetProperty("control").GetString()));
        }
        Assert.Equal(0, status);

        (status, output, _) = await Run("show", "web");
        Assert.Equal(0, status);
        Assert.Contains("accelerator  interpreter (it was asked for)", output, StringComparison.Ordinal);
        Assert.Contains("port-reads", output, StringComparison.Ordinal);

        (status, output, _) = await Run("show", "web", "--json");
        using (JsonDocument json = JsonDocument.Parse(output))
            Assert.True(json.RootElement.GetProperty("handled").GetProperty("port-reads").GetProperty("count").GetInt64() > 0);

        (status, output, _) = await Run("inspect", "web", "/serial0");
        Assert.Equal(0, status);
        Assert.All(output.TrimEnd('\n').Split('\n'), l => Assert.StartsWith("/serial0/", l, StringComparison.Ordinal));
        (status, _, error) = await Run("inspect", "web", "/fan");
        Assert.Equal(2, status);
        OneLine("aerostat inspect: there is no 'fan'; there are vcpu0, ", error);
    }

    [Fact]
    public async Task ALifeFromOutside()
    {
        Process machine = await Boot("--name", "web");
        Assert.Equal((0, "web is paused\n", ""), await Run("pause", "web"));
        Assert.Equal((0, "web was paused already\n", ""), await Run("pause", "web"));
        (int status, _, string error) = await Run("stop", "web");
        Assert.Equal(1, status);
        OneLine("aerostat stop: the machine is paused", error);
        Assert.Equal((0, "web is running\n", ""), await Run("resume", "web"));
        Assert.Equal((0, "web was reset and is running\n", ""), await Run("reset", "web"));
        (status, _, error) = await Run("stop", "web", "--timeout", "0.1");
        Assert.Equal(124, status);
        OneLine("aerostat stop: the guest has not powered off in 0.1 s: it ignores the power button", error);
        (status, string output, _) = await Run("events", "web");
        Assert.Equal(0, status);
        Assert.Equal(
            ["started", "paused", "resumed", "reset", "power-button"],
            output.TrimEnd('\n').Split('\n').Select(l =>
            {
                using JsonDocument json = JsonDocument.Parse(l);
                return json.RootElement.GetProperty("event").GetProperty("kind").GetString()!;
            }));
        using Process follower = Start("logs", "web", "--follow");
        Assert.EndsWith("web has started", await follower.StandardOutput.ReadLineAsync(Token), StringComparison.Ordinal);
        (status, output, _) = await Run("stop", "web", "--force");
        Assert.Equal(0, status);
        Assert.StartsWith("web has ended (stopped)", output, StringComparison.Ordinal);
        Assert.EndsWith("web was stopped\n", (await End(follower)).Output, StringComparison.Ordinal);
        Assert.Equal(0, (await End(machine)).Status);
        Assert.False(File.Exists(SocketOf("web")));
        (status, _, error) = await Run("show", "web");
        Assert.Equal(2, status);
        OneLine("aerostat show: there is no machine named 'web' here; 'aerostat ps' lists those that run", error);
    }

    [Fact]
    public async Task OneNameOneMachine()
    {
        Process first = await Boot("--name", "web"), other = await Boot("--name", "db");
        (int status, _, string error) = await Run("run", "--kernel", Path.Combine(Folder, "kernel"), "--name", "web");
        Assert.Equal(2, status);
        OneLine("aerostat run: --name: a machine named 'web' is running already; choose another name, or end that one with 'aerostat stop web'", error);
        Assert.Equal(0, (await Run("stop", "db", "--force")).Status);
        Assert.Equal((0, "web is paused\n", ""), await Run("pause", "web"));
        Assert.Single((await Run("ps")).Output.TrimEnd('\n').Split('\n').Skip(1));
        // What a killed machine leaves behind is nobody's.
        first.Kill();
        await first.WaitForExitAsync(Token);
        Assert.True(File.Exists(SocketOf("web")));
        Assert.StartsWith("no machine runs under a name", (await Run("ps")).Output, StringComparison.Ordinal);
        Assert.Equal(2, (await Run("show", "web")).Status);
        Process again = await Boot("--name", "web");
        Assert.Equal((0, "web is paused\n", ""), await Run("pause", "web"));
    }

    [Fact]
    public async Task ASocketOfOnesOwn()
    {
        string path = Path.Combine(Folder, "own.sock");
        Process machine = await Boot("--control", path);
        Assert.Equal((0, "guest is paused\n", ""), await Run("pause", "--control", path));
        (int status, string output, _) = await Run("inspect", "--control", path, "/vcpu0/processor/activity", "--json");
        Assert.Equal((0, "\"Running\"\n"), (status, output));
        (status, _, string error) = await Run("pause", "web", "--control", path);
        Assert.Equal(2, status);
        OneLine("aerostat pause: 'web' and --control name two machines; give one of them", error);
        (status, _, error) = await Run("pause");
        Assert.Equal(2, status);
        OneLine("aerostat pause: which machine? give its NAME", error);
        Assert.Equal(0, (await Run("stop", "--control", path, "--force")).Status);
        Assert.Equal(0, (await End(machine)).Status);
        Assert.False(File.Exists(path));
    }

    /// <summary>What docs/control.md tells scripts to do, by hand.</summary>
    [Fact]
    public async Task AScriptSpeaksTheProtocol()
    {
        Process machine = await Boot("--name", "web");
        using Socket socket = new(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
        await socket.ConnectAsync(new UnixDomainSocketEndPoint(SocketOf("web")), Token);
        await socket.SendAsync("{\"verb\":\"pause\"}\n"u8.ToArray(), Token);
        socket.Shutdown(SocketShutdown.Send);
        byte[] buffer = new byte[4096];
        StringBuilder text = new();
        while (await socket.ReceiveAsync(buffer, Token).AsTask().WaitAsync(s_limit, Token) is var count and > 0)
            text.Append(Encoding.UTF8.GetString(buffer, 0, count));
        string[] lines = text.ToString().TrimEnd('\n').Split('\n');
        Assert.StartsWith("{\"hello\":{\"protocol\":\"aerostat-control\",\"version\":1,\"name\":\"web\",", lines[0], StringComparison.Ordinal);
        Assert.Equal("{\"ok\":true,\"result\":{\"state\":\"paused\",\"changed\":true}}", lines[1]);
    }

    [Fact]
    public async Task GdbCanAttachLater()
    {
        Process machine = await Boot("--name", "web");
        string path = Path.Combine(Folder, "gdb.sock");
        Assert.Equal((0, $"gdb: target remote {path}\n", ""), await Run("debug", "web", path));
        using (Socket gdb = new(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified))
        {
            await gdb.ConnectAsync(new UnixDomainSocketEndPoint(path), Token);
            await gdb.SendAsync("$?#3f"u8.ToArray(), Token);
            byte[] one = new byte[1];
            Assert.Equal(1, await gdb.ReceiveAsync(one, Token));
            (int status, _, string error) = await Run("resume", "web");
            Assert.Equal(1, status);
            OneLine("aerostat resume: a debugger is attached", error);
        }
        Assert.Equal(0, (await Run("stop", "web", "--force")).Status);
        Assert.Equal(0, (await End(machine)).Status);
        Assert.False(File.Exists(path));
    }
}
