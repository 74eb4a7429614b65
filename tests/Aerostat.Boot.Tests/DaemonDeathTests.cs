using System.Globalization;
using Aerostat.Control;
using Aerostat.Devices;
using Aerostat.Machine;
using Xunit;

namespace Aerostat.Boot.Tests;

/// <summary>Debian's hv_vss_daemon is killed before, during and after a freeze, and the guest ends in the middle of one: nothing stays frozen, and nobody waits for ever.</summary>
public sealed class DaemonDeathTests
{
    private const string Script = """
        while read -r m; do insmod $m || echo FAILED=$m; done < /etc/modules
        mkdir -p /mnt /run
        mount -t ext4 /dev/vda /mnt || echo FAILED=mount
        while [ ! -e /dev/vmbus/hv_vss ]; do sleep 0.1; done
        # As systemd does: a daemon that ends is started again.
        start() { touch /run/wanted; (while [ -e /run/wanted ]; do hv_vss_daemon -n; sleep 0.2; done) & }
        start
        until dmesg | grep -q 'VSS: userspace daemon'; do sleep 0.1; done
        (n=0; while :; do n=$((n + 1)); dd if=/dev/urandom of=/mnt/noise bs=64k count=20 2> /dev/null; echo $n > /mnt/count; sync /mnt/count; echo WROTE=$n; sleep 0.05; done) &
        while read -r line < /dev/ttyS0; do
            case $line in
                start) start ;;
                kill) rm -f /run/wanted; kill -9 $(pidof hv_vss_daemon) ;;
                end) break ;;
            esac
            echo DID=$line
        done
        """;

    [Fact]
    public async Task WhenItIsKilledNothingStaysFrozen()
    {
        CancellationToken token = TestContext.Current.CancellationToken;
        DirectoryInfo folder = Directory.CreateTempSubdirectory("aerostat-daemon-");
        try
        {
            string disk = Path.Combine(folder.FullName, "disk.img");
            await FrozenGuest.MakeExt4Async(disk, 32 << 20);
            Task<FreezeResult>? last = null;
            BootOutcome outcome = await Guest.BootAsync(
                accelerator: "translator", personality: "hyperv", modules: FrozenGuest.Modules, devices: [new DiskOptions(disk)], files: FrozenGuest.Daemons(), script: Script,
                companion: async (machine, console) =>
                {
                    ControlEndpoint endpoint = new(Path.Combine(folder.FullName, "m.sock"));
                    string marked = FreezeMark.PathOf(endpoint);
                    using FreezeMark mark = new(endpoint, machine, isRestored: false);
                    Assert.True(await console.WaitForAsync("WROTE=3\r", token), console.Text);
                    // Before.
                    await TellAsync("kill");
                    FreezeException e = await Assert.ThrowsAsync<FreezeException>(() => machine.FreezeAsync(new FreezeOptions(), () => Task.CompletedTask));
                    Assert.Contains("hyperv-daemons", e.Message, StringComparison.Ordinal);
                    await RecoverAsync();

                    // While it freezes, or soon after: the guest's own time decides.
                    IVolumeFreezer volumes = machine.Freezer!;
                    void Kill(FreezePhase phase)
                    {
                        if (phase == FreezePhase.Freezing)
                            _ = machine.SendSerialAsync("kill\n"u8.ToArray(), token);
                    }
                    volumes.PhaseChanged += Kill;
                    int killed = Count(console, "DID=kill\r");
                    await Assert.ThrowsAsync<FreezeException>(() => machine.FreezeAsync(new FreezeOptions(), () => UntilAsync(() => Count(console, "DID=kill\r") > killed)));
                    volumes.PhaseChanged -= Kill;
                    await RecoverAsync();

                    // While all is frozen: nobody can thaw it but another daemon.
                    await UntilAsync(() => !File.Exists(marked));
                    e = await Assert.ThrowsAsync<FreezeException>(() => machine.FreezeAsync(new FreezeOptions(), () => TellAsync("kill")));
                    Assert.Contains("does not confirm", e.Message, StringComparison.Ordinal);
                    Assert.Equal(FreezePhase.Failed, volumes.Phase);
                    Assert.True(File.Exists(marked));
                    await RecoverAsync();
                    await UntilAsync(() => !File.Exists(marked));

                    // And the guest itself ends.
                    last = machine.FreezeAsync(new FreezeOptions(), async () =>
                    {
                        await machine.SendSerialAsync("end\n"u8.ToArray(), token);
                        await machine.Exit;
                    });
                    await machine.Exit;

                    async Task TellAsync(string what)
                    {
                        int said = Count(console, $"DID={what}\r");
                        await machine.SendSerialAsync(System.Text.Encoding.ASCII.GetBytes(what + "\n"), token);
                        await UntilAsync(() => Count(console, $"DID={what}\r") > said);
                    }

                    // With a daemon again, writers go on, and the next freeze is one.
                    async Task RecoverAsync()
                    {
                        long written = Written(console);
                        await TellAsync("start");
                        await UntilAsync(() => Written(console) > written + 3);
                        await UntilAsync(() => machine.Freezer!.Phase == FreezePhase.Idle);
                        for (int attempt = 0; ; attempt++)
                        {
                            try
                            {
                                Assert.False((await machine.FreezeAsync(new FreezeOptions(), () => Task.CompletedTask)).ByWatchdog);
                                return;
                            }
                            catch (FreezeException) when (attempt < 100)
                            {
                                // The daemon has not registered yet.
                                await Task.Delay(100, token);
                            }
                        }
                    }

                    async Task UntilAsync(Func<bool> condition)
                    {
                        while (!condition())
                        {
                            Assert.False(machine.Exit.IsCompleted, console.Text);
                            await Task.Delay(20, token);
                        }
                    }
                });
            Assert.True(outcome.Exit.Kind == MachineExitKind.PoweredOff, $"{outcome.Exit.Kind}: {outcome.Exit.Report}\n{outcome.Tail}");
            Assert.DoesNotContain("FAILED=", outcome.Console, StringComparison.Ordinal);
            await Assert.ThrowsAsync<FreezeException>(() => last!);
        }
        finally
        {
            folder.Delete(recursive: true);
        }
    }

    private static int Count(SerialTranscript console, string text) => console.Text.Split(text).Length - 1;

    private static long Written(SerialTranscript console) => long.Parse(
        console.Text.Split('\n').Where(l => l.EndsWith('\r')).Select(l => l.Trim()).Last(l => l.StartsWith("WROTE=", StringComparison.Ordinal))[6..], CultureInfo.InvariantCulture);
}
