using System.Diagnostics;
using System.Text.Json;
using Xunit;

namespace Aerostat.Cli.Tests;

/// <summary>backup, restore and verify as processes: what they say, and what is left when one of them is killed.</summary>
public sealed class BackupTests : MachineProcesses
{
    private const int Length = 24 << 20;

    private string Disk => Path.Combine(Folder, "disk.img");

    private string Store => Path.Combine(Folder, "store");

    [Fact]
    public async Task ADiskIsBackedUpVerifiedAndRestored()
    {
        byte[] contents = Fill();
        await Boot("--name", "web", "--disk", Disk);
        (int status, _, string error) = await Run("backup", "web", "--to", Store);
        Assert.Equal(1, status);
        OneLine("aerostat backup: only guests with --personality hyperv or vmware can be asked to freeze their file systems; --crash-consistent", error);
        (status, _, error) = await Run("backup", "web");
        Assert.Equal(2, status);
        OneLine("aerostat backup: where to? give --to DIR", error);
        (status, string output, error) = await Run("backup", "web", "--to", Store, "--crash-consistent");
        Assert.Equal((0, ""), (status, error));
        Assert.Contains("crash-consistent: only guests with", output, StringComparison.Ordinal);
        (status, output, _) = await Run("backup", "web", "--to", Store, "--crash-consistent", "--incremental", "--json");
        Assert.Equal(0, status);
        string last;
        using (JsonDocument json = JsonDocument.Parse(output))
        {
            last = json.RootElement.GetProperty("name").GetString()!;
            Assert.Equal(("crash", 0), (json.RootElement.GetProperty("consistency").GetString(), json.RootElement.GetProperty("readBytes").GetInt64()));
        }
        (status, output, error) = await Run("verify", Store);
        Assert.Equal((0, ""), (status, error));
        Assert.Contains("2 backups", output, StringComparison.Ordinal);
        string copy = Path.Combine(Folder, "copy.img");
        Assert.Equal(0, (await Run("restore", Store, "--to", copy)).Status);
        Assert.Equal(contents, File.ReadAllBytes(copy));
        (status, _, error) = await Run("restore", Store, "--to", copy);
        Assert.Equal(2, status);
        OneLine($"aerostat restore: {copy} exists; give --force to replace it", error);
        // The chain's first link is damaged: the last backup is refused, and names it.
        string first = Directory.EnumerateDirectories(Store).Select(d => Path.GetFileName(d)!).Order(StringComparer.Ordinal).First();
        Assert.NotEqual(first, last);
        File.Delete(Path.Combine(Store, first, "disk0.index"));
        (status, _, error) = await Run("restore", Store, "--to", copy, "--force");
        Assert.Equal(1, status);
        OneLine($"aerostat restore: the index of disk0 in backup {first} is missing", error);
        Assert.Equal(contents, File.ReadAllBytes(copy));
        (status, output, _) = await Run("verify", Store, "--json");
        Assert.Equal(1, status);
        using (JsonDocument json = JsonDocument.Parse(output))
            Assert.All(json.RootElement.GetProperty("backups").EnumerateArray(), b => Assert.False(b.GetProperty("good").GetBoolean()));
        (status, _, error) = await Run("verify", Path.Combine(Folder, "nothing"));
        Assert.Equal(2, status);
        OneLine("aerostat verify: ", error);
    }

    // The strongest compression takes seconds for what is killed within the first of them.
    [Fact]
    public async Task WhoIsKilledInTheMiddleLosesOnlyTheAttempt()
    {
        byte[] contents = Fill();
        Process machine = await Boot("--name", "web", "--disk", Disk);
        Assert.Equal(0, (await Run("backup", "web", "--to", Store, "--crash-consistent", "--compress", "none")).Status);
        string good = Assert.Single(Directory.EnumerateDirectories(Store));

        // The client, by Ctrl-C: the machine goes on, and nothing is left.
        using (Process client = Start("backup", "web", "--to", Store, "--crash-consistent", "--compress", "19"))
        {
            await WaitForPartAsync();
            using (Process signal = Process.Start("kill", ["-INT", $"{client.Id}"]))
                await signal.WaitForExitAsync(Token);
            (int status, _, string error) = await End(client);
            Assert.Equal(130, status);
            OneLine("aerostat backup: given up", error);
        }
        await Until(() => Partial.Length == 0);

        // The client, without a word.
        using (Process client = Start("backup", "web", "--to", Store, "--crash-consistent", "--compress", "19"))
        {
            await WaitForPartAsync();
            client.Kill();
            await client.WaitForExitAsync(Token);
        }
        await Until(() => Partial.Length == 0);

        // The machine itself.
        using (Process client = Start("backup", "web", "--to", Store, "--crash-consistent", "--compress", "19"))
        {
            await WaitForPartAsync();
            machine.Kill();
            (int status, _, string error) = await End(client);
            Assert.Equal(4, status);
            OneLine("aerostat backup: ", error);
        }
        Assert.Single(Partial);
        Assert.Equal(0, (await Run("verify", Store)).Status);
        await Boot("--name", "web", "--disk", Disk);
        (int last, string output, _) = await Run("backup", "web", "--to", Store, "--crash-consistent", "--incremental");
        Assert.Equal(0, last);
        Assert.Contains("ended without writing down what had changed", output, StringComparison.Ordinal);
        (last, output, _) = await Run("backup", "web", "--to", Store, "--crash-consistent");
        Assert.Equal(0, last);
        Assert.Empty(Partial);
        Assert.Equal(0, (await Run("verify", Store)).Status);
        foreach (string name in Directory.EnumerateDirectories(Store).Select(d => Path.GetFileName(d)!))
        {
            string copy = Path.Combine(Folder, "copy.img");
            Assert.Equal(0, (await Run("restore", Store, "--backup", name, "--to", copy, "--force")).Status);
            Assert.Equal(contents, File.ReadAllBytes(copy));
        }
        Assert.True(Directory.Exists(good));
    }

