using System.Diagnostics;
using System.Text.Json;
using Aerostat.Hosting;
using Iced.Intel;
using Xunit;
using static Iced.Intel.AssemblerRegisters;

namespace Aerostat.Cli.Tests;

/// <summary>What <c>show</c> says of a running machine and <c>--stats</c> of one that has ended: each kind of exit as often as the guest made it, and its time.</summary>
public sealed class StatisticsTests : MachineProcesses
{
    private const uint Idt = 0x20_0000, Gdt = 0x20_1000, Pointers = 0x20_2000, LocalApic = 0xFEE0_0000, IoApic = 0xFEC0_0000;

    private static readonly Dictionary<string, long> s_expected = new()
    {
        ["port-reads"] = 200,
        ["port-writes"] = 150,
        ["mmio-reads"] = 100,
        ["mmio-writes"] = 90,
        ["local-apic-accesses"] = 80 + 1 + (2 * 30),
        ["msr-reads"] = 70,
        ["msr-writes"] = 60,
        ["hypercalls"] = 50,
        ["acknowledges"] = 30,
        ["interrupts"] = 30,
    };

    private static void Times(Assembler a, int count, Action body)
    {
        Label again = a.CreateLabel();
        a.mov(edi, count);
        a.Label(ref again);
        body();
        a.dec(edi);
        a.jnz(again);
    }

    /// <summary>So many of each, then HLT with interrupts off.</summary>
    private static byte[] Kernel(bool all)
    {
        Assembler a = new(32);
        Label halt = a.CreateLabel();
        Times(a, 200, () => a.@in(al, 0x64));
        Times(a, 150, () => a.@out(0xE0, al));
        if (all)
        {
            Times(a, 100, () => a.mov(eax, __dword_ptr[IoApic]));
            Times(a, 90, () => a.mov(__dword_ptr[IoApic], eax));
            Times(a, 80, () => a.mov(eax, __dword_ptr[LocalApic + 0x20]));
            a.mov(ecx, 0x1B);
            Times(a, 70, () => a.rdmsr());
            Times(a, 60, () => a.wrmsr());
            Times(a, 50, () =>
            {
                a.mov(eax, -1);
                a.vmcall();
            });
            // Vector 41h to itself, ended in its handler, which the CALL names by where it would return to.
            Label install = a.CreateLabel();
            a.mov(esp, 0x30_0000);
            a.call(install);
            a.inc(esi);
            a.mov(__dword_ptr[LocalApic + 0xB0], 0);
            a.iretd();
            a.Label(ref install);
            a.pop(eax);
            a.mov(edx, eax);
            a.and(eax, 0xFFFF);
            a.or(eax, 8 << 16);
            a.mov(__dword_ptr[Idt + (0x41 * 8)], eax);
            a.and(edx, unchecked((int)0xFFFF_0000));
            a.or(edx, 0x8E00);
            a.mov(__dword_ptr[Idt + (0x41 * 8) + 4], edx);
            // Flat code segments, one of which has the selector that CS came with, and the two pointers.
            for (uint selector = 8; selector <= 0x18; selector += 8)
            {
                a.mov(__dword_ptr[Gdt + selector], 0xFFFF);
                a.mov(__dword_ptr[Gdt + selector + 4], 0x00CF_9B00);
            }
            a.mov(__dword_ptr[Pointers], 0x1F);
            a.mov(__dword_ptr[Pointers + 2], Gdt);
            a.mov(__dword_ptr[Pointers + 8], 0x7FF);
            a.mov(__dword_ptr[Pointers + 10], Idt);
            a.lgdt(__[Pointers]);
            a.lidt(__[Pointers + 8]);
            a.mov(__dword_ptr[LocalApic + 0xF0], 0x1FF);
            a.sti();
            a.xor(esi, esi);
            Times(a, 30, () =>
            {
                Label wait = a.CreateLabel();
                a.lea(ebx, __[esi + 1]);
                a.mov(__dword_ptr[LocalApic + 0x300], 0x4_4041);
                a.Label(ref wait);
                a.cmp(esi, ebx);
                a.jne(wait);
            });
        }
        a.cli();
        a.Label(ref halt);
        a.hlt();
        a.jmp(halt);
        using MemoryStream bytes = new();
        a.Assemble(new StreamCodeWriter(bytes), TinyKernel.Entry);
        return TinyKernel.Image(bytes.ToArray());
    }

    private Process Boot(string accelerator, bool all)
    {
        string kernel = Path.Combine(Folder, "exits");
        File.WriteAllBytes(kernel, Kernel(all));
        return Start("run", "--kernel", kernel, "--memory", "16M", "--accel", accelerator, "--name", "web", "--personality", "kvm", "--stats", Path.Combine(Folder, "stats.json"));
    }

    private static (long Count, double Seconds) Exit(JsonElement shown, string reason) =>
        (shown.GetProperty("exits").GetProperty(reason).GetProperty("count").GetInt64(), shown.GetProperty("exits").GetProperty(reason).GetProperty("seconds").GetDouble());

