using System.Diagnostics;
using System.Net.Sockets;
using System.Text.Json;
using Xunit;

namespace Aerostat.Cli.Tests;

/// <summary>Whole runs of the program, as a process, with guests of a few bytes: exit statuses, console, signals, statistics.</summary>
public sealed class RunTests : IDisposable
{
    private static readonly TimeSpan s_limit = TimeSpan.FromSeconds(60);

    private readonly string folder = Directory.CreateTempSubdirectory("aerostat-test-").FullName;

    private static CancellationToken Token => TestContext.Current.CancellationToken;

    public void Dispose() => Directory.Delete(folder, recursive: true);

    private string Kernel(byte[] code)
    {
        string path = Path.Combine(folder, "kernel");
        File.WriteAllBytes(path, TinyKernel.Image(code));
        return path;
    }

    private Process Start(byte[] code, params string[] options)
    {
        ProcessStartInfo info = new(Path.Combine(AppContext.BaseDirectory, "aerostat"), ["run", "--kernel", Kernel(code), "--memory", "16M", .. options])
        {
            RedirectStandardInput = true,
            RedirectStandardOutput = true,
            RedirectStandardError = true,
        };
        return Process.Start(info)!;
    }

    private async Task<(int Status, string Output, string Error)> Run(byte[] code, string input, params string[] options)
    {
        using Process process = Start(code, options);
        await process.StandardInput.WriteAsync(input);
        process.StandardInput.Close();
        return await End(process);
    }

    private static async Task<(int Status, string Output, string Error)> End(Process process)
    {
        Task<string> output = process.StandardOutput.ReadToEndAsync(Token), error = process.StandardError.ReadToEndAsync(Token);
        await process.WaitForExitAsync(Token).WaitAsync(s_limit, Token);
        return (process.ExitCode, await output, await error);
    }

    [Fact]
    public async Task PowerOffIsStatus0()
    {
        (int status, _, string error) = await Run(TinyKernel.PowerOff, "");
        Assert.Equal("", error);
        Assert.Equal(0, status);
    }

    [Theory]
    [InlineData(0, 1)]
    [InlineData(3, 7)]
    [InlineData(0x7F, 255)]
    public async Task DebugExitGivesTheValue(byte value, int expected) =>
        Assert.Equal(expected, (await Run([.. TinyKernel.OutByte(0xF4, value), .. TinyKernel.Forever], "", "--device", "debug-exit")).Status);

    [Fact]
    public async Task DebugExitMayMove() =>
        Assert.Equal(3, (await Run([.. TinyKernel.OutByte(0x501, 1), .. TinyKernel.Forever], "", "--device", "debug-exit,port=0x501")).Status);

    [Fact]
    public async Task ResetUnderNoRebootIsStatus0() =>
        Assert.Equal(0, (await Run(TinyKernel.Reset, "", "--no-reboot")).Status);

    [Fact]
    public async Task StatisticsOntoADeviceLeaveTheDevice()
    {
        (int status, string output, _) = await Run(TinyKernel.PowerOff, "", "--stats", "/dev/stdout");
        Assert.Equal(0, status);
        using JsonDocument json = JsonDocument.Parse(output);
        Assert.Equal("powered-off", json.RootElement.GetProperty("exit").GetString());
        Assert.NotNull(new FileInfo("/dev/stdout").LinkTarget);
    }

    [Fact]
    public async Task StatisticsOntoALinkReplaceWhatItLeadsTo()
    {
        string file = Path.Combine(folder, "real.json"), link = Path.Combine(folder, "link.json");
        await File.WriteAllTextAsync(file, "old", Token);
        File.CreateSymbolicLink(link, file);
        Assert.Equal(0, (await Run(TinyKernel.PowerOff, "", "--stats", link)).Status);
        Assert.Equal(file, new FileInfo(link).LinkTarget);
        using JsonDocument json = JsonDocument.Parse(await File.ReadAllTextAsync(file, Token));
        Assert.Equal("powered-off", json.RootElement.GetProperty("exit").GetString());
    }

    [Fact]
    public async Task AFullStandardOutputIsSaidInOneLine()
    {
        ProcessStartInfo info = new("/bin/sh", ["-c", $"exec '{Path.Combine(AppContext.BaseDirectory, "aerostat")}' --help > /dev/full"]) { RedirectStandardInput = true, RedirectStandardOutput = true, RedirectStandardError = true };
        using Process process = Process.Start(info)!;
        (int status, _, string error) = await End(process);
        Assert.Equal(4, status);
        Assert.StartsWith("aerostat: standard output cannot be written", error, StringComparison.Ordinal);
        Assert.Single(error.TrimEnd('\n').Split('\n'));
    }