    // Wherever it is: before the moment, in the copy, while files are forced to the disk or get their names.
    [Fact]
    public async Task AMonitorThatIsKilledAtAnyPointLosesNothing()
    {
        byte[] contents = Fill();
        int seed = int.TryParse(Environment.GetEnvironmentVariable("AEROSTAT_SEED"), out int given) ? given : Random.Shared.Next();
        TestContext.Current.TestOutputHelper?.WriteLine($"AEROSTAT_SEED={seed}");
        Random random = new(seed);
        string copy = Path.Combine(Folder, "copy.img");
        for (int round = 0; round < 5; round++)
        {
            Process machine = await Boot("--name", "web", "--disk", Disk);
            using Process client = Start("backup", "web", "--to", Store, "--crash-consistent", "--incremental", "--compress", random.Next(2) == 0 ? "none" : "9");
            await Task.Delay(random.Next(700), Token);
            machine.Kill();
            await machine.WaitForExitAsync(Token);
            await End(client);
        }
        await Boot("--name", "web", "--disk", Disk);
        Assert.Equal(0, (await Run("backup", "web", "--to", Store, "--crash-consistent", "--incremental")).Status);
        Assert.Empty(Partial);
        (int status, string output, string error) = await Run("verify", Store);
        Assert.True(status == 0, $"seed {seed}: {output}{error}");
        foreach (string name in Directory.EnumerateDirectories(Store).Select(d => Path.GetFileName(d)!))
        {
            Assert.Equal(0, (await Run("restore", Store, "--backup", name, "--to", copy, "--force")).Status);
            Assert.Equal(contents, File.ReadAllBytes(copy));
        }
    }

    /// <summary>A monitor that was killed while its guest was frozen has left a mark; the next one says so, and takes it away.</summary>
    [Fact]
    public async Task AMarkOfAFrozenGuestIsHonoured()
    {
        Fill();
        string mark = SocketOf("web") + ".frozen";
        Directory.CreateDirectory(Path.GetDirectoryName(mark)!);
        File.WriteAllText(mark, """{"pid":4242,"since":"2026-11-22T01:02:03+00:00"}""");
        await Boot("--name", "web", "--disk", Disk);
        Assert.False(File.Exists(mark));
        (int status, string output, _) = await Run("logs", "web");
        Assert.Equal(0, status);
        Assert.Contains("process 4242, which ran this machine before, ended while its guest's file systems were frozen", output, StringComparison.Ordinal);
    }

    private string[] Partial => Directory.GetDirectories(Store, ".partial-*");

    private Task WaitForPartAsync() => Until(() => Partial.SelectMany(p => Directory.GetFiles(p, "*.pack")).Any(f => new FileInfo(f).Length > 0));

    private static async Task Until(Func<bool> condition)
    {
        Stopwatch waited = Stopwatch.StartNew();
        while (true)
        {
            try
            {
                if (condition())
                    return;
            }
            catch (IOException)
            {
                // It was removed while it was looked at.
            }
            Assert.True(waited.Elapsed < s_limit, "it does not come");
            await Task.Delay(5, Token);
        }
    }

    // Text-like, so that strong compression has to think.
    private byte[] Fill()
    {
        Random random = new(1);
        byte[] bytes = new byte[Length];
        for (int i = 0; i < Length; i++)
            bytes[i] = i >= 20 << 20 ? (byte)0 : i > 1000 && random.Next(4) > 0 ? bytes[i - random.Next(1, 1000)] : (byte)('a' + random.Next(26));
        File.WriteAllBytes(Disk, bytes);
        return bytes;
    }
}
