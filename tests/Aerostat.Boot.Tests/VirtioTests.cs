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
}