    // A number that was closed at the start is the runtime's by now: nothing may be written to it or read from it.
    [Theory]
    [InlineData("--version", ">&-", 4)]
    [InlineData("--version", "2>&-", 0)]
    [InlineData("--help", ">&- 2>&- <&-", 4)]
    [InlineData("run", "<&-", 0)]
    [InlineData("run", ">&-", 4)]
    [InlineData("run", "2>&-", 0)]
    public async Task AClosedDescriptorIsNoOnesElse(string verb, string closed, int expected)
    {
        string arguments = verb == "run" ? $"run --memory 16M --kernel '{Kernel([.. TinyKernel.OutByte(0x3F8, (byte)'x'), .. closed == ">&-" ? TinyKernel.Forever : TinyKernel.PowerOff])}'" : verb;
        ProcessStartInfo info = new("/bin/sh", ["-c", $"exec '{Path.Combine(AppContext.BaseDirectory, "aerostat")}' {arguments} {closed}"]) { RedirectStandardInput = true, RedirectStandardOutput = true, RedirectStandardError = true };
        using Process process = Process.Start(info)!;
        process.StandardInput.Close();
        (int status, _, string error) = await End(process);
        Assert.Equal(expected, status);
        if (closed == ">&-")
            Assert.Contains("standard output cannot be written", Assert.Single(error.TrimEnd('\n').Split('\n')), StringComparison.Ordinal);
    }

    [Fact]
    public async Task AReaderThatHasSeenEnoughEndsTheRun()
    {
        ProcessStartInfo info = new("/bin/sh", ["-c", $"{{ '{Path.Combine(AppContext.BaseDirectory, "aerostat")}' run --memory 16M --kernel '{Kernel(TinyKernel.Echo)}'; echo $? >&2; }} | head -n 1"]) { RedirectStandardInput = true, RedirectStandardOutput = true, RedirectStandardError = true };
        using Process process = Process.Start(info)!;
        Task<string?> first = process.StandardOutput.ReadLineAsync(Token).AsTask();
        await process.StandardInput.WriteAsync("one\n");
        await process.StandardInput.FlushAsync(Token);
        Assert.Equal("one", await first);
        // Head may take a moment to go: what is written meanwhile is lost.
        Task<(int Status, string Output, string Error)> end = End(process);
        while (!end.IsCompleted)
        {
            try
            {
                await process.StandardInput.WriteAsync("two\n");
                await process.StandardInput.FlushAsync(Token);
            }
            catch (IOException)
            {
                // The run has ended.
            }
            await Task.WhenAny(end, Task.Delay(20, Token));
        }
        (int status, _, string error) = await end;
        Assert.Equal((0, "141\n"), (status, error));
    }

    [Fact]
    public async Task ResetStartsTheKernelAgain()
    {
        string stats = Path.Combine(folder, "stats.json");
        Assert.Equal(0, (await Run(TinyKernel.ResetOnce, "", "--stats", stats)).Status);
        using JsonDocument json = JsonDocument.Parse(await File.ReadAllTextAsync(stats, Token));
        Assert.Equal(1, json.RootElement.GetProperty("resets").GetInt32());
    }

    [Fact]
    public async Task TripleFaultIsStatus3WithADump()
    {
        (int status, _, string error) = await Run(TinyKernel.TripleFault, "");
        Assert.Equal(3, status);
        Assert.Contains("triple fault", error, StringComparison.Ordinal);
        Assert.Contains("RIP=0000000000100027", error, StringComparison.Ordinal);
        Assert.Contains("0f 0b", error, StringComparison.Ordinal);
        Assert.Contains("CR0=", error, StringComparison.Ordinal);
    }

    [Fact]
    public async Task ATimeLimitIsStatus124()
    {
        (int status, _, string error) = await Run(TinyKernel.Forever, "", "--timeout", "0.5");
        Assert.Equal(124, status);
        Assert.Contains("--timeout", error, StringComparison.Ordinal);
    }

    [Fact]
    public async Task InputReachesTheGuestAndItsOutputComesBack()
    {
        // Longer than the FIFO: the line must hold the rest back.
        string text = string.Concat(Enumerable.Range(0, 200).Select(i => $"line {i}\n"));
        (int status, string output, _) = await Run(TinyKernel.Echo, text + "q");
        Assert.Equal(0, status);
        Assert.Equal(text + "q", output);
    }

