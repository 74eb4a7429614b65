using System.Runtime.CompilerServices;
using System.Text.RegularExpressions;
using Aerostat.Hosting;
using Aerostat.Loader;
using Aerostat.Machine;
using Xunit;

namespace Aerostat.Debugger.Tests;

/// <summary>Debian's own gdb in batch mode, against the small guest and against a stock kernel.</summary>
public sealed partial class GdbTests
{
    private const string Begin = "<!-- transcript: made by GdbTests -->\n```\n", End = "```\n<!-- end of transcript -->";

    private static readonly string[] s_tour =
    [
        "info threads",
        "break *inner",
        "continue",
        "backtrace",
        "info registers rip rdi rbp",
        "x/3i $pc",
        "stepi",
        "delete",
        "watch *(int *) &last",
        "continue",
        "print *(int *) &last",
        "delete",
        "break *inner",
        "continue",
        "print $edi = 100",
        "finish",
        "print $eax",
        "delete",
        "awatch *(int *) &counter",
        "continue",
        "continue",
        "delete",
        "hbreak *middle",
        "continue",
        "print/x $cr0",
        "print $xmm0.uint128",
        "x/x 0x40000000",
        "monitor info tlb",
        "monitor help",
        "detach",
    ];

    /// <summary>The tour of docs/debugging.md: what gdb prints is what is written there.</summary>
    [Fact]
    public async Task TheTourInTheDocs()
    {
        DebuggedMachine.NeedGdb();
        await using DebuggedMachine m = DebuggedMachine.Small("translator");
        string transcript = await m.GdbAsync([m.Target, .. s_tour]);
        transcript = transcript.Replace(m.Target, "target remote :1234", StringComparison.Ordinal).Replace("DIR/gdb.sock", ":1234", StringComparison.Ordinal);
        transcript = transcript.TrimEnd('\n') + "\n";
        // The guest goes on after detach: a second gdb finds it further on, stops it by Ctrl-C, and lets it end.
        string second = await m.GdbAsync(
            m.Target,
            "shell (sleep 1; kill -INT $PPID) &",
            "continue",
            "print *(int *) &counter > 100",
            "set var *(int *) &stop = 5",
            "continue");
        Assert.Contains("SIGINT", second, StringComparison.Ordinal);
        Assert.Contains("$1 = 1", second, StringComparison.Ordinal);
        Assert.Contains("exited with code 013", second, StringComparison.Ordinal);
        Assert.Equal(new MachineExit(MachineExitKind.DebugExit, 11), await m.Machine.Exit.WaitAsync(TimeSpan.FromMinutes(1), TestContext.Current.CancellationToken));

        string path = Path.Combine(RepositoryRoot(), "docs", "debugging.md");
        string page = File.ReadAllText(path);
        int from = page.IndexOf(Begin, StringComparison.Ordinal) + Begin.Length, to = page.IndexOf(End, StringComparison.Ordinal);
        if (Environment.GetEnvironmentVariable("AEROSTAT_UPDATE_GOLDEN") == "1")
            File.WriteAllText(path, page[..from] + transcript + page[to..]);
        else
            Assert.Equal(page[from..to], transcript);
    }

    /// <summary>The same on the interpreter too, and what must be in it whatever gdb's version prints around it.</summary>
    [Theory]
    [InlineData("interpreter")]
    [InlineData("translator")]
    public async Task WhatTheTourShows(string accelerator)
    {
        DebuggedMachine.NeedGdb();
        await using DebuggedMachine m = DebuggedMachine.Small(accelerator, cpus: 2);
        string text = await m.GdbAsync([m.Target, .. s_tour]);
        foreach (string wanted in (string[])
            [
                "vCPU 1 [waiting to be started]", "#1  0x", " in middle ()", " in outer ()", " in main ()", "Hardware watchpoint", "New value = 6", "$1 = 6",
                "$2 = 100", "$3 = 300", "Hardware access (read/write) watchpoint", "Old value = 2", "New value = 3", "Hardware assisted breakpoint",
                "Cannot access memory at address 0x40000000", "info exits", "Detaching from program",
            ])
            Assert.True(text.Contains(wanted, StringComparison.Ordinal), $"no '{wanted}' in:\n{text}");
        Assert.DoesNotContain("Remote failure", text, StringComparison.Ordinal);
        Assert.Equal(MachineState.Running, m.Machine.State);
    }

    /// <summary>/dev/kvm, with more breakpoints than there are debug registers; data breakpoints are left out, since KVMs that emulate their guests have none.</summary>
    [Fact]
    public async Task OnKvm()
    {
        DebuggedMachine.NeedGdb();
        DebuggedMachine.Need("kvm");
        await using DebuggedMachine m = DebuggedMachine.Small("kvm");
        string text = await m.GdbAsync(
            m.Target, "break *inner", "continue", "backtrace", "stepi", "print $edi = 100", "finish", "print $eax",
            "hbreak *main", "hbreak *outer", "hbreak *middle", "break *main+4", "break *outer+1", "break *middle+1", "break *inner+1", "x/2xb inner+1", "tbreak *0x101fff", "continue", "delete", "x/x 0x40000000", "set var *(int *) &stop = 5", "continue");
        foreach (string wanted in (string[])
            ["#1  0x", " in middle ()", " in outer ()", " in main ()", "$2 = 300", "Cannot access memory at address 0x40000000", "exited with code 013"])
            Assert.True(text.Contains(wanted, StringComparison.Ordinal), $"no '{wanted}' in:\n{text}");
    }

