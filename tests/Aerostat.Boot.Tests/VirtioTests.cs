using System.Globalization;
using Aerostat.Machine;
using Xunit;

namespace Aerostat.Boot.Tests;

/// <summary>Debian's own virtio drivers, unmodified, on our devices.</summary>
public sealed class VirtioTests
{
    private const string LoadModules = "while read -r m; do insmod $m || echo FAILED=$m; done < /etc/modules\n";

    private static async Task<BootOutcome> BootAsync(string accelerator, string[] modules, string script, params DeviceOptions[] devices)
    {
        BootOutcome outcome = await Guest.BootAsync(accelerator: accelerator, modules: modules, script: LoadModules + script, devices: devices, memory: 256UL << 20);
        Guest.AssertPoweredOff(outcome);
        Assert.DoesNotContain("FAILED=", outcome.Console, StringComparison.Ordinal);
        Assert.DoesNotContain("DEVICE ", outcome.Console, StringComparison.Ordinal);
        return outcome;
    }

    /// <summary>Processor, transport, packed, more of the command line.</summary>
    public static TheoryData<string, VirtioTransport, bool> Transports => new()
    {
        { "interpreter", VirtioTransport.Pci, false },
        { "interpreter", VirtioTransport.Mmio, true },
        { "translator", VirtioTransport.Pci, true },
        { "translator", VirtioTransport.Mmio, false },
    };

    [Theory, MemberData(nameof(Transports))]
    public async Task EntropySource(string accelerator, VirtioTransport transport, bool packed)
    {
        BootOutcome outcome = await BootAsync(
            accelerator,
            [transport == VirtioTransport.Pci ? "virtio_pci" : "virtio_mmio", "virtio-rng"],
            """
            echo RNG=$(cat /sys/class/misc/hw_random/rng_current)
            dd if=/dev/hwrng of=/tmp/one bs=4096 count=16 2>/dev/null
            dd if=/dev/hwrng of=/tmp/two bs=4096 count=16 2>/dev/null
            echo SIZE=$(stat -c %s /tmp/one)
            echo SAME=$(cmp -s /tmp/one /tmp/two && echo yes || echo no)
            echo VALUES=$(od -An -v -t u1 -w1 /tmp/one | sort -u | wc -l)
            grep virtio /proc/interrupts
            rmmod virtio-rng
            dmesg | tail -3
            """,
            new RngOptions { Transport = transport, Packed = packed });
        Assert.Equal("virtio_rng.0", outcome.Value("RNG"));
        Assert.Equal("65536", outcome.Value("SIZE"));
        Assert.Equal("no", outcome.Value("SAME"));
        // Every byte value occurs in 64 KiB of randomness, but for one chance in 10^108.
        Assert.Equal("256", outcome.Value("VALUES"));
        if (transport == VirtioTransport.Pci)
            Assert.Contains("PCI-MSI", outcome.Console, StringComparison.Ordinal);
        Assert.InRange(outcome.Statistics.Counters["rng0-bytes"], 2 * 65536, long.MaxValue);
    }

    /// <summary>Without MSI-X the driver takes the interrupt pin.</summary>
    [Fact]
    public async Task InterruptPin()
    {
        BootOutcome outcome = await Guest.BootAsync(
            append: "pci=nomsi", modules: ["virtio_pci", "virtio-rng"], accelerator: "translator", devices: [new RngOptions()],
            script: LoadModules + """
            dd if=/dev/hwrng of=/tmp/one bs=4096 count=4 2>/dev/null
            echo SIZE=$(stat -c %s /tmp/one)
            grep virtio /proc/interrupts
            """);
        Guest.AssertPoweredOff(outcome);
        Assert.Equal("16384", outcome.Value("SIZE"));
        Assert.Matches(@"IO-APIC +17-fasteoi +virtio0", outcome.Console);
    }