    [Theory]
    [InlineData("TERM", 143)]
    [InlineData("INT", 130)]
    [InlineData("HUP", 129)]
    public async Task ASignalEndsTheRunInGoodOrder(string signal, int expected)
    {
        string stats = Path.Combine(folder, "stats.json");
        using Process process = Start(TinyKernel.Echo, "--stats", stats);
        // The echo says that the guest runs.
        await process.StandardInput.WriteAsync("x");
        await process.StandardInput.FlushAsync(Token);
        Assert.Equal('x', process.StandardOutput.Read());
        using (Process kill = Process.Start("/bin/sh", ["-c", $"kill -{signal} {process.Id}"]))
            await kill.WaitForExitAsync(Token);
        Assert.Equal(expected, (await End(process)).Status);
        using JsonDocument json = JsonDocument.Parse(await File.ReadAllTextAsync(stats, Token));
        Assert.Equal("stopped", json.RootElement.GetProperty("exit").GetString());
        Assert.Equal(expected, json.RootElement.GetProperty("exitStatus").GetInt32());
    }

    [Fact]
    public async Task StatisticsAreWrittenWhole()
    {
        string stats = Path.Combine(folder, "stats.json");
        Assert.Equal(0, (await Run(TinyKernel.PowerOff, "", "--stats", stats, "--name", "tiny", "--control", Path.Combine(folder, "tiny.sock"), "--accel", "interpreter")).Status);
        using JsonDocument json = JsonDocument.Parse(await File.ReadAllTextAsync(stats, Token));
        JsonElement root = json.RootElement;
        Assert.Equal("tiny", root.GetProperty("name").GetString());
        Assert.Equal("interpreter", root.GetProperty("accelerator").GetString());
        Assert.Equal("powered-off", root.GetProperty("exit").GetString());
        Assert.True(root.GetProperty("instructions").GetInt64() >= 3);
        Assert.True(root.GetProperty("peakVmmBytes").GetInt64() > 0);
        Assert.Equal(1, root.GetProperty("exits").GetProperty("handler-request").GetInt64());
        Assert.Equal(["kernel", "stats.json"], Directory.GetFiles(folder).Select(Path.GetFileName).Order());
    }

    /// <summary>The guest waits for the debugger, which lets it go and hears how it ends.</summary>
    [Fact]
    public async Task ADebuggerLetsTheGuestGo()
    {
        string path = Path.Combine(folder, "gdb.sock");
        using Process process = Start(TinyKernel.PowerOff, "--gdb", path, "--gdb-wait");
        Assert.Equal($"aerostat run: gdb: target remote {path} (the guest waits for it)", await process.StandardError.ReadLineAsync(Token));
        using (Socket gdb = new(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified))
        {
            gdb.Connect(new UnixDomainSocketEndPoint(path));
            Assert.False(process.HasExited);
            gdb.Send("$c#63"u8);
            byte[] answer = new byte[8];
            for (int got = 0; got < answer.Length;)
                got += await gdb.ReceiveAsync(answer.AsMemory(got), Token) is var n and > 0 ? n : throw new IOException("closed");
            Assert.Equal("+$W00#b7", System.Text.Encoding.ASCII.GetString(answer));
        }
        Assert.Equal(0, (await End(process)).Status);
        Assert.False(File.Exists(path));
    }

    [Fact]
    public async Task AGdbPortThatIsTakenIsStatus4()
    {
        using Socket taken = new(AddressFamily.InterNetwork, SocketType.Stream, ProtocolType.Tcp);
        taken.Bind(new System.Net.IPEndPoint(System.Net.IPAddress.Loopback, 0));
        taken.Listen(1);
        string port = ((System.Net.IPEndPoint)taken.LocalEndPoint!).Port.ToString();
        (int status, _, string error) = await Run(TinyKernel.PowerOff, "", "--gdb", port);
        Assert.Equal(4, status);
        Assert.Contains($"cannot listen on :{port}", error, StringComparison.Ordinal);
    }

    [Fact]
    public async Task VersionIsPrinted()
    {
        using Process process = Process.Start(new ProcessStartInfo(Path.Combine(AppContext.BaseDirectory, "aerostat"), ["--version"]) { RedirectStandardOutput = true, RedirectStandardError = true })!;
        (int status, string output, string error) = await End(process);
        Assert.Equal(0, status);
        Assert.StartsWith("aerostat ", output, StringComparison.Ordinal);
        Assert.Equal("", error);
    }
}
