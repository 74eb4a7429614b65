using System.Text;
using Aerostat.Hosting;
using Aerostat.Machine;
using Xunit;

namespace Aerostat.Cli.Tests;

public sealed class ExitBenchmarkTests
{
    [Fact]
    public void TriplesAreReadInOrder()
    {
        IReadOnlyDictionary<int, double> read = ExitBenchmark.Parse("SeaBIOS 1.16\n00000000 00000100 00000380 00000001 00001000 00000e00 ");
        Assert.Equal([0, 1], read.Keys.Order());
        Assert.Equal(0x380 / ExitKernel.TimerHz * 1e9 / 0x100, read[0], 6);
        // What is cut off or out of order does not count.
        Assert.Single(ExitBenchmark.Parse("00000000 00000100 00000380 00000002 00001000 00000e00 "));
        Assert.Empty(ExitBenchmark.Parse("00000000 00000000 00000380 00000001"));
        Assert.Empty(ExitBenchmark.Parse(""));
    }

    [Fact]
    public void LinesOfTheSuiteAreRead()
    {
        IReadOnlyDictionary<string, double> read = ExitBenchmark.ParseSuite("enabling apic\r\ncpuid 92\r\n  ipi self_ipi_sti_nop 909\nself_ipi_sti_nop 3008\nvmcall 12\nmov_dr (skipped)\ninl_from_qemu x\n", 0.5);
        Assert.Equal([("cpuid", 46.0), ("self_ipi_sti_nop", 1504.0)], read.Select(r => (r.Key, r.Value)).Order());
        Assert.Empty(ExitBenchmark.ParseSuite("", 1));
    }

    [Fact]
    public async Task TheKernelMeasuresEveryOperation()
    {
        string path = Path.GetTempFileName();
        try
        {
            await File.WriteAllBytesAsync(path, ExitKernel.Build(), TestContext.Current.CancellationToken);
            StringBuilder text = new();
            await using VirtualMachine machine = Machines.Create(new MachineOptions
            {
                MemoryBytes = 16 << 20,
                Accelerator = "interpreter",
                Boot = new KernelBootOptions(path),
                Devices = [new DebugExitOptions()],
                Serial = bytes => text.Append(Encoding.ASCII.GetString(bytes)),
            });
            await machine.StartAsync();
            Assert.Equal(MachineExitKind.DebugExit, (await machine.WaitForExitAsync(TimeSpan.FromSeconds(120))).Kind);
            IReadOnlyDictionary<int, double> read = ExitBenchmark.Parse(text.ToString());
            Assert.Equal(ExitKernel.Operations.Count, read.Count);
            Assert.All(read.Values, ns => Assert.True(ns > 0));
        }
        finally
        {
            File.Delete(path);
        }
    }
}
