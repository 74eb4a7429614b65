using System.Globalization;
using System.Text;
using Aerostat.Hosting;
using Aerostat.Machine;
using Iced.Intel;
using Xunit;
using static Iced.Intel.AssemblerRegisters;

namespace Aerostat.Boot.Tests;

/// <summary>Several machines at once in one process, on both processors: each does its own work, says its own lines and ends with its own status.</summary>
public sealed class ConcurrentMachinesTests
{
    private const ushort Start = 0x7C00;
    private const int Table = 0x8000, Long = 0x7D00, Entries = 512, Steps = 20_000;
    private const uint Multiplier = 0x0019660D;

    [Fact]
    public async Task MachinesDoNotMeet()
    {
        // Different lengths, so that some end and are disposed while others still run.
        Task<string>[] runs =
        [
            RunAsync("interpreter", seed: 1, lines: 4, cpus: 1),
            RunAsync("translator", seed: 2, lines: 40, cpus: 2),
            RunAsync("interpreter", seed: 3, lines: 12, cpus: 2),
            RunAsync("translator", seed: 4, lines: 10, cpus: 1),
            RunAsync("translator", seed: 5, lines: 80, cpus: 1),
        ];
        string[] troubles = await Task.WhenAll(runs);
        Assert.All(troubles, t => Assert.Equal("", t));
    }

    /// <summary>Two machines of the same options one after the other and at once give the same: nothing is left behind in the process.</summary>
    [Theory]
    [InlineData("interpreter")]
    [InlineData("translator")]
    public async Task AMachineLeavesNothingBehind(string accelerator)
    {
        Assert.Equal("", await RunAsync(accelerator, seed: 7, lines: 5, cpus: 1));
        string[] troubles = await Task.WhenAll(RunAsync(accelerator, seed: 7, lines: 5, cpus: 1), RunAsync(accelerator, seed: 7, lines: 5, cpus: 1));
        Assert.All(troubles, t => Assert.Equal("", t));
    }

    /// <summary>Runs a machine to its end on its own; what was wrong, or nothing.</summary>
    private static async Task<string> RunAsync(string accelerator, uint seed, int lines, int cpus)
    {
        SerialTranscript console = new();
        MachineExit exit;
        MachineStatistics statistics;
        await using (VirtualMachine machine = Machines.Create(new MachineOptions
        {
            Name = $"machine{seed}",
            MemoryBytes = 16UL << 20,
            Cpus = cpus,
            Accelerator = accelerator,
            NoReboot = true,
            Serial = console.Append,
            Devices = [new DebugExitOptions()],
            Boot = new RealModeBootOptions(Program(seed, lines), Start),
        }))
        {
            await machine.StartAsync();
            exit = await machine.WaitForExitAsync(TimeSpan.FromMinutes(3));
            statistics = machine.GetStatistics();
        }
        console.Close();
        string who = $"{accelerator}, seed {seed}: ";
        if (exit.Kind != MachineExitKind.DebugExit || exit.ExitStatus != (int)((seed << 1) | 1))
            return $"{who}{exit.Kind} {exit.ExitStatus}: {exit.Report}\n{console.Text}";
        string expected = Expected(seed, lines);
        if (console.Text != expected)
            return $"{who}said\n{console.Text}instead of\n{expected}";
        bool translated = statistics.Counters.GetValueOrDefault("translated-blocks") > 0;
        return translated == (accelerator == "translator") ? "" : $"{who}translated: {translated}";
    }

    // What the program below says.
    private static string Expected(uint seed, int lines)
    {
        StringBuilder text = new();
        uint[] table = new uint[Entries];
        uint value = seed, added = seed;
        for (int line = 0; line < lines; line++)
        {
            for (int i = Steps; i > 0; i--)
            {
                value = unchecked((value * Multiplier) + added);
                ref uint entry = ref table[(value >> 8) % Entries];
                entry += value;
                value ^= entry;
            }
            added++;
            text.Append(CultureInfo.InvariantCulture, $"{value:X8}\n");
        }
        return text.ToString();
    }