    /// <summary>
    /// A stock Debian kernel on the translator, its symbols from its own /proc/kallsyms (Debian's System.map is empty): breakpoints, steps and a watchpoint in it, a string of its panic
    /// message exchanged through a register, and its end when gdb lets it go.
    /// </summary>
    [Fact]
    public async Task AStockKernel()
    {
        DebuggedMachine.NeedGdb();
        string cache = Path.Combine(Environment.GetEnvironmentVariable("XDG_CACHE_HOME") is { Length: > 0 } c ? c : Path.Combine(Environment.GetEnvironmentVariable("HOME") ?? "/", ".cache"), "aerostat", "cloud", "boot");
        string busybox = Path.Combine(cache, "../../busybox/bin/busybox");
        string? kernel = Directory.Exists(cache) ? Directory.EnumerateFiles(cache, "vmlinuz-*").Order(StringComparer.Ordinal).LastOrDefault() : null;
        Assert.SkipWhen(kernel is null || !File.Exists(busybox), $"no stock cloud kernel in {cache} or no busybox beside it: './dev kernels' fetches them, and could not");
        string[] symbols = await ReadSymbols(kernel!, busybox);
        SerialTranscript console = new();
        await using DebuggedMachine m = DebuggedMachine.Other(
            new MachineOptions
            {
                MemoryBytes = 256 << 20,
                Accelerator = "translator",
                NoReboot = true,
                Serial = console.Append,
                Boot = new KernelBootOptions(kernel!) { CommandLine = "console=ttyS0 panic=-1 nokaslr" },
            },
            GuestElf.Symbols(symbols));
        string text = await m.GdbAsync(
            m.Target,
            "hbreak *start_kernel",
            "continue",
            "x/s (char *) &linux_banner",
            "stepi",
            "stepi",
            "print (unsigned long) $pc != (unsigned long) &start_kernel",
            "delete",
            "watch *(unsigned long *) &jiffies",
            "continue",
            "info symbol $pc",
            "continue",
            "delete",
            "break *panic",
            "continue",
            "x/s $rdi",
            "info threads",
            "print $rdi = (unsigned long) &linux_banner",
            "x/x 0x10",
            "detach");
        foreach (string wanted in (string[])
            [
                "Hardware assisted breakpoint 1 at 0xffffffff8", "in start_kernel ()", "Linux version 6.", "$1 = 1", "Hardware watchpoint 2",
                "in panic ()", "VFS: Unable to mount root fs", "vCPU 0 [CPL 0]", "Cannot access memory at address 0x10",
            ])
            Assert.True(text.Contains(wanted, StringComparison.Ordinal), $"no '{wanted}' in:\n{text}\n{console.Text}");
        // The tick was counted twice, by one each.
        Match values = JiffiesValues().Match(text);
        Assert.True(values.Success, text);
        Assert.Equal(ulong.Parse(values.Groups[1].Value) + 1, ulong.Parse(values.Groups[2].Value));
        MachineExit exit = await m.Machine.WaitForExitAsync(TimeSpan.FromMinutes(4));
        Assert.Equal(MachineExitKind.Reset, exit.Kind);
        Assert.Contains("Kernel panic - not syncing: Linux version 6.", console.Text, StringComparison.Ordinal);
    }

    private static async Task<string[]> ReadSymbols(string kernel, string busybox)
    {
        using MemoryStream archive = new();
        new InitramfsBuilder
        {
            BusyboxPath = busybox,
            InitScript = "#!/bin/sh\nexport PATH=/bin\nmount -t proc proc /proc\ngrep -E ' (_text|_end|start_kernel|panic|linux_banner|jiffies|__fentry__|do_timer|tick_do_update_jiffies64)$' /proc/kallsyms\npoweroff -f\n",
        }.Build(archive);
        SerialTranscript console = new();
        await using VirtualMachine machine = Machines.Create(new MachineOptions
        {
            MemoryBytes = 256 << 20,
            Accelerator = "translator",
            NoReboot = true,
            Serial = console.Append,
            Boot = new KernelBootOptions(kernel) { CommandLine = "console=ttyS0 panic=-1 nokaslr quiet", InitrdBytes = archive.ToArray() },
        });
        await machine.StartAsync();
        await machine.WaitForExitAsync(TimeSpan.FromMinutes(4));
        string[] lines = [.. console.Text.Split('\n').Select(l => l.TrimEnd('\r')).Where(l => SymbolLine().IsMatch(l))];
        Assert.True(lines.Length >= 6, console.Text);
        return lines;
    }

    [GeneratedRegex(@"^[0-9a-f]{16} [A-Za-z] \w+$")]
    private static partial Regex SymbolLine();

    [GeneratedRegex(@"Old value = (\d+)\s+New value = (\d+)")]
    private static partial Regex JiffiesValues();

    private static string RepositoryRoot([CallerFilePath] string here = "")
    {
        string? folder = Path.GetDirectoryName(here);
        while (folder is not null && !File.Exists(Path.Combine(folder, "Aerostat.slnx")))
            folder = Path.GetDirectoryName(folder);
        return folder ?? throw new InvalidOperationException("the source tree is not there: run this from a clone");
    }
}