    /// <summary>What show says as soon as it says what is waited for.</summary>
    private async Task<JsonElement> ShowWhen(Process machine, Func<JsonElement, bool> ready)
    {
        Stopwatch waited = Stopwatch.StartNew();
        while (true)
        {
            (int status, string output, _) = await Run("show", "web", "--json");
            if (status == 0)
            {
                using JsonDocument json = JsonDocument.Parse(output);
                if (ready(json.RootElement))
                    return json.RootElement.Clone();
            }
            Assert.False(machine.HasExited, machine.HasExited ? (await End(machine)).Error : "");
            Assert.True(waited.Elapsed < s_limit, "the guest did not get to its end");
            await Task.Delay(50, Token);
        }
    }

    [Theory]
    [InlineData("interpreter")]
    [InlineData("translator")]
    public async Task EveryKindOfExitIsCountedAndTimed(string accelerator)
    {
        using Process machine = Boot(accelerator, all: true);
        try
        {
            JsonElement shown = await ShowWhen(machine, s => Exit(s, "halted").Count > 0);
            foreach ((string name, long count) in s_expected)
            {
                JsonElement figures = shown.GetProperty("handled").GetProperty(name);
                Check(name, count, figures.GetProperty("count").GetInt64());
                // Interrupts are what acknowledges gave: they take no time of their own.
                if (name != "interrupts")
                    Assert.True(figures.GetProperty("seconds").GetDouble() > 0, name);
            }
            // Leaves for a reason, and is out of the guest until it goes on.
            Assert.Equal((0, "web is paused\n", ""), await Run("pause", "web"));
            Assert.Equal((0, "web is running\n", ""), await Run("resume", "web"));
            await ShowWhen(machine, s => Exit(s, "halted").Seconds > 0 && Exit(s, "interrupted") is { Count: > 0, Seconds: > 0 });
            // The sums of a machine that stands still agree.
            Assert.Equal((0, "web is paused\n", ""), await Run("pause", "web"));
            shown = await ShowWhen(machine, _ => true);
            Assert.Equal(
                shown.GetProperty("exits").EnumerateObject().Sum(e => e.Value.GetProperty("count").GetInt64()),
                shown.GetProperty("vcpus").EnumerateArray().Sum(v => v.GetProperty("exits").GetInt64()));
            // For people, a line each.
            string text = (await Run("show", "web")).Output;
            foreach ((string name, long count) in s_expected.Where(e => e.Key != "acknowledges"))
                Assert.Matches($@"(?m)^{name} +{count} +\d+\.\d{{3}}$", text);
            Assert.Matches(@"(?m)^halted +[1-9]\d* +\d+\.\d{3}$", text);
            Assert.Equal(0, (await Run("stop", "web", "--force")).Status);
            await End(machine);
        }
        finally
        {
            if (!machine.HasExited)
                machine.Kill();
        }
        using JsonDocument stats = JsonDocument.Parse(await File.ReadAllTextAsync(Path.Combine(Folder, "stats.json"), Token));
        foreach ((string name, long count) in s_expected)
        {
            Check(name, count, stats.RootElement.GetProperty("handled").GetProperty(name).GetInt64());
            if (name != "interrupts")
                Assert.True(stats.RootElement.GetProperty("handledSeconds").GetProperty(name).GetDouble() > 0, name);
        }
        foreach (string reason in (string[])["halted", "interrupted"])
        {
            Assert.True(stats.RootElement.GetProperty("exits").GetProperty(reason).GetInt64() > 0, reason);
            Assert.True(stats.RootElement.GetProperty("exitSeconds").GetProperty(reason).GetDouble() > 0, reason);
        }
    }

    // An acknowledge may find that nothing is left to do.
    private static void Check(string name, long expected, long count)
    {
        if (name == "acknowledges")
            Assert.InRange(count, expected, 2 * expected);
        else
            Assert.Equal((name, expected), (name, count));
    }

    /// <summary>On KVM there are the kernel's own reasons besides, by name.</summary>
    [Fact]
    public async Task KvmTellsItsReasons()
    {
        Assert.SkipUnless(Accelerators.Kvm.Usable, $"no KVM: {Accelerators.Kvm.Explanation}");
        using Process machine = Boot("kvm", all: false);
        try
        {
            JsonElement handled = default, counters = default;
            for (Stopwatch waited = Stopwatch.StartNew(); ; await Task.Delay(50, Token))
            {
                (int status, string output, _) = await Run("show", "web", "--json");
                if (status == 0)
                {
                    using JsonDocument json = JsonDocument.Parse(output);
                    handled = json.RootElement.GetProperty("handled").Clone();
                    counters = json.RootElement.GetProperty("counters").Clone();
                    if (handled.GetProperty("port-writes").GetProperty("count").GetInt64() >= 150)
                        break;
                }
                Assert.True(waited.Elapsed < s_limit, "the guest did not get to its end");
            }
            Assert.Equal((200L, 150L), (handled.GetProperty("port-reads").GetProperty("count").GetInt64(), handled.GetProperty("port-writes").GetProperty("count").GetInt64()));
            Assert.True(handled.GetProperty("port-reads").GetProperty("seconds").GetDouble() > 0);
            Assert.Equal(350L, counters.GetProperty("kvm-io").GetInt64());
            Assert.True(counters.GetProperty("kvm-entries").GetInt64() >= 350);
            Assert.Equal(0, (await Run("stop", "web", "--force")).Status);
            await End(machine);
        }
        finally
        {
            if (!machine.HasExited)
                machine.Kill();
        }
    }
}
