using System.Globalization;
using System.Text;
using Aerostat.Cpu;
using Aerostat.Machine;
using Xunit;

// Guests with several processors and drivers that give up after seconds: more at a time would be a test of the host.
[assembly: CollectionBehavior(MaxParallelThreads = 2)]

namespace Aerostat.Boot.Tests;

/// <summary>Boots of unmodified Debian kernels, each to its init and to power-off, over the shapes a machine can have.</summary>
public sealed class StockKernelTests
{
    [Theory]
    [InlineData("interpreter")]
    [InlineData("translator")]
    public async Task CloudKernelWithOneProcessor(string accelerator)
    {
        BootOutcome outcome = await Guest.BootAsync(accelerator: accelerator);
        Guest.AssertPoweredOff(outcome);
        Assert.Equal("1", outcome.Value("CPUS"));
        Assert.Equal("tsc", outcome.Value("CLOCK"));
        Assert.Contains("cloud-amd64", outcome.Value("RELEASE"), StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("interpreter")]
    [InlineData("translator")]
    public async Task CloudKernelWithFourProcessors(string accelerator)
    {
        BootOutcome outcome = await Guest.BootAsync(accelerator: accelerator, cpus: 4, script: """
            for i in 1 2 3 4 5 6 7 8; do (seq 1 3000 | sort -rn | sort -n | sha256sum > /tmp/$i) & done
            wait
            echo SAME=$(cat /tmp/1 /tmp/2 /tmp/3 /tmp/4 /tmp/5 /tmp/6 /tmp/7 /tmp/8 | uniq | wc -l)
            """);
        Guest.AssertPoweredOff(outcome);
        Assert.Equal("4", outcome.Value("CPUS"));
        Assert.Equal("1", outcome.Value("SAME"));
    }

    [Theory]
    [InlineData("interpreter")]
    [InlineData("translator")]
    public async Task GenericKernel(string accelerator)
    {
        BootOutcome outcome = await Guest.BootAsync(kernel: "generic", accelerator: accelerator);
        Guest.AssertPoweredOff(outcome);
        Assert.DoesNotContain("cloud", outcome.Value("RELEASE"), StringComparison.Ordinal);
    }

    /// <summary>AVX as the kernel itself uses it, XSAVES and all: RAID 6 and XOR routines, ciphers, and user processes that keep their registers meanwhile.</summary>
    [Theory]
    [InlineData("interpreter")]
    [InlineData("translator")]
    public async Task AvxInTheKernel(string accelerator)
    {
        Assert.SkipUnless(CpuModels.HostHasV3, "the host lacks AVX2, FMA or F16C");
        BootOutcome outcome = await Guest.BootAsync(
            accelerator: accelerator,
            modules: ["xor", "raid6_pq", "sha512-ssse3", "sha256-ssse3", "chacha-x86_64", "poly1305-x86_64", "serpent-avx2", "camellia-aesni-avx2", "twofish-avx-x86_64"],
            script: """
            echo FLAGS=$(grep -m 1 ^flags /proc/cpuinfo | tr ' ' '\n' | grep -cE '^(avx|avx2|fma|f16c|bmi1|bmi2|abm|movbe)$')
            (seq 1 20000 | sort -rn | sort -n | sha256sum > /tmp/beside) &
            while read -r m; do insmod $m || echo FAILED=$m; done < /etc/modules
            wait
            seq 1 20000 | sha256sum > /tmp/alone
            cmp /tmp/alone /tmp/beside && echo SAME=1
            dmesg | grep -E 'raid6|xor'
            echo DRIVERS=$(grep -cE '^driver.*(avx|simd)' /proc/crypto)
            echo UNTESTED=$(grep '^selftest' /proc/crypto | grep -vc passed)
            """);
        Guest.AssertPoweredOff(outcome);
        Assert.DoesNotContain("FAILED=", outcome.Console, StringComparison.Ordinal);
        Assert.Equal("8", outcome.Value("FLAGS"));
        Assert.Equal("1", outcome.Value("SAME"));
        Assert.Contains("using avx2x2 recovery algorithm", outcome.Console, StringComparison.Ordinal);
        Assert.NotEqual("0", outcome.Value("DRIVERS"));
        Assert.Equal("0", outcome.Value("UNTESTED"));
    }

    [Theory]
    [InlineData(256UL << 20)]
    [InlineData(8UL << 30)]
    public async Task MemorySizes(ulong bytes)
    {
        BootOutcome outcome = await Guest.BootAsync(memory: bytes);
        Guest.AssertPoweredOff(outcome);
        // What is missing is the kernel itself and its page structures.
        ulong seen = ulong.Parse(outcome.Value("MEMORY"), CultureInfo.InvariantCulture) << 10;
        Assert.InRange(seen, (bytes - (bytes / 8)) - (48UL << 20), bytes);
    }

    [Theory]
    [InlineData("nolapic")]
    [InlineData("noapic")]
    [InlineData("nosmp")]
    public async Task WithoutModernInterrupts(string option)
    {
        BootOutcome outcome = await Guest.BootAsync(append: option, cpus: 2);
        Guest.AssertPoweredOff(outcome);
        // Each of them leaves one processor.
        Assert.Equal(option == "noapic" ? outcome.Value("CPUS") : "1", outcome.Value("CPUS"));
    }

    [Theory]
    [InlineData("tsc")]
    [InlineData("hpet")]
    [InlineData("acpi_pm")]
    public async Task ClockSources(string name)
    {
        BootOutcome outcome = await Guest.BootAsync(append: $"clocksource={name}");
        Guest.AssertPoweredOff(outcome);
        Assert.Equal(name, outcome.Value("CLOCK"));
    }

    [Fact]
    public async Task StockModulesLoad()
    {
        BootOutcome outcome = await Guest.BootAsync(modules: ["overlay", "fuse"], script: """
            while read -r m; do insmod $m || echo FAILED=$m; done < /etc/modules
            echo LOADED=$(lsmod | grep -c -e ^overlay -e ^fuse)
            """);
        Guest.AssertPoweredOff(outcome);
        Assert.Equal("2", outcome.Value("LOADED"));
        Assert.DoesNotContain("FAILED=", outcome.Console, StringComparison.Ordinal);
    }

    [Fact]
    public async Task TheConsoleWorksBothWays()
    {
        BootOutcome outcome = await Guest.BootAsync(
            script: "stty -echo; echo READY; read -r line; echo \"LINE=$line\"; read -r line; echo \"LENGTH=${#line}\"",
            companion: async (machine, console) =>
            {
                if (!await console.WaitForAsync("READY"))
                    return;
                await machine.SendSerialAsync(Encoding.ASCII.GetBytes("hello guest\n" + new string('x', 500) + "\n"));
            });
        Guest.AssertPoweredOff(outcome);
        Assert.Equal("hello guest", outcome.Value("LINE"));
        Assert.Equal("500", outcome.Value("LENGTH"));
    }

    [Fact]
    public async Task PauseStopsTheGuestsTime()
    {
        BootOutcome outcome = await Guest.BootAsync(
            script: "echo READY; a=$(cut -d. -f1 /proc/uptime); read -r line; b=$(cut -d. -f1 /proc/uptime); echo ELAPSED=$((b - a))",
            companion: async (machine, console) =>
            {
                if (!await console.WaitForAsync("READY"))
                    return;
                await machine.PauseAsync();
                TimeSpan before = machine.GetStatistics().VmTime;
                await Task.Delay(3000);
                Assert.Equal(before, machine.GetStatistics().VmTime);
                await machine.ResumeAsync();
                await machine.SendSerialAsync("\n"u8.ToArray());
            });
        Guest.AssertPoweredOff(outcome);
        Assert.InRange(int.Parse(outcome.Value("ELAPSED"), CultureInfo.InvariantCulture), 0, 2);
    }

    [Fact]
    public async Task ARebootUnderNoRebootEndsTheRun()
    {
        BootOutcome outcome = await Guest.BootAsync(script: "reboot -f");
        Assert.Equal(MachineExitKind.Reset, outcome.Exit.Kind);
    }

    [Fact]
    public async Task AResetBootsAgain()
    {
        bool again = false;
        BootOutcome outcome = await Guest.BootAsync(
            script: "echo READY; read -r line",
            companion: async (machine, console) =>
            {
                if (!await console.WaitForAsync("READY"))
                    return;
                await machine.ResetAsync();
                if (!await console.WaitForAsync("Linux version") || !await console.WaitForAsync("READY"))
                    return;
                again = true;
                await machine.SendSerialAsync("\n"u8.ToArray());
            });
        Guest.AssertPoweredOff(outcome);
        Assert.True(again);
        Assert.Equal(1, outcome.Statistics.Resets);
    }

    [Fact]
    public async Task AnIdleGuestSleeps()
    {
        // Counted, not timed: an idle guest halts, and is woken by few interrupts.
        long instructions = 0;
        BootOutcome outcome = await Guest.BootAsync(
            script: "echo READY; sleep 5; echo AWAKE",
            companion: async (machine, console) =>
            {
                if (!await console.WaitForAsync("READY"))
                    return;
                long before = machine.GetStatistics().Instructions;
                if (await console.WaitForAsync("AWAKE"))
                    instructions = machine.GetStatistics().Instructions - before;
            });
        Guest.AssertPoweredOff(outcome);
        Assert.InRange(instructions, 1, 50_000_000);
    }
}
