using Aerostat.Devices;
using Aerostat.Machine;
using Xunit;

namespace Aerostat.Boot.Tests;

/// <summary>Stock kernels give memory and take it back, under stress and by policy, and what they keep stays whole.</summary>
public sealed class BalloonGuestTests
{
    private const ulong MiB = 1 << 20;

    private const string LoadModules = "while read -r m; do insmod $m || echo FAILED=$m; done < /etc/modules\nstty -echo\n";

    private static readonly string[] s_modules = ["virtio_pci", "virtio_balloon"];

    private static async Task Until(VirtualMachine machine, Func<bool> condition, string what)
    {
        for (int i = 0; i < 6000 && !machine.Exit.IsCompleted; i++)
        {
            if (condition())
                return;
            await Task.Delay(20);
        }
        Assert.Fail($"{what}: {machine.Balloon!.GetReport()}");
    }

    private static async Task Resize(VirtualMachine machine, ulong target)
    {
        machine.Balloon!.SetTarget(target);
        await Until(machine, () => machine.Balloon.GetReport() is var r && r.ActualBytes == target && r.GuestActualBytes == target, $"target {target >> 20} MiB");
    }

    /// <summary>
    /// Files with known contents stay whole while the guest writes, frees and forks, its balloon goes up and down, and free pages are reported. With
    /// init_on_alloc and init_on_free the kernel zeroes pages as they come and go, with page_poison it fills free ones with a pattern and looks for
    /// it: a page that came back with other contents than the host may give it would be found.
    /// </summary>
    [Theory]
    [InlineData("translator", "cloud", "init_on_alloc=0")]
    [InlineData("translator", "cloud", "init_on_alloc=1 init_on_free=1")]
    [InlineData("translator", "generic", "init_on_alloc=0 page_poison=1")]
    [InlineData("interpreter", "cloud", "init_on_alloc=1")]
    public async Task WhatIsKeptStaysWhole(string accelerator, string kernel, string append)
    {
        const ulong Memory = 256 * MiB;
        ulong reported = 0;
        BootOutcome outcome = await Guest.BootAsync(
            kernel: kernel, append: append, accelerator: accelerator, memory: Memory, modules: s_modules,
            devices: [new BalloonOptions { DeflateOnOom = false }],
            script: LoadModules + """
                for i in 1 2 3 4; do seq $i 40000 > /tmp/kept$i; done
                sha256sum /tmp/kept* > /tmp/sums
                work() {
                    dd if=/dev/zero of=/tmp/zero bs=1M count=24 2>/dev/null
                    seq 1 LINES | sort -r > /tmp/sorted
                    [ "$(sort -n < /tmp/sorted | sha256sum)" = "$(seq 1 LINES | sha256sum)" ] || echo FAILED=sort
                    [ "$(tr -d '\0' < /tmp/zero | wc -c)" = 0 ] || echo FAILED=zeros
                    rm /tmp/zero /tmp/sorted
                    sha256sum -c /tmp/sums > /tmp/checked || echo FAILED=kept
                }
                echo READY
                while ! read -r -t 0 line; do work; rounds=$((rounds + 1)); done
                echo ROUNDS=$rounds
                work
                dmesg | grep -i -e corrupt -e "page dumped" && echo FAILED=poison
                echo CHECKED
                """.Replace("LINES", accelerator == "interpreter" ? "15000" : "60000", StringComparison.Ordinal),
            companion: async (machine, console) =>
            {
                if (!await console.WaitForAsync("READY"))
                    return;
                for (int i = 0; i < 3; i++)
                {
                    await Resize(machine, 112 * MiB);
                    await Resize(machine, (ulong)i * 16 * MiB);
                }
                // Linux reports seconds later, and only blocks of 2 MiB.
                if (append == "init_on_alloc=0")
                    await Until(machine, () => machine.Balloon!.GetReport().ReportedBytes > 0, "reports");
                reported = machine.Balloon!.GetReport().ReportedBytes;
                await machine.SendSerialAsync("\n"u8.ToArray());
            });
        Guest.AssertPoweredOff(outcome);
        Assert.DoesNotContain("FAILED=", outcome.Console, StringComparison.Ordinal);
        Assert.Contains("CHECKED", outcome.Console, StringComparison.Ordinal);
        // With a pattern in free pages the host must not take them; without anything of that, memory that was freed was reported.
        if (append.Contains("page_poison", StringComparison.Ordinal))
            Assert.Equal(0UL, reported);
        else if (append == "init_on_alloc=0")
            Assert.NotEqual(0UL, reported);
    }

