using Aerostat.Machine;
using Aerostat.Snapshots;
using Xunit;

namespace Aerostat.Boot.Tests;

/// <summary>
/// Stock kernels under memory stress are saved with free page hints: files come and go in a tmpfs, each with its checksum, and now and then most of the
/// memory is taken and let go, so that the kernel takes back what its balloon driver has named. The original and every copy find all checksums right.
/// </summary>
public sealed class HintSnapshotTests
{
    private static readonly TimeSpan s_limit = TimeSpan.FromMinutes(5);

    private const string Work = """
        while read -r module; do insmod $module || echo FAILED=$module; done < /etc/modules
        mkdir /data
        mount -t tmpfs -o size=85% data /data
        churn() {
            i=0
            while [ $i -lt ROUNDS ]; do
                i=$((i+1)); f=/data/$1.$((i%4))
                check $f $i
                rm -f $f $f.sum
                dd if=/dev/urandom of=$f bs=UNIT count=$((8 + i % 5 * 16)) 2>/dev/null
                sha256sum < $f > $f.sum
                echo "ROUND $1 $i"
            done
        }
        check() {
            [ -f $1.sum ] || return 0
            got=$(sha256sum < $1)
            [ "$got" = "$(cat $1.sum)" ] || echo "WRONG $1 $2"
        }
        hog() {
            while [ ! -f /data/over ]; do
                dd if=/dev/zero of=/data/hog bs=1M count=140 2>/dev/null
                rm /data/hog
                sleep 0.2
            done
        }
        hog &
        churn a &
        first=$!
        churn b
        wait $first
        touch /data/over
        wait
        for f in /data/a.? /data/b.?; do check $f end; done
        dd if=/data/b.1 of=/dev/vda conv=fsync 2>/dev/null
        echo 3 > /proc/sys/vm/drop_caches
        dd if=/dev/vda bs=512 count=$(($(stat -c %s /data/b.1) / 512)) 2>/dev/null | cmp - /data/b.1 && echo DISK=right
        while [ ! -f /over ] && read -r line < /dev/console; do
            echo "BALLOON=$(awk '/^MemTotal/ { print $2 }' /proc/meminfo)"
            touch /over
        done

        """;

    /// <summary>
    /// Processor, kernel, what it does to pages that change hands, and whether it writes to those that it names: before it does, or, under pressure, when it takes them
    /// back for programs. Then the writes undo the hints.
    /// </summary>
    public static TheoryData<string, string, string, bool> Kernels => new()
    {
        { "translator", "cloud", "", true },
        { "translator", "cloud", "init_on_alloc=0", false },
        { "translator", "cloud", "init_on_free=1 init_on_alloc=0", true },
        { "translator", "generic", "page_poison=1 init_on_alloc=0", true },
        { "interpreter", "cloud", "init_on_alloc=0", false },
    };

