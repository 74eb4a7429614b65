using System.Globalization;
using Xunit;

namespace Aerostat.Boot.Tests;

/// <summary>What a stock kernel makes of the Hyper-V personality.</summary>
public sealed class HyperVPersonalityTests
{
    [Fact]
    public async Task AStockKernelUsesWhatItIsOffered()
    {
        BootOutcome outcome = await Guest.BootAsync(accelerator: "translator", cpus: 4, personality: "hyperv", script: """
            before=$(date +%s)
            sleep 2
            echo SECONDS=$(($(date +%s) - before))
            for i in 1 2 3 4; do (seq 1 3000 | sort -rn | sort -n | sha256sum > /tmp/$i) & done
            wait
            echo SAME=$(cat /tmp/1 /tmp/2 /tmp/3 /tmp/4 | uniq | wc -l)
            echo TIMER=$(cat /sys/devices/system/clockevents/clockevent0/current_device)
            echo TIMERS=$(awk '/^HVS:/ { print ($2 > 0) }' /proc/interrupts)
            """);
        Guest.AssertPoweredOff(outcome);
        Assert.Equal(("hyperv_clocksource_tsc_page", "4", "1"), (outcome.Value("CLOCK"), outcome.Value("CPUS"), outcome.Value("SAME")));
        Assert.InRange(int.Parse(outcome.Value("SECONDS"), CultureInfo.InvariantCulture), 1, 30);
        Assert.Equal(("Hyper-V clockevent", "1"), (outcome.Value("TIMER"), outcome.Value("TIMERS")));
        foreach (string said in (string[])["Hypervisor detected: Microsoft Hyper-V", "Hyper-V: privilege flags", "Using enlightened APIC", "Using IPI hypercalls", "Using hypercall for remote TLB flush"])
            Assert.Contains(said, outcome.Console, StringComparison.Ordinal);
    }

    [Fact]
    public async Task APanicIsReported()
    {
        string? report = null;
        BootOutcome outcome = await Guest.BootAsync(accelerator: "translator", personality: "hyperv", script: """
            echo c > /proc/sysrq-trigger
            """, companion: async (machine, _) =>
        {
            await machine.Exit;
            report = machine.GuestCrash;
        });
        Assert.True(report?.Contains("sysrq triggered crash", StringComparison.Ordinal) == true, $"{report}\n{outcome.Tail}");
    }
}