    /// <summary>A file system of the host's on a disk: read, written and checked by the guest, then checked by the host.</summary>
    [Theory]
    [InlineData("translator", VirtioTransport.Pci, false, 1, 1, "raw")]
    [InlineData("translator", VirtioTransport.Pci, true, 4, 4, "raw")]
    [InlineData("translator", VirtioTransport.Pci, false, 2, 2, "qcow2")]
    [InlineData("interpreter", VirtioTransport.Mmio, false, 1, 1, "raw")]
    public async Task FileSystemOnADisk(string accelerator, VirtioTransport transport, bool packed, int queues, int cpus, string format)
    {
        Assert.SkipUnless(format == "raw" || File.Exists("/usr/bin/qemu-img"), "no qemu-img: install qemu-utils");
        Assert.SkipUnless(File.Exists("/sbin/mkfs.ext4") || File.Exists("/usr/sbin/mkfs.ext4"), "no mkfs.ext4: install e2fsprogs");
        string folder = Directory.CreateTempSubdirectory("aerostat-disk").FullName;
        try
        {
            string image = Path.Combine(folder, "disk.img"), content = Path.Combine(folder, "content"), text = Path.Combine(folder, "text.bin");
            byte[] random = new byte[3_000_001];
            new Random(5).NextBytes(random);
            Directory.CreateDirectory(content);
            File.WriteAllBytes(Path.Combine(content, "from-host"), random);
            using (FileStream file = File.Create(image))
                file.SetLength(64 << 20);
            Tool("mkfs.ext4", "-q", "-F", "-d", content, image);
            File.WriteAllBytes(text, new byte[1 << 20]);
            string disk = image, under = Path.Combine(folder, "under.qcow2");
            if (format == "qcow2")
            {
                // What the host wrote is compressed, and under the image that the guest writes to.
                disk = Path.Combine(folder, "disk.qcow2");
                Tool("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", "compression_type=zstd", image, under);
                Storage.Qcow2Disk.Create(disk, 64 << 20, new Storage.Qcow2Options { BackingFile = "under.qcow2" }).Dispose();
            }
            BootOutcome outcome = await Guest.BootAsync(
                accelerator: accelerator, cpus: cpus, memory: 256UL << 20,
                modules: [transport == VirtioTransport.Pci ? "virtio_pci" : "virtio_mmio", "virtio_blk"],
                devices:
                [
                    new DiskOptions(disk) { Transport = transport, Packed = packed, Queues = queues, Serial = "aerostat-one" },
                    new DiskOptions(text) { Transport = transport, ReadOnly = true },
                ],
                script: LoadModules + """
                    echo SERIAL=$(cat /sys/block/vda/serial)
                    echo RO=$(cat /sys/block/vda/ro)$(cat /sys/block/vdb/ro)
                    echo QUEUES=$(ls /sys/block/vda/mq | wc -l)
                    mount -t ext4 /dev/vda /mnt || echo FAILED=mount
                    echo HOSTFILE=$(sha256sum < /mnt/from-host | cut -d' ' -f1)
                    for i in 1 2 3 4; do (seq 1 15000 | sed "s/^/$i /" > /mnt/file$i; sync) & done
                    wait
                    mkdir /mnt/many
                    for i in $(seq 1 100); do echo $i > /mnt/many/$i; done
                    rm /mnt/from-host
                    sync
                    echo 3 > /proc/sys/vm/drop_caches
                    for i in 1 2 3 4; do echo SUM$i=$(sha256sum < /mnt/file$i | cut -d' ' -f1); done
                    umount /mnt
                    echo DIRECT=$(dd if=/dev/vda bs=1M count=8 iflag=direct 2>/dev/null | wc -c)
                    echo x > /dev/vdb 2>/dev/null && echo FAILED=written
                    grep virtio /proc/interrupts
                    """);
            Guest.AssertPoweredOff(outcome);
            Assert.DoesNotContain("FAILED=", outcome.Console, StringComparison.Ordinal);
            Assert.DoesNotContain("DEVICE ", outcome.Console, StringComparison.Ordinal);
            Assert.DoesNotContain("I/O error", outcome.Console, StringComparison.Ordinal);
            Assert.Equal("aerostat-one", outcome.Value("SERIAL"));
            Assert.Equal("01", outcome.Value("RO"));
            Assert.Equal($"{queues}", outcome.Value("QUEUES"));
            Assert.Equal(Hash(random), outcome.Value("HOSTFILE"));
            Assert.Equal($"{8 << 20}", outcome.Value("DIRECT"));
            if (format == "qcow2")
            {
                Tool("qemu-img", "check", disk);
                Tool("qemu-img", "convert", "-O", "raw", disk, image);
            }
            Tool("e2fsck", "-f", "-n", image);
            for (int i = 1; i <= 4; i++)
            {
                string copy = Path.Combine(folder, "copy");
                Tool("debugfs", "-R", $"dump /file{i} {copy}", image);
                string expected = Hash(System.Text.Encoding.ASCII.GetBytes(string.Concat(Enumerable.Range(1, 15000).Select(n => string.Create(CultureInfo.InvariantCulture, $"{i} {n}\n")))));
                Assert.Equal(expected, Hash(File.ReadAllBytes(copy)));
                Assert.Equal(expected, outcome.Value($"SUM{i}"));
            }
            Assert.Equal(0, outcome.Statistics.Counters["disk0-errors"]);
            Assert.NotEqual(0, outcome.Statistics.Counters["disk0-flushes"]);
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
    }

    /// <summary>A console with a further port: what either side writes comes to the other whole.</summary>
    [Fact]
    public async Task ConsoleAndPort()
    {
        System.Text.StringBuilder hvc = new(), port = new();
        BootOutcome outcome = await Guest.BootAsync(
            accelerator: "translator", memory: 256UL << 20, modules: ["virtio_pci", "virtio_console"],
            devices: [new ConsoleOptions { Ports = 2, Output = (n, bytes) => (n == 0 ? hvc : port).Append(System.Text.Encoding.ASCII.GetString(bytes.Span)) }],
            script: LoadModules + """
                for i in 1 2 3 4 5 6 7 8 9 10; do [ -e /dev/hvc0 -a -e /dev/vport0p1 ] && break; sleep 1; done
                cat /sys/class/virtio-ports/*/name
                seq 1 3000 > /dev/hvc0
                echo READY
                exec 3<>/dev/vport0p1
                head -c 20000 <&3 | sha256sum | cut -c1-64 > /tmp/sum
                seq 1 2000 >&3
                exec 3>&-
                echo SUM=$(cat /tmp/sum)
                """,
            companion: async (machine, console) =>
            {
                if (!await console.WaitForAsync("READY"))
                    return;
                byte[] text = new byte[20000];
                new Random(8).NextBytes(text);
                for (int sent = 0; sent < text.Length && !machine.Exit.IsCompleted;)
                {
                    sent += machine.Consoles[0].Send(1, text.AsSpan(sent));
                    await Task.Delay(10);
                }
            });
        Guest.AssertPoweredOff(outcome);
        Assert.DoesNotContain("FAILED=", outcome.Console, StringComparison.Ordinal);
        Assert.DoesNotContain("DEVICE ", outcome.Console, StringComparison.Ordinal);
        byte[] expected = new byte[20000];
        new Random(8).NextBytes(expected);
        Assert.Equal(Hash(expected), outcome.Value("SUM"));
        Assert.Equal(string.Concat(Enumerable.Range(1, 3000).Select(i => string.Create(CultureInfo.InvariantCulture, $"{i}\r\n"))), hvc.ToString());
        Assert.Equal(string.Concat(Enumerable.Range(1, 2000).Select(i => string.Create(CultureInfo.InvariantCulture, $"{i}\n"))), port.ToString());
    }

    private sealed class Hints : Aerostat.Virtio.IFreePageHints
    {
        private readonly TaskCompletionSource<bool> _end = new(TaskCreationOptions.RunContinuationsAsynchronously);

        public ulong Bytes { get; private set; }

        public Task<bool> End => _end.Task;

        public void Hint(Aerostat.Memory.GuestAddress address, ulong length) => Bytes += length;

        public void Finished(bool complete) => _end.TrySetResult(complete);
    }

    /// <summary>A balloon: memory goes to the host and comes back, statistics agree with the guest's own, hints and reports name free pages.</summary>
    [Theory]
    [InlineData("translator", VirtioTransport.Pci, false)]
    [InlineData("interpreter", VirtioTransport.Pci, true)]
    public async Task Balloon(string accelerator, VirtioTransport transport, bool packed)
    {
        const ulong MiB = 1 << 20, Target = 96 * MiB;
        ulong discarded = 0, available = 0, hinted = 0;
        Aerostat.Devices.BalloonReport? full = null;
        BootOutcome outcome = await Guest.BootAsync(
            accelerator: accelerator, memory: 256 * MiB, modules: ["virtio_pci", "virtio_balloon"],
            devices: [new BalloonOptions { Transport = transport, Packed = packed, DeflateOnOom = false }],
            script: LoadModules + """
                stty -echo
                seq 1 20000 > /tmp/kept
                memory() { awk -v n=$1 '/^MemTotal/ { print "TOTAL" n "=" $2 } /^MemAvailable/ { print "AVAILABLE" n "=" $2 }' /proc/meminfo; }
                memory 1
                echo READY; read -r line
                memory 2
                echo NEXT; read -r line
                memory 3
                dd if=/dev/zero of=/tmp/much bs=1M count=64 2>/dev/null; rm /tmp/much
                echo FREED; read -r line
                echo KEPT=$(seq 1 20000 | cmp - /tmp/kept && echo yes)
                """,
            companion: async (machine, console) =>
            {
                Aerostat.Virtio.VirtioBalloon balloon = machine.VirtioBalloon!;
                if (!await console.WaitForAsync("READY"))
                    return;
                balloon.SetTarget(Target);
                await Until(machine, () => balloon.GetReport().ActualBytes == Target);
                balloon.RequestStatistics();
                await Until(machine, () => balloon.GetReport().Statistics is { Age: not null, Pending: null } s && s[Aerostat.Devices.GuestFigure.Total] < 200 * MiB);
                full = balloon.GetReport();
                available = full.Statistics[Aerostat.Devices.GuestFigure.Available] ?? 0;
                discarded = machine.GetMemory().Pages.DiscardedBytes;
                await machine.SendSerialAsync("\n"u8.ToArray());
                if (!await console.WaitForAsync("NEXT"))
                    return;
                balloon.SetTarget(0);
                await Until(machine, () => balloon.GetReport().ActualBytes == 0);
                Hints hints = new();
                Assert.True(balloon.TryStartHints(hints));
                await Until(machine, () => hints.End.IsCompleted);
                hinted = hints.Bytes;
                balloon.StopHints(release: true);
                await machine.SendSerialAsync("\n"u8.ToArray());
                if (!await console.WaitForAsync("FREED"))
                    return;
                await Until(machine, () => balloon.GetReport().ReportedBytes >= 16 * MiB);
                await machine.SendSerialAsync("\n"u8.ToArray());
            });
        Guest.AssertPoweredOff(outcome);
        Assert.DoesNotContain("FAILED=", outcome.Console, StringComparison.Ordinal);
        Assert.DoesNotContain("DEVICE ", outcome.Console, StringComparison.Ordinal);
        Assert.NotNull(full);
        Assert.Equal(Aerostat.Devices.BalloonReason.Reached, full.Reason);
        Assert.Equal(Target, full.GuestActualBytes);
        // The guest leaves what it gave alone, so all of it is the host's, within a hundredth; free pages that it reported come on top.
        Assert.InRange(discarded, Target - (Target / 100), 256 * MiB);
        ulong total1 = Kibibytes(outcome, "TOTAL1"), total2 = Kibibytes(outcome, "TOTAL2"), total3 = Kibibytes(outcome, "TOTAL3");
        Assert.Equal(Target, total1 - total2);
        Assert.Equal(total1, total3);
        Assert.InRange(available, Kibibytes(outcome, "AVAILABLE2") - (8 * MiB), Kibibytes(outcome, "AVAILABLE2") + (8 * MiB));
        Assert.InRange(hinted, 32 * MiB, 256 * MiB);
        Assert.Equal("yes", outcome.Value("KEPT"));
    }

    private static ulong Kibibytes(BootOutcome outcome, string name) => ulong.Parse(outcome.Value(name), CultureInfo.InvariantCulture) << 10;

    private static async Task Until(VirtualMachine machine, Func<bool> condition)
    {
        // The machine's own time limit ends this.
        while (!condition() && !machine.Exit.IsCompleted)
            await Task.Delay(20);
    }

    private static string Hash(byte[] bytes) => Convert.ToHexStringLower(System.Security.Cryptography.SHA256.HashData(bytes));

    private static void Tool(string name, params string[] arguments)
    {
        string path = ((string[])["/usr/sbin", "/sbin", "/usr/bin"]).Select(d => Path.Combine(d, name)).First(File.Exists);
        using System.Diagnostics.Process process = System.Diagnostics.Process.Start(new System.Diagnostics.ProcessStartInfo(path, arguments)
        {
            RedirectStandardOutput = true,
            RedirectStandardError = true,
        })!;
        Task<string> error = process.StandardError.ReadToEndAsync();
        string output = process.StandardOutput.ReadToEnd();
        process.WaitForExit();
        Assert.True(process.ExitCode == 0, $"{name} {process.ExitCode}: {output}\n{error.Result}");
    }
}