    /// <summary>Real-mode code that enters long mode (Intel SDM vol. 3 section 10.8.5), fills a table with a hash that changes its own code, and prints.</summary>
    private static byte[] Program(uint seed, int lines)
    {
        byte[] image = new byte[0x400];
        Place(image, Start, 16, a =>
        {
            a.cli();
            a.xor(ax, ax);
            a.mov(ds, ax);
            a.mov(__dword_ptr[0x1000], 0x2003);
            a.mov(__dword_ptr[0x2000], 0x3003);
            a.mov(__dword_ptr[0x3000], 0x83);
            a.mov(eax, 0x20);
            a.mov(cr4, eax);
            a.mov(eax, 0x1000);
            a.mov(cr3, eax);
            a.mov(ecx, unchecked((int)0xC0000080));
            a.rdmsr();
            a.or(eax, 0x100);
            a.wrmsr();
            a.lgdt(__[Long - 0x10]);
            a.mov(eax, unchecked((int)0x80000001));
            a.mov(cr0, eax);
            // Far jump to 8:Long.
            a.db(0xEA, Long & 0xFF, Long >> 8, 8, 0);
        });
        BitConverter.TryWriteBytes(image.AsSpan(Long - 0x18 - Start), 0x00AF9B000000FFFFUL);
        BitConverter.TryWriteBytes(image.AsSpan(Long - 0x10 - Start), (ushort)15);
        BitConverter.TryWriteBytes(image.AsSpan(Long - 0x0E - Start), Long - 0x20);
        Place(image, Long, 64, a =>
        {
            Label line = a.CreateLabel(), step = a.CreateLabel(), digit = a.CreateLabel(), put = a.CreateLabel(), wait = a.CreateLabel(), below = a.CreateLabel(), changed = a.CreateLabel();
            a.mov(esp, Start);
            a.mov(ebx, seed);
            a.mov(r12d, lines);
            a.Label(ref line);
            a.mov(ecx, Steps);
            a.Label(ref step);
            a.imul(ebx, ebx, (int)Multiplier);
            // The constant in its last four bytes grows with each line.
            a.add(ebx, 0x7FFFFF00);
            a.Label(ref changed);
            a.mov(eax, ebx);
            a.shr(eax, 8);
            a.and(eax, Entries - 1);
            a.add(__dword_ptr[(rax * 4) + Table], ebx);
            a.xor(ebx, __dword_ptr[(rax * 4) + Table]);
            a.dec(ecx);
            a.jne(step);
            a.lea(rdi, __[changed]);
            a.inc(__dword_ptr[rdi - 4]);
            a.mov(ebp, 8);
            a.Label(ref digit);
            a.rol(ebx, 4);
            a.mov(eax, ebx);
            a.and(eax, 15);
            a.add(al, 0x30);
            a.cmp(al, 0x39);
            a.jbe(below);
            a.add(al, 7);
            a.Label(ref below);
            a.call(put);
            a.dec(ebp);
            a.jne(digit);
            a.mov(al, 10);
            a.call(put);
            a.dec(r12d);
            a.jne(line);
            a.mov(al, (byte)seed);
            a.@out(0xF4, al);
            a.hlt();
            a.Label(ref put);
            a.mov(ah, al);
            a.mov(edx, 0x3FD);
            a.Label(ref wait);
            a.@in(al, dx);
            a.test(al, 0x20);
            a.je(wait);
            a.mov(edx, 0x3F8);
            a.mov(al, ah);
            a.@out(dx, al);
            a.ret();
        });
        // The constant starts as the seed.
        int constant = image.AsSpan().IndexOf((ReadOnlySpan<byte>)[0x00, 0xFF, 0xFF, 0x7F]);
        BitConverter.TryWriteBytes(image.AsSpan(constant), seed);
        return image;
    }

    private static void Place(byte[] image, int at, int bits, Action<Assembler> body)
    {
        var a = new Assembler(bits);
        body(a);
        using MemoryStream stream = new();
        a.Assemble(new StreamCodeWriter(stream), (ulong)at);
        stream.ToArray().CopyTo(image, at - Start);
    }
}
