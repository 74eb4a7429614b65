using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics.X86;
using Aerostat.X86;
using Iced.Intel;
using Xunit;
using static Iced.Intel.AssemblerRegisters;

namespace Aerostat.Cpu.Tests;

/// <summary>
/// What the translator makes of typical code, as text that is reviewed like code. After a change of the translator run this class with
/// AEROSTAT_UPDATE_GOLDEN=1 and look at the difference that version control shows.
/// </summary>
public sealed class GoldenListingTests
{
    private const string Update = "AEROSTAT_UPDATE_GOLDEN";

    private static readonly Dictionary<string, (int Cpl, int Offset, Action<Assembler> Body)> s_snippets = new()
    {
        ["load-flags-dead"] = (0, 0, a => { a.mov(rax, __[rdi + 8]); a.xor(ecx, ecx); a.int3(); }
        ),
        ["load-flags-live"] = (0, 0, a => { Label l = a.CreateLabel(); a.cmp(eax, ecx); a.mov(rdx, __[rdi + 8]); a.jb(l); a.nop(); a.Label(ref l); a.int3(); }
        ),
        ["store"] = (0, 0, a => { a.mov(__[rdi + (rcx * 4)], eax); a.xor(ecx, ecx); a.int3(); }
        ),
        ["push-pop-group"] = (0, 0, a => { a.xor(eax, eax); a.push(rbx); a.push(rbp); a.mov(rbx, __[rsp + 0x20]); a.pop(rbp); a.pop(rbx); a.ret(); }
        ),
        ["function-begin"] = (0, 0, a => { a.push(rbp); a.push(rbx); a.sub(rsp, 8); a.mov(ebx, r10d); a.cmp(r14, rbx); a.int3(); }
        ),
        ["function-end"] = (0, 0, a => { a.add(rsp, 8); a.pop(rbx); a.pop(rbp); a.ret(); }
        ),
        ["call"] = (0, 0, a => { Label f = a.CreateLabel(); a.call(f); a.int3(); a.nop(); a.Label(ref f); a.ret(); }
        ),
        ["loop-with-poll"] = (0, 0, a => { Label l = a.CreateLabel(); a.mov(ecx, 3); a.Label(ref l); a.add(eax, ecx); a.dec(ecx); a.jne(l); a.xor(eax, eax); a.int3(); }
        ),
        ["loop-with-slots"] = (0, 0, a => { Label l = a.CreateLabel(); a.Label(ref l); a.mov(rdi, __[rdi + 8]); a.dec(ecx); a.jne(l); a.xor(eax, eax); a.int3(); }
        ),
        ["jump-indirect"] = (0, 0, a => a.jmp(rax)),
        ["call-indirect-memory"] = (0, 0, a => { a.xor(eax, eax); a.call(__qword_ptr[rdi + 0x10]); a.int3(); }
        ),
        ["divide-unsigned"] = (0, 0, a => { a.div(rcx); a.int3(); }
        ),
        ["divide-signed"] = (0, 0, a => { a.idiv(__dword_ptr[rdi]); a.int3(); }
        ),
        ["sse-load-aligned"] = (3, 0, a => { a.movaps(xmm0, __[rdi]); a.addps(xmm0, xmm1); a.movups(__[rdi + 0x20], xmm0); a.xor(eax, eax); a.int3(); }
        ),
        ["high-byte"] = (0, 0, a => { a.mov(ah, cl); a.add(bl, ah); a.mov(dh, __[rdi]); a.xor(eax, eax); a.int3(); }
        ),
        ["memory-registers"] = (0, 0, a => { a.add(r10, r11); a.mov(r14, __[r15 + 8]); a.xor(eax, eax); a.int3(); }
        ),
        ["segment-base"] = (0, 0, a => { a.mov(rax, __qword_ptr.gs[0x28]); a.xor(ecx, ecx); a.int3(); }
        ),
        ["locked"] = (0, 0, a => { a.@lock.xadd(__[rdi], eax); a.xor(ecx, ecx); a.int3(); }
        ),
        ["interpreted"] = (0, 0, a => { a.mov(eax, 1); a.rdtsc(); a.mov(ecx, eax); a.int3(); }
        ),
        ["cpuid"] = (0, 0, a => { a.mov(eax, 1); a.cpuid(); a.mov(ecx, eax); a.int3(); }
        ),
        ["repeat-store"] = (0, 0, a => { a.rep.stosq(); a.xor(ecx, ecx); a.int3(); }
        ),
        ["repeat-move"] = (0, 0, a => { a.xor(eax, eax); a.rep.movsb(); a.int3(); }
        ),
        ["stac-smap"] = (0, 0, a => { a.xor(eax, eax); a.stac(); a.int3(); }
        ),
        ["clac"] = (0, 0, a => { a.clac(); a.xor(eax, eax); a.int3(); }
        ),
        ["read-control"] = (0, 0, a => { a.mov(rax, cr3); a.mov(r10, cr0); a.xor(eax, eax); a.int3(); }
        ),
        ["syscall"] = (3, 0, a => { a.mov(eax, 39); a.syscall(); a.int3(); }
        ),
        ["sysret"] = (0, 0, a => { a.swapgs(); a.sysretq(); }
        ),
        ["end-of-page"] = (0, 0xFFA, a => { a.mov(eax, 1); a.mov(ecx, 2); a.int3(); }
        ),
    };

