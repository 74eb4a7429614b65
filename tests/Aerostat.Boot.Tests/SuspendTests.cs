using Xunit;

namespace Aerostat.Boot.Tests;

/// <summary>A stock kernel that suspends to RAM and comes back.</summary>
public sealed class SuspendTests
{
    /// <summary>The clock's alarm wakes it; processes, memory, further processors and interrupts are there again.</summary>
    [Theory]
    [InlineData("interpreter", 1)]
    [InlineData("translator", 1)]
    [InlineData("interpreter", 4)]
    [InlineData("translator", 4)]
    public async Task TheAlarmWakesAStockKernel(string accelerator, int cpus)
    {
        BootOutcome outcome = await Guest.BootAsync(accelerator: accelerator, cpus: cpus, script: """
            echo OFFERED=$(cat /sys/power/mem_sleep)
            seq 1 5000 > /tmp/before
            for i in 1 2; do
                before=$(date +%s)
                echo +3 > /sys/class/rtc/rtc0/wakealarm
                echo mem > /sys/power/state && echo SLEPT$i=1
                after=$(date +%s)
                echo SECONDS$i=$((after - before))
            done
            echo ONLINE=$(grep -c ^processor /proc/cpuinfo)
            seq 1 5000 | cmp - /tmp/before && echo KEPT=1
            sleep 1
            echo SUCCESSES=$(cat /sys/power/suspend_stats/success)
            """);
        Guest.AssertPoweredOff(outcome);
        Assert.Contains("[deep]", outcome.Value("OFFERED"), StringComparison.Ordinal);
        Assert.Equal(("1", "1", "1"), (outcome.Value("SLEPT1"), outcome.Value("SLEPT2"), outcome.Value("KEPT")));
        Assert.Equal(("2", $"{cpus}"), (outcome.Value("SUCCESSES"), outcome.Value("ONLINE")));
        // The guest's clock says that it slept, as the alarm was set.
        Assert.All((string[])["SECONDS1", "SECONDS2"], name => Assert.InRange(int.Parse(outcome.Value(name), System.Globalization.CultureInfo.InvariantCulture), 2, 60));
    }
}
