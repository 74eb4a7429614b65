using System.Diagnostics;
using System.Globalization;
using System.Text.Json;
using Aerostat.Control;
using Aerostat.Machine;

namespace Aerostat.Cli;

/// <summary>
/// How fast a stock kernel's balloon takes memory from a guest and gives it back, in turn with QEMU's software processor; what the host holds
/// for the guest then; and what it holds for an idle guest that reports its free pages. Both monitors run as processes of their own with the same kernel
/// and initramfs, and are asked over their sockets.
/// </summary>
internal sealed class BalloonBenchmark
{
    private const string Qemu = "qemu-system-x86_64";
    private const string Touched = "GUEST-TOUCHED";

    private static readonly TimeSpan s_limit = TimeSpan.FromMinutes(10);

    /// <summary>What the guest does: it uses most of its memory once, and then nothing.</summary>
    public static string Script { get; } = ScriptWith("");

    /// <summary>The same with something to do before.</summary>
    public static string ScriptWith(string before) => $"""
        #!/bin/sh
        export PATH=/bin
        mount -t proc proc /proc
        mount -t devtmpfs dev /dev
        while read -r module; do insmod $module; done < /etc/modules
        {before}
        mount -t tmpfs -o size=99% tmpfs /tmp
        free=$(awk '/^MemFree/ {"{"} print int($2 / 1024) {"}"}' /proc/meminfo)
        dd if=/dev/zero of=/tmp/much bs=1M count=$((free - 128)) 2> /dev/null && rm /tmp/much && echo {Touched}
        while true; do sleep 1000; done

        """;

    /// <summary>One way of the balloon.</summary>
    private readonly record struct Way(double Seconds, double Cpu);

    /// <param name="Inflate">Of memory that the host holds.</param>
    /// <param name="Deflate">And back.</param>
    /// <param name="Again">Of memory that the host does not hold.</param>
    /// <param name="DeflateAgain">And back.</param>
    /// <param name="Before">Resident bytes of the process before.</param>
    /// <param name="Full">And with the full balloon.</param>
    /// <param name="Held">What the host holds for the guest then, where it is told.</param>
    private sealed record Sample(Way Inflate, Way Deflate, Way Again, Way DeflateAgain, ulong Before, ulong Full, ulong? Held);

    private sealed record Idle(ulong Held, ulong KernelUse);

    public required StockGuest Guest { get; init; }

    public required int Runs { get; init; }

    public required int IdleSeconds { get; init; }

    public required bool Json { get; init; }

    private ulong BalloonBytes => Guest.MemoryBytes / 4 * 3;

