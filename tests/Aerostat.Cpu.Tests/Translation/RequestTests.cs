using Aerostat.Processors;
using Iced.Intel;
using Xunit;
using static Iced.Intel.AssemblerRegisters;

namespace Aerostat.Cpu.Tests;

/// <summary>Requests that come in while the vCPU is in the middle of something else.</summary>
public sealed class RequestTests
{
    /// <summary>
    /// The loop goes through the jump table, since its flags may be live; the table is made after the block, that is after the kick has exchanged those there were.
    /// </summary>
    [Fact]
    public async Task AKickDuringTheFirstTranslationIsSeen()
    {
        Kicker kicker = new();
        using TestMachine m = new(TestMode.Long, hypervisor: memory => new TranslatorHypervisor(memory, threshold: 0, kicker));
        kicker.Processor = m.Processor;
        ulong code = m.Assemble(a =>
        {
            Label loop = a.CreateLabel();
            a.Label(ref loop);
            a.inc(eax);
            a.jmp(loop);
        });
        m.Enter(0, code);
        m.Processor.SetState(m.State);
        Task<ProcessorExit> run = Task.Run(() => m.Processor.Run(m.Handler), TestContext.Current.CancellationToken);
        try
        {
            Assert.Equal(ExitReason.Interrupted, (await run.WaitAsync(TimeSpan.FromSeconds(60), TestContext.Current.CancellationToken)).Reason);
            Assert.Equal(1, kicker.Kicks);
        }
        finally
        {
            // Memory must not go while the vCPU runs.
            m.Processor.Kick();
            await run;
        }
    }

    private sealed class Kicker : IBlockObserver
    {
        public IVirtualProcessor? Processor { get; set; }

        public int Kicks { get; private set; }

        public void Translated(BlockView block)
        {
            Kicks++;
            Processor!.Kick();
        }
    }
}