    [Theory]
    [MemberData(nameof(Kernels))]
    public async Task MemoryUnderStressIsWhole(string accelerator, string kernel, string append, bool written)
    {
        string image = Guest.Image(kernel), busybox = Guest.Busybox();
        const int Rounds = 9;
        string unit = accelerator == "interpreter" ? "16k" : "64k";
        const ulong Target = 48UL << 20;
        DirectoryInfo folder = Directory.CreateTempSubdirectory("aerostat-hints-boot-");
        try
        {
            string disk = Path.Combine(folder.FullName, "disk.img");
            File.WriteAllBytes(disk, new byte[8 << 20]);
            SerialTranscript console = new();
            MachineOptions options = new()
            {
                MemoryBytes = 256UL << 20,
                Accelerator = accelerator,
                NoReboot = true,
                Serial = console.Append,
                Devices = [new BalloonOptions { DeflateOnOom = true, Reporting = false }, new DiskOptions(disk)],
                DeviceLog = new TranscriptLog(console),
                Boot = new KernelBootOptions(image)
                {
                    InitrdBytes = Guest.Initramfs(kernel, busybox, Work.Replace("ROUNDS", $"{Rounds}", StringComparison.Ordinal).Replace("UNIT", unit, StringComparison.Ordinal), ["virtio_pci", "virtio_balloon", "virtio_blk"]),
                    CommandLine = $"console=ttyS0 panic=-1 {append}",
                },
            };
            string[] places = [Path.Combine(folder.FullName, "full"), Path.Combine(folder.FullName, "changes"), Path.Combine(folder.FullName, "last")];
            await using (VirtualMachine original = Hosting.Machines.Create(options))
            {
                using MachineSnapshots snapshots = new(original);
                await original.StartAsync();
                ulong named = 0, skipped = 0;
                foreach ((int i, string place) in places.Index())
                {
                    await ReachAsync(original, console, $"ROUND b {2 * (i + 1)}");
                    SnapshotResult result = await snapshots.SaveAsync(
                        place, new SnapshotOptions { Durable = false, Differential = i == 1, HintLimit = TimeSpan.FromSeconds(60) }, TestContext.Current.CancellationToken);
                    Assert.True(result.Hints.Outcome == HintOutcome.Complete, $"{result.Hints}");
                    SnapshotMemory memory = Snapshot.Open(place).Manifest.Memory;
                    TestContext.Current.TestOutputHelper?.WriteLine($"{result.Hints} {result.Rounds} rounds, {result.Paused.TotalMilliseconds:0} ms, {memory.DataPages} data, {memory.ZeroPages} zero, {memory.HintedPages} hinted, {memory.UnchangedPages} unchanged");
                    named += result.Hints.NamedBytes;
                    skipped += memory.HintedPages;
                }
                // At times nothing is free.
                Assert.NotEqual(0UL, named);
                Assert.True(written || skipped > 0, "no page was left out because of a hint");
                await ReachAsync(original, console, "DISK=");
                await FinishAsync(original, console);
            }
            Check(console.Text, kernel);
            Assert.All((string[])["a", "b"], name => Assert.Contains($"ROUND {name} {Rounds}\r", console.Text, StringComparison.Ordinal));

            // What the second builds on is read with it.
            foreach (string place in places[1..])
            {
                SerialTranscript again = new();
                Snapshot snapshot = Snapshot.Open(place);
                snapshot.Verify();
                await using VirtualMachine copy = Hosting.Machines.Restore(snapshot, adjust: o => o with { NoReboot = true, Serial = again.Append, DeviceLog = new TranscriptLog(again) }, anyDisks: true);
                using MachineSnapshots snapshots = new(copy);
                await copy.StartAsync();
                if (place == places[^1])
                {
                    // Driven further: the guest names its pages to the next snapshot, gives memory, and has it again.
                    string next = Path.Combine(folder.FullName, "next");
                    SnapshotResult result = await snapshots.SaveAsync(
                        next, new SnapshotOptions { Durable = false, HintLimit = TimeSpan.FromSeconds(60) }, TestContext.Current.CancellationToken);
                    Assert.True(result.Hints.Outcome == HintOutcome.Complete, $"{result.Hints}");
                    Snapshot.Open(next).Verify();
                    await ReachAsync(copy, again, "DISK=");
                    copy.VirtioBalloon!.SetTarget(Target);
                    using CancellationTokenSource limit = new(s_limit);
                    while (copy.VirtioBalloon.GetReport().ActualBytes < Target)
                        await Task.Delay(20, limit.Token);
                    copy.VirtioBalloon.SetTarget(0);
                    while (copy.VirtioBalloon.GetReport().ActualBytes > 0)
                        await Task.Delay(20, limit.Token);
                }
                else
                    await ReachAsync(copy, again, "DISK=");
                await FinishAsync(copy, again);
                Check(again.Text, kernel);
            }
        }
        finally
        {
            folder.Delete(recursive: true);
        }
    }

    private static async Task FinishAsync(VirtualMachine machine, SerialTranscript console)
    {
        await machine.SendSerialAsync("x\n"u8.ToArray(), TestContext.Current.CancellationToken);
        MachineExit exit = await machine.WaitForExitAsync(s_limit);
        Assert.True(exit.Kind == MachineExitKind.PoweredOff, $"{exit.Kind}: {exit.Report}\n{console.Text}");
    }

    private static void Check(string text, string kernel)
    {
        foreach (string trouble in (string[])["WRONG", "FAILED=", "DEVICE ", "Kernel panic", "BUG:", "WARNING:", "Oops", "soft lockup", "pagealloc", "corruption", "Call Trace", "Out of memory"])
            Assert.False(text.Contains(trouble, StringComparison.Ordinal), $"{kernel}: {trouble}\n{text}");
        // Not the rounds: the guest goes on while it is saved, and a copy may have them all behind it.
        Assert.Contains("DISK=right", text, StringComparison.Ordinal);
        Assert.Contains("BALLOON=", text, StringComparison.Ordinal);
        Assert.Contains(Guest.Done, text, StringComparison.Ordinal);
    }

    private static Task ReachAsync(VirtualMachine machine, SerialTranscript console, string text) => Guest.ReachAsync(machine, console, text, s_limit);
}