    public async Task<int> RunAsync(TextWriter output, TextWriter error, CancellationToken cancellation)
    {
        string folder = Directory.CreateTempSubdirectory("aerostat-balloon-").FullName;
        try
        {
            string? qemu = ChildRun.Find(Qemu);
            List<Sample> own = [], peer = [];
            for (int i = 1; i <= Runs; i++)
            {
                if (await RunOwn(folder, error, cancellation).ConfigureAwait(false) is not { } sample)
                    return ExitStatus.Incomplete;
                own.Add(sample);
                error.WriteLine($"balloon {i} of {Runs}: aerostat {Describe(sample)}");
                if (qemu is null)
                    continue;
                if (await RunQemu(qemu, folder, error, cancellation).ConfigureAwait(false) is not { } other)
                    return ExitStatus.Incomplete;
                peer.Add(other);
                error.WriteLine($"balloon {i} of {Runs}: qemu tcg {Describe(other)}");
            }
            Idle?[] idle = await Task.WhenAll(RunIdle(true, folder, error, cancellation), RunIdle(false, folder, error, cancellation)).ConfigureAwait(false);
            if (idle is not [{ } with, { } without])
                return ExitStatus.Incomplete;
            if (Json)
                WriteJson(output, own, peer, with, without);
            else
                WriteText(output, own, peer, with, without);
            return ExitStatus.Success;
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
    }

    private string[] OwnArguments(string control, ulong memory, bool reporting) =>
    [
        "run", "--accel", Guest.Accelerator, "--kernel", Guest.Kernel, "--initrd", Guest.Initrd, "--append", $"{StockGuest.CommandLine} quiet",
        "--memory", MemorySize.Format(memory), "--no-reboot", "--control", control, "--balloon", $"reporting={(reporting ? "on" : "off")}",
    ];

    private async Task<Sample?> RunOwn(string folder, TextWriter error, CancellationToken cancellation)
    {
        string control = Path.Combine(folder, "own.sock");
        (string program, string[] prefix) = ChildRun.Self();
        using GuestProcess guest = new(program, [.. prefix, .. OwnArguments(control, Guest.MemoryBytes, reporting: false)]);
        if (!await Touch(guest, "aerostat", error, cancellation).ConfigureAwait(false))
            return null;
        using ControlClient client = await ControlClient.ConnectAsync(new ControlEndpoint(control), cancellation).ConfigureAwait(false);
        return await Measure(guest, "aerostat", async target => (await Ask(client, target, cancellation).ConfigureAwait(false)).Actual,
            async () => (await AskMemory(client, cancellation).ConfigureAwait(false)).Host, error, cancellation).ConfigureAwait(false);
    }

    private async Task<Sample?> RunQemu(string qemu, string folder, TextWriter error, CancellationToken cancellation)
    {
        string path = Path.Combine(folder, "qemu.sock");
        File.Delete(path);
        using GuestProcess guest = new(qemu,
        [
            "-accel", "tcg", "-m", $"{Guest.MemoryBytes >> 20}", "-display", "none", "-serial", "stdio", "-monitor", "none", "-no-reboot", "-qmp", $"unix:{path},server=on,wait=off",
            "-device", "virtio-balloon-pci", "-kernel", Guest.Kernel, "-initrd", Guest.Initrd, "-append", $"{StockGuest.CommandLine} quiet",
        ]);
        using QemuMonitor monitor = await QemuMonitor.ConnectAsync(path, cancellation).ConfigureAwait(false);
        if (!await Touch(guest, "qemu", error, cancellation).ConfigureAwait(false))
            return null;
        // Its command wants what the guest keeps.
        return await Measure(guest, "qemu", async target =>
        {
            if (target is { } bytes)
                await monitor.AskAsync($$$"""{"execute":"balloon","arguments":{"value":{{{Guest.MemoryBytes - bytes}}}}}""", cancellation).ConfigureAwait(false);
            return await monitor.AskAsync("""{"execute":"query-balloon"}""", cancellation).ConfigureAwait(false) is { } answer
                ? Guest.MemoryBytes - answer.GetProperty("actual").GetUInt64() : 0;
        }, null, error, cancellation).ConfigureAwait(false);
    }

    private static async Task<bool> Touch(GuestProcess guest, string who, TextWriter error, CancellationToken cancellation)
    {
        if (await guest.WaitForAsync(Touched, s_limit, cancellation).ConfigureAwait(false))
            return true;
        error.WriteLine($"aerostat bench: the guest of {who} did not come up; its output ends with:\n{guest.Tail}");
        return false;
    }

    private async Task<Sample?> Measure(GuestProcess guest, string who, Func<ulong?, Task<ulong>> balloon, Func<Task<ulong>>? held, TextWriter error, CancellationToken cancellation)
    {
        async Task<Way?> Go(ulong target)
        {
            TimeSpan cpu = guest.Cpu;
            Stopwatch time = Stopwatch.StartNew();
            for (ulong actual = await balloon(target).ConfigureAwait(false); actual != target; actual = await balloon(null).ConfigureAwait(false))
            {
                if (time.Elapsed > s_limit)
                {
                    error.WriteLine($"aerostat bench: the balloon of {who} has {actual >> 20} of {target >> 20} MiB and goes no further");
                    return null;
                }
                await Task.Delay(5, cancellation).ConfigureAwait(false);
            }
            return new Way(time.Elapsed.TotalSeconds, (guest.Cpu - cpu).TotalSeconds);
        }

        ulong before = guest.ResidentBytes;
        if (await Go(BalloonBytes).ConfigureAwait(false) is not { } inflate)
            return null;
        ulong full = guest.ResidentBytes;
        ulong? heldBytes = held is null ? null : await held().ConfigureAwait(false);
        return await Go(0).ConfigureAwait(false) is { } deflate && await Go(BalloonBytes).ConfigureAwait(false) is { } again && await Go(0).ConfigureAwait(false) is { } deflateAgain
            ? new Sample(inflate, deflate, again, deflateAgain, before, full, heldBytes)
            : null;
    }

    // The kernel's own use: all that is not free, by the guest's word, and what it never counted (its code and page structures).
    private async Task<Idle?> RunIdle(bool reporting, string folder, TextWriter error, CancellationToken cancellation)
    {
        const ulong Memory = 512 << 20;
        string control = Path.Combine(folder, reporting ? "idle-reporting.sock" : "idle.sock");
        (string program, string[] prefix) = ChildRun.Self();
        using GuestProcess guest = new(program, [.. prefix, .. OwnArguments(control, Memory, reporting)]);
        if (!await Touch(guest, "aerostat", error, cancellation).ConfigureAwait(false))
            return null;
        using ControlClient client = await ControlClient.ConnectAsync(new ControlEndpoint(control), cancellation).ConfigureAwait(false);
        if (reporting)
            error.WriteLine($"an idle guest that has used and freed its memory, with reporting and without: waiting {IdleSeconds} s");
        await Task.Delay(TimeSpan.FromSeconds(IdleSeconds), cancellation).ConfigureAwait(false);
        await AskMemory(client, cancellation).ConfigureAwait(false);
        for (int i = 0; i < 100; i++)
        {
            await Task.Delay(100, cancellation).ConfigureAwait(false);
            MemoryAnswer answer = await AskMemory(client, cancellation).ConfigureAwait(false);
            if (answer is { GuestAge: < 5, Guest: { } figures } && figures.TryGetValue("free", out ulong free))
                return new Idle(answer.Host, Memory - free);
        }
        error.WriteLine("aerostat bench: the idle guest does not send statistics");
        return null;
    }

    private static Task<BalloonAnswer> Ask(ControlClient client, ulong? target, CancellationToken cancellation) =>
        client.AskAsync("balloon", new BalloonArguments(target), ControlJson.Default.BalloonArguments, ControlJson.Default.BalloonAnswer, cancellation: cancellation);

    private static Task<MemoryAnswer> AskMemory(ControlClient client, CancellationToken cancellation) =>
        client.AskAsync("memory", new NoArguments(), ControlJson.Default.NoArguments, ControlJson.Default.MemoryAnswer, cancellation: cancellation);

    private double Rate(double seconds) => BalloonBytes / 1073741824.0 / seconds;

    private string Describe(Sample s) => string.Create(CultureInfo.InvariantCulture,
        $"inflates at {Rate(s.Inflate.Seconds):0.00} GiB/s (CPU {s.Inflate.Cpu:0.00} s), deflates at {Rate(s.Deflate.Seconds):0.00} (CPU {s.Deflate.Cpu:0.00} s); again {Rate(s.Again.Seconds):0.00} (CPU {s.Again.Cpu:0.00} s), {Rate(s.DeflateAgain.Seconds):0.00}; resident {s.Before >> 20} -> {s.Full >> 20} MiB");

    private static readonly (string Name, Func<Sample, Way> Of)[] s_ways =
        [("inflate", s => s.Inflate), ("deflate", s => s.Deflate), ("inflateUntouched", s => s.Again), ("deflateAgain", s => s.DeflateAgain)];

    private static double Seconds(List<Sample> samples, Func<Sample, Way> of) => BootBenchmark.Median(samples.Select(s => of(s).Seconds));

    private static double Cpu(List<Sample> samples, Func<Sample, Way> of) => BootBenchmark.Median(samples.Select(s => of(s).Cpu));

    private void WriteText(TextWriter output, List<Sample> own, List<Sample> peer, Idle with, Idle without)
    {
        output.WriteLine($"balloon of {BalloonBytes >> 20} MiB in a guest of {Guest.MemoryBytes >> 20} MiB, {Guest.Accelerator}, medians of {Runs}{(peer.Count == 0 ? "; qemu is not installed" : "; qemu -accel tcg behind the bar")}");
        foreach ((string name, Func<Sample, Way> of) in s_ways)
        {
            string line = string.Create(CultureInfo.InvariantCulture, $"  {name,-17} {Rate(Seconds(own, of)),6:0.00} GiB/s, CPU {Cpu(own, of):0.00} s");
            if (peer.Count > 0)
                line += string.Create(CultureInfo.InvariantCulture, $" | {Rate(Seconds(peer, of)),6:0.00} GiB/s, CPU {Cpu(peer, of):0.00} s: {Seconds(peer, of) / Seconds(own, of):0.00} times as fast, {Cpu(peer, of) / Cpu(own, of):0.00} times by CPU");
            output.WriteLine(line);
        }
        output.WriteLine(string.Create(CultureInfo.InvariantCulture,
            $"  with it full the host holds {Held(own) / 1048576:0} MiB for the guest, {Share(own):0.000} of what the guest has left; the process was {BootBenchmark.Median(own.Select(s => (double)(s.Before >> 20))):0} MiB and is {BootBenchmark.Median(own.Select(s => (double)(s.Full >> 20))):0} MiB{(peer.Count == 0 ? "" : $" | {BootBenchmark.Median(peer.Select(s => (double)(s.Before >> 20))):0} and {BootBenchmark.Median(peer.Select(s => (double)(s.Full >> 20))):0} MiB")}"));
        output.WriteLine($"idle guest of 512 MiB that had used and freed its memory, {IdleSeconds} s later: the host holds {with.Held >> 20} MiB with reporting, {(long)(with.Held - with.KernelUse) >> 20} MiB above the {with.KernelUse >> 20} MiB that the guest uses; without reporting {without.Held >> 20} MiB");
    }

    private static double Held(List<Sample> own) => BootBenchmark.Median(own.Select(s => (double)(s.Held ?? 0)));

    private double Share(List<Sample> own) => Held(own) / (Guest.MemoryBytes - BalloonBytes);

    private void WriteJson(TextWriter output, List<Sample> own, List<Sample> peer, Idle with, Idle without)
    {
        using MemoryStream stream = new();
        using (Utf8JsonWriter json = new(stream, new JsonWriterOptions { Indented = true }))
        {
            json.WriteStartObject();
            json.WriteNumber("memoryBytes", Guest.MemoryBytes);
            json.WriteNumber("balloonBytes", BalloonBytes);
            json.WriteNumber("runs", Runs);
            foreach ((string who, List<Sample> samples) in ((string, List<Sample>)[])[("aerostat", own), ("qemuTcg", peer)])
            {
                if (samples.Count == 0)
                    continue;
                json.WriteStartObject(who);
                foreach ((string name, Func<Sample, Way> of) in s_ways)
                {
                    json.WriteStartObject(name);
                    json.WriteNumber("gibPerSecond", Math.Round(Rate(Seconds(samples, of)), 4));
                    json.WriteNumber("seconds", Math.Round(Seconds(samples, of), 4));
                    json.WriteNumber("cpuSeconds", Math.Round(Cpu(samples, of), 4));
                    json.WriteEndObject();
                }
                json.WriteNumber("processBytesBefore", BootBenchmark.Median(samples.Select(s => (double)s.Before)));
                json.WriteNumber("processBytesFull", BootBenchmark.Median(samples.Select(s => (double)s.Full)));
                json.WriteEndObject();
            }
            if (peer.Count > 0)
                foreach ((string name, Func<Sample, Way> of) in s_ways)
                    json.WriteNumber($"{name}TimesQemu", Math.Round(Seconds(peer, of) / Seconds(own, of), 3));
            json.WriteNumber("heldWhenFullBytes", Held(own));
            json.WriteNumber("heldWhenFullOfExpected", Math.Round(Share(own), 4));
            json.WriteStartObject("idle");
            json.WriteNumber("seconds", IdleSeconds);
            json.WriteNumber("heldBytes", with.Held);
            json.WriteNumber("guestUseBytes", with.KernelUse);
            json.WriteNumber("aboveBytes", (long)(with.Held - with.KernelUse));
            json.WriteNumber("heldWithoutReportingBytes", without.Held);
            json.WriteEndObject();
            json.WriteEndObject();
        }
        output.WriteLine(System.Text.Encoding.UTF8.GetString(stream.ToArray()));
    }
}
