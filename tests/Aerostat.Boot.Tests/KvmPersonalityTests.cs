using System.Globalization;
using Xunit;

namespace Aerostat.Boot.Tests;

/// <summary>What a stock kernel makes of the KVM personality, which is the default.</summary>
public sealed class KvmPersonalityTests
{
    [Theory]
    [InlineData("interpreter", 1)]
    [InlineData("translator", 1)]
    [InlineData("interpreter", 4)]
    [InlineData("translator", 4)]
    public async Task AStockKernelUsesWhatItIsOffered(string accelerator, int cpus)
    {
        BootOutcome outcome = await Guest.BootAsync(accelerator: accelerator, cpus: cpus, append: "clocksource=kvm-clock", script: """
            echo OFFERED=$(cat /sys/devices/system/clocksource/clocksource0/available_clocksource)
            before=$(date +%s)
            sleep 2
            echo SECONDS=$(($(date +%s) - before))
            for i in 1 2 3 4; do (seq 1 3000 | sort -rn | sort -n | sha256sum > /tmp/$i) & done
            wait
            echo SAME=$(cat /tmp/1 /tmp/2 /tmp/3 /tmp/4 | uniq | wc -l)
            echo BACKWARDS=$(dmesg | grep -c -i 'unstable\|backwards\|skew')
            """);
        Guest.AssertPoweredOff(outcome);
        Assert.Equal(("kvm-clock", $"{cpus}", "1", "0"), (outcome.Value("CLOCK"), outcome.Value("CPUS"), outcome.Value("SAME"), outcome.Value("BACKWARDS")));
        Assert.InRange(int.Parse(outcome.Value("SECONDS"), CultureInfo.InvariantCulture), 1, 30);
        foreach (string said in (string[])["Hypervisor detected: KVM", "kvm-clock: Using msrs 4b564d01 and 4b564d00", .. cpus > 1 ? ["setup PV IPIs"] : Array.Empty<string>()])
            Assert.Contains(said, outcome.Console, StringComparison.Ordinal);
    }
}