    /// <summary>A guest that runs out takes memory from its balloon instead of killing a program, and that is told.</summary>
    [Fact]
    public async Task OutOfMemoryDeflates()
    {
        BalloonReport? after = null;
        BootOutcome outcome = await Guest.BootAsync(
            accelerator: "translator", memory: 256 * MiB, modules: s_modules, append: "",
            devices: [new BalloonOptions { DeflateOnOom = true }],
            script: LoadModules + """
                mount -t tmpfs -o size=100% tmpfs /mnt
                echo TOTAL1=$(awk '/^MemTotal/ { print $2 }' /proc/meminfo)
                echo READY; read -r line
                echo TOTAL2=$(awk '/^MemTotal/ { print $2 }' /proc/meminfo)
                dd if=/dev/zero of=/mnt/much bs=1M count=64 2>/dev/null && echo WRITTEN=$(stat -c %s /mnt/much)
                dmesg | grep -q "Out of memory: Killed" && echo FAILED=killed
                rm /mnt/much
                echo FULL; read -r line
                """,
            companion: async (machine, console) =>
            {
                if (!await console.WaitForAsync("READY"))
                    return;
                // What is left is too little for what comes.
                await Resize(machine, 152 * MiB);
                await machine.SendSerialAsync("\n"u8.ToArray());
                if (!await console.WaitForAsync("FULL"))
                    return;
                after = machine.Balloon!.GetReport();
                await machine.SendSerialAsync("\n"u8.ToArray());
            });
        Guest.AssertPoweredOff(outcome);
        Assert.DoesNotContain("FAILED=", outcome.Console, StringComparison.Ordinal);
        Assert.Equal($"{64 * MiB}", outcome.Value("WRITTEN"));
        // With this feature the balloon is part of what the guest believes to have.
        Assert.Equal(outcome.Value("TOTAL1"), outcome.Value("TOTAL2"));
        Assert.NotNull(after);
        Assert.True(after.ActualBytes < 152 * MiB, $"{after}");
        Assert.Equal(BalloonReason.DeflatedOnOom, after.Reason);
    }

    /// <summary>The policy takes what an idle guest does not need, and gives it back when the guest wants it.</summary>
    [Fact]
    public async Task ThePolicyFollowsTheGuest()
    {
        ulong idle = 0, held = 0, needed = 0;
        IReadOnlyList<MachineEvent> events = [];
        BootOutcome outcome = await Guest.BootAsync(
            accelerator: "translator", memory: 512 * MiB, modules: s_modules,
            devices: [new BalloonOptions { Auto = new BalloonRange(192 * MiB, 512 * MiB) }],
            script: LoadModules + """
                mount -t tmpfs -o size=100% tmpfs /mnt
                dd if=/dev/zero of=/mnt/much bs=1M count=256 2>/dev/null; rm /mnt/much
                echo READY; read -r line
                for i in $(seq 1 24); do dd if=/dev/zero of=/mnt/part$i bs=1M count=10 2>/dev/null || echo FAILED=$i; sleep 0.3; done
                dmesg | grep -q "Out of memory" && echo FAILED=oom
                echo NEXT; read -r line
                """,
            companion: async (machine, console) =>
            {
                if (!await console.WaitForAsync("READY"))
                    return;
                BalloonController controller = machine.BalloonController!;
                // Beside its own turns, so that nobody has to wait for them.
                await Until(machine, () => Judge(controller) is PolicyReason.AtFloor && machine.Balloon!.GetReport() is { Reason: BalloonReason.Reached }, "shrinks");
                idle = machine.Balloon!.GetReport().ActualBytes;
                held = machine.GetMemory().HostBytes;
                await machine.SendSerialAsync("\n"u8.ToArray());
                Task<bool> next = console.WaitForAsync("NEXT");
                await Until(machine, () => Judge(controller) is not null && next.IsCompleted, "grows");
                needed = machine.Balloon.GetReport().ActualBytes;
                events = [.. machine.Journal.Read(0).Where(e => e.Kind == "balloon-policy")];
                await machine.SendSerialAsync("\n"u8.ToArray());
            });
        Guest.AssertPoweredOff(outcome);
        Assert.DoesNotContain("FAILED=", outcome.Console, StringComparison.Ordinal);
        Assert.Equal(320 * MiB, idle);
        Assert.InRange(held, 1UL, 192 * MiB);
        Assert.True(needed < idle, $"{needed}");
        Assert.Contains(events, e => e.Message.StartsWith("idle:", StringComparison.Ordinal) || e.Message.StartsWith("host-pressure:", StringComparison.Ordinal));
        Assert.Contains(events, e => e.Message.StartsWith("guest-need:", StringComparison.Ordinal));

        static PolicyReason? Judge(BalloonController controller)
        {
            controller.Step();
            return controller.Last?.Reason;
        }
    }

    /// <summary>A guest that dies while its balloon fills, by a reset in the middle: nothing is left of it, and the next one starts from the target.</summary>
    [Fact]
    public async Task AGuestThatDiesWhileInflating()
    {
        BalloonReport? dead = null;
        bool again = false;
        BootOutcome outcome = await Guest.BootAsync(
            accelerator: "translator", memory: 512 * MiB, modules: s_modules, devices: [new BalloonOptions()],
            script: LoadModules + """
                echo READY; read -r line
                """,
            companion: async (machine, console) =>
            {
                if (!await console.WaitForAsync("READY"))
                    return;
                machine.Balloon!.SetTarget(320 * MiB);
                await Until(machine, () => machine.Balloon.GetReport().ActualBytes > 8 * MiB, "begins");
                await machine.ResetAsync();
                dead = machine.Balloon.GetReport();
                await Until(machine, () => machine.Balloon.GetReport().ActualBytes == 320 * MiB, "begins again");
                again = true;
                machine.Balloon.SetTarget(0);
                await Until(machine, () => machine.Balloon.GetReport().ActualBytes == 0, "ends");
                await machine.SendSerialAsync("\n"u8.ToArray());
            });
        Guest.AssertPoweredOff(outcome);
        Assert.True(again);
        Assert.Equal((0UL, 320 * MiB), (dead!.ActualBytes, dead.TargetBytes));
        Assert.Contains(dead.Reason, new[] { BalloonReason.NoDriver, BalloonReason.Working });
    }
}