    public static TheoryData<string> Names => [.. s_snippets.Keys];

    [Theory]
    [MemberData(nameof(Names))]
    public void EmittedCodeIsWhatWasReviewed(string name)
    {
        if (!Bmi2.IsSupported)
            Assert.Skip("the listings are those of a host with BMI2");
        (int cpl, int offset, Action<Assembler> body) = s_snippets[name];
        Collector collector = new();
        using (TestMachine m = new(TestMode.Long, hypervisor: memory => new TranslatorHypervisor(memory, threshold: 0, collector)))
        {
            ulong code = m.Assemble(body, offset, user: cpl == 3);
            collector.Address = code;
            m.State.Gpr[7] = TestMachine.Data;
            m.State.Gpr[15] = TestMachine.Data;
            // Wherever the guest ends up: only what was made of its first block counts.
            m.Processor.Kick();
            m.Enter(cpl, code);
            if (name.EndsWith("-smap", StringComparison.Ordinal))
                m.State.Cr4 |= Cr4.Smap;
            m.Processor.SetState(m.State);
            for (int i = 0; i < 3 && collector.Text.Length == 0; i++)
                m.Processor.Run(m.Handler);
        }
        string actual = collector.Text, path = Path.Combine(Folder(), $"{name}.txt");
        Assert.NotEmpty(actual);
        if (Environment.GetEnvironmentVariable(Update) == "1")
        {
            Directory.CreateDirectory(Folder());
            File.WriteAllText(path, actual);
            return;
        }
        string expected = File.Exists(path) ? File.ReadAllText(path) : "";
        if (expected != actual)
            Assert.Fail($"{name}: the emitted code has changed. If that was meant, run this class with {Update}=1 and review the difference.\n{Difference(expected, actual)}");
    }

    /// <summary>A listing without a snippet is left over.</summary>
    [Fact]
    public void EveryListingHasASnippet() =>
        Assert.Empty(Directory.EnumerateFiles(Directory.CreateDirectory(Folder()).FullName, "*.txt").Select(f => Path.GetFileNameWithoutExtension(f)).Except(s_snippets.Keys));

    private static string Folder([CallerFilePath] string here = "") => Path.Combine(Path.GetDirectoryName(here)!, "..", "Golden");

    // Lines that only one of them has, in order; enough to see what happened.
    private static string Difference(string expected, string actual)
    {
        string[] was = expected.Split('\n'), now = actual.Split('\n');
        int first = 0;
        while (first < was.Length && first < now.Length && was[first] == now[first])
            first++;
        int last = 0;
        while (last < was.Length - first && last < now.Length - first && was[^(last + 1)] == now[^(last + 1)])
            last++;
        return string.Join('\n', [.. was[first..^last].Select(l => "- " + l), .. now[first..^last].Select(l => "+ " + l)]);
    }

    private sealed class Collector : IBlockObserver
    {
        private readonly BlockListing listing = new();

        public ulong Address { get; set; }

        public string Text { get; private set; } = "";

        public void Translated(BlockView block)
        {
            if (block.Linear != Address || Text.Length != 0)
                return;
            using StringWriter writer = new() { NewLine = "\n" };
            listing.Write(writer, block, header: false);
            Text = writer.ToString();
        }
    }
}
