using System.Globalization;
using Aerostat.Processors;
using Aerostat.X86;
using Xunit;
using static Iced.Intel.AssemblerRegisters;

namespace Aerostat.Cpu.Tests;

/// <summary>The profiler's map and the listings that a translator writes on request.</summary>
public sealed class TranslationRecorderTests : IDisposable
{
    private readonly string folder = Directory.CreateTempSubdirectory("aerostat-test-").FullName;

    public void Dispose() => Directory.Delete(folder, recursive: true);

    private string PathOf(string name) => Path.Combine(folder, name);

    private void RunGuest(TranslationRecordOptions options)
    {
        using TestMachine m = new(TestMode.Long, hypervisor: memory => new TranslatorHypervisor(memory, threshold: 0, new TranslationRecorder(options)));
        m.Assemble(a => { a.xor(eax, eax); a.int3(); }, offset: 0x100);
        ulong code = m.Assemble(a => { a.mov(ecx, 5); a.mov(eax, __[(uint)TestMachine.Data]); a.jmp(TestMachine.KernelCode + 0x1100); });
        m.Code(0x1100, 0xE9, 0xFB, 0xEF, 0xFF, 0xFF);
        Assert.Equal(Vector.Breakpoint, m.Run(0, code).Vector);
    }

    [Fact]
    public void TheMapNamesBlocksByAddress()
    {
        RunGuest(new TranslationRecordOptions { PerfMapPath = PathOf("map") });
        string[][] lines = [.. File.ReadAllLines(PathOf("map")).Select(l => l.Split(' '))];
        // The last is the exception's handler.
        Assert.Equal(
            [$"guest:0x{TestMachine.KernelCode:x}", $"guest:0x{TestMachine.KernelCode + 0x1100:x}", $"guest:0x{TestMachine.KernelCode + 0x100:x}", $"guest:0x{TestMachine.Handlers + (16 * Vector.Breakpoint):x}"],
            lines.Select(l => l[2]));
        ulong end = 0;
        foreach (string[] line in lines)
        {
            ulong start = ulong.Parse(line[0], NumberStyles.HexNumber, CultureInfo.InvariantCulture), size = ulong.Parse(line[1], NumberStyles.HexNumber, CultureInfo.InvariantCulture);
            Assert.True(start >= end && size is > 0 and < 4096);
            end = start + size;
        }
    }

    [Fact]
    public void TheMapNamesBlocksBySymbol()
    {
        File.WriteAllLines(PathOf("System.map"), ["0000000000000100 A per_cpu_start", "0000000000130000 T other", $"{TestMachine.KernelCode:x16} T below", "garbage"]);
        // Symbols below 1 MiB are offsets in per-processor data, so those of this small guest are not taken.
        RunGuest(new TranslationRecordOptions { PerfMapPath = PathOf("map"), SymbolsPath = PathOf("System.map") });
        Assert.Contains($"guest:0x{TestMachine.KernelCode:x}", File.ReadAllText(PathOf("map")), StringComparison.Ordinal);
        Assert.Equal("start", TranslationRecorder.NameOf([(0x200000, "start"), (0x200100, "next"), (0x200200, "end")], 0x200000));
        Assert.Equal("start+0xff", TranslationRecorder.NameOf([(0x200000, "start"), (0x200100, "next"), (0x200200, "end")], 0x2000FF));
        Assert.Equal("next", TranslationRecorder.NameOf([(0x200000, "start"), (0x200100, "next"), (0x200200, "end")], 0x200100));
        Assert.Equal("0x200200", TranslationRecorder.NameOf([(0x200000, "start"), (0x200100, "next"), (0x200200, "end")], 0x200200));
        Assert.Equal("0x1fffff", TranslationRecorder.NameOf([(0x200000, "start"), (0x200100, "next"), (0x200200, "end")], 0x1FFFFF));
    }

    [Fact]
    public void OnlyBlocksWithAnAddressAreListed()
    {
        RunGuest(new TranslationRecordOptions { ListingPath = PathOf("all") });
        RunGuest(new TranslationRecordOptions { ListingPath = PathOf("one"), ListedAddresses = [TestMachine.KernelCode + 5] });
        string all = File.ReadAllText(PathOf("all")), one = File.ReadAllText(PathOf("one"));
        Assert.Equal(4, all.Split("block 0x").Length - 1);
        Assert.StartsWith($"block 0x{TestMachine.KernelCode:x}, physical 0x{TestMachine.UserCode:x}, supervisor: 3 instructions", one, StringComparison.Ordinal);
        Assert.Equal(1, one.Split("block 0x").Length - 1);
        Assert.Contains("mov ecx,0x5", one, StringComparison.Ordinal);
    }
}
