using System.Globalization;
using Aerostat.Memory;
using Aerostat.Processors;
using Aerostat.X86;
using Xunit;

namespace Aerostat.Cpu.Tests;

/// <summary>
/// A guest that executes noise: random bytes, descriptor tables, page tables and control registers in every mode. Nothing of it may
/// throw, hang or reach beyond guest memory (a stray access would hit the unmapped surroundings and end the test process).
/// AEROSTAT_FUZZ_SECONDS lengthens the run, AEROSTAT_SEED picks the first seed; <see cref="CaseStore"/> keeps those that failed.
/// </summary>
public sealed unsafe class HostileGuestTests
{
    private const int MemoryBytes = 1 << 20, StepsPerGuest = 600;

    // First bytes worth trying more often than chance: prefixes, two- and three-byte maps, system groups, far transfers, strings, x87.
    private static readonly byte[] Favoured =
    [
        0x0F, 0x0F, 0x0F, 0x66, 0xF2, 0xF3, 0xF0, 0x48, 0x4C, 0x41, 0x67, 0x26, 0x2E, 0x36, 0x64, 0x65, 0x8E, 0x8C, 0x9A, 0xEA, 0xCA, 0xCB,
        0xCD, 0xCF, 0xC4, 0xC5, 0x62, 0xA4, 0xA5, 0xAA, 0xAB, 0xA6, 0xAE, 0x6C, 0x6E, 0x6D, 0x6F, 0xE4, 0xEC, 0xEE, 0xFF, 0xF7, 0xD8, 0xDB, 0xDD, 0xDF, 0xC8,
    ];

    [Fact]
    public void Noise_never_escapes()
    {
        int seconds = int.TryParse(Environment.GetEnvironmentVariable("AEROSTAT_FUZZ_SECONDS"), out int s) ? s : 0;
        int first = int.TryParse(Environment.GetEnvironmentVariable("AEROSTAT_SEED"), out int f) ? f : 1;
        long end = Environment.TickCount64 + (seconds * 1000L);
        foreach ((_, string line) in CaseStore.Default.Lines("noise"))
            RunGuest(int.Parse(line, CultureInfo.InvariantCulture));
        for (int seed = first; seed < first + 1500 || Environment.TickCount64 < end; seed++)
        {
            try
            {
                RunGuest(seed);
            }
            catch (Exception e)
            {
                Assert.Fail($"seed {seed}, {CaseStore.Default.Save("noise", seed.ToString(CultureInfo.InvariantCulture), e.Message)}: {e}");
            }
        }
    }

    private static void RunGuest(int seed)
    {
        var random = new Random(seed);
        using var memory = new GuestMemory(
            new MemoryRegion(new GuestAddress(0), MemoryBytes / 2, "low"),
            new MemoryRegion(new GuestAddress(MemoryBytes), MemoryBytes / 2, "after a hole"));
        using var hypervisor = new InterpreterHypervisor(memory);
        var processor = (SoftwareProcessor)hypervisor.CreateProcessor(new VirtualProcessorOptions
        {
            Index = 0,
            Count = 1,
            Cpuid = CpuModels.CreateCpuid(random.Next(2) == 0 ? "max" : CpuModels.Default, 0, 1, "none"),
            Clock = TimeProvider.System,
        });
        Fill(memory, random);
        processor.SetState(RandomState(processor, random));
        var handler = new NoisyHandler(random);
        for (int i = 0; i < StepsPerGuest; i++)
        {
            if (random.Next(50) == 0)
                Disturb(processor, random);
            ProcessorExit? exit = processor.Interpreter.RunOne(handler);
            if (exit is { Reason: ExitReason.Shutdown or ExitReason.Halted or ExitReason.WaitForStartup })
            {
                processor.SetState(RandomState(processor, random));
                continue;
            }
            if (i % 100 == 99)
            {
                // Also through decoded blocks, until the kick.
                processor.Kick();
                processor.Run(handler);
            }
        }
        ProcessorState after = processor.GetState();
        processor.SetState(after);
    }

    private static void Fill(GuestMemory memory, Random random)
    {
        byte[] bytes = new byte[MemoryBytes / 2];
        random.NextBytes(bytes);
        for (int i = 0; i < bytes.Length; i += random.Next(1, 12))
            bytes[i] = Favoured[random.Next(Favoured.Length)];
        // Page tables of sorts: entries that are present and point into memory, in the first 64 KiB.
        for (int i = 0; i < 0x10000; i += 8)
            if (random.Next(8) != 0)
                BitConverter.TryWriteBytes(bytes.AsSpan(i), ((ulong)random.Next(0, 0x18) << 12) | 7 | ((ulong)random.Next(0, 256) << 3 & 0x1F8) | (random.Next(30) == 0 ? 1UL << 63 : 0));
        // Descriptors of sorts at 64 KiB, interrupt gates at 68 KiB.
        for (int i = 0x10000; i < 0x12000; i += 8)
            if (random.Next(4) != 0)
                BitConverter.TryWriteBytes(bytes.AsSpan(i), 0x00CF_0000_0000_FFFFUL | ((ulong)(0x80 | random.Next(0x80)) << 40) | ((ulong)random.Next(16) << 52));
        memory.Write(new GuestAddress(0), bytes);
        memory.Write(new GuestAddress(MemoryBytes), bytes);
    }

    private static ProcessorState RandomState(SoftwareProcessor processor, Random random)
    {
        processor.Reset();
        ProcessorState state = processor.GetState();
        for (int i = 0; i < 16; i++)
            state.Gpr[i] = Value(random);
        state.Rip = (ulong)random.Next(0x12000, MemoryBytes / 2);
        state.Rflags = 2 | ((uint)random.Next() & 0x3C7ED5);
        state.Gdtr = new DescriptorTableState(0x10000, (ushort)random.Next(0x2000));
        state.Idtr = new DescriptorTableState(0x11000, (ushort)random.Next(0x1000));
        state.Cr3 = (ulong)random.Next(0, 16) << 12;
        state.Dr[7] = random.Next(4) == 0 ? ((ulong)random.NextInt64() & 0xFFFF_03FF) | 0x400 : 0x400;
        for (int i = 0; i < 4; i++)
            state.Dr[i] = Value(random);
        ulong cr4 = (ulong)random.NextInt64() & (Cr4.Pse | Cr4.Pge | Cr4.OsFxsr | Cr4.OsXmmExcpt | Cr4.FsGsBase | Cr4.OsXsave | Cr4.Smep | Cr4.Smap | Cr4.De | Cr4.Tsd);
        ulong cr0 = Cr0.Et | ((ulong)random.NextInt64() & (Cr0.Mp | Cr0.Em | Cr0.Ts | Cr0.Ne | Cr0.Wp | Cr0.Am));
        if (random.Next(3) != 0)
            cr0 &= ~(Cr0.Em | Cr0.Ts);
        uint attributes;
        switch (random.Next(5))
        {
            case 0: // real mode
                attributes = 0x9B;
                break;
            case 1: // 16-bit protected mode
                cr0 |= Cr0.Pe;
                attributes = 0x809B;
                break;
            case 2: // 32-bit, perhaps with 32-bit paging
                cr0 |= Cr0.Pe | (random.Next(2) == 0 ? Cr0.Pg : 0);
                attributes = 0xC09B;
                break;
            case 3: // 32-bit with PAE
                cr0 |= Cr0.Pe | Cr0.Pg;
                cr4 |= Cr4.Pae;
                attributes = 0xC09B;
                state.Efer = random.Next(2) == 0 ? Efer.Nxe : 0;
                break;
            default:
                cr0 |= Cr0.Pe | Cr0.Pg;
                cr4 |= Cr4.Pae;
                attributes = 0xA09B;
                state.Efer = Efer.Lme | Efer.Lma | Efer.Sce | (random.Next(2) == 0 ? Efer.Nxe : 0);
                break;
        }
        state.Cr0 = cr0;
        state.Cr4 = cr4;
        uint dpl = (cr0 & Cr0.Pe) != 0 && random.Next(3) == 0 ? 3u : 0;
        for (int i = 0; i < 6; i++)
            state.Segments[i] = new SegmentState((ushort)((uint)(random.Next(64) * 8) | dpl), random.Next(3) == 0 ? (ulong)random.Next(MemoryBytes) : 0, random.Next(3) == 0 ? (uint)random.Next() : uint.MaxValue, 0xC093 | dpl << 5);
        state.Segments[1] = new SegmentState((ushort)(8 | dpl), 0, uint.MaxValue, attributes | dpl << 5);
        state.Tr = new SegmentState(0x28, (ulong)random.Next(MemoryBytes), (uint)random.Next(0x2000), 0x8B);
        random.NextBytes(state.Xsave.AsSpan(0, 512));
        // MXCSR and XSTATE_BV are kept legal: SetState is called by the host, not by the guest.
        BitConverter.TryWriteBytes(state.Xsave.AsSpan(24), random.Next(0x10000));
        state.Activity = ActivityState.Running;
        return state;
    }

    private static ulong Value(Random random) => random.Next(6) switch
    {
        0 => (ulong)random.Next(MemoryBytes),
        1 => (ulong)random.Next(16),
        2 => (ulong)random.NextInt64(long.MinValue, long.MaxValue),
        3 => ulong.MaxValue - (ulong)random.Next(16),
        4 => (uint)random.Next() * 2UL,
        _ => 0xFFFUL + ((ulong)random.Next(128) << 12) - (ulong)random.Next(8),
    };

    private static void Disturb(SoftwareProcessor processor, Random random)
    {
        switch (random.Next(4))
        {
            case 0: processor.RaiseNmi(); break;
            case 1: processor.SetInterruptRequest(true); break;
            case 2: processor.SetInterruptRequest(false); break;
            default: processor.Interpreter.FlushTlb(); break;
        }
    }

    private sealed class NoisyHandler(Random random) : IExitHandler
    {
        public ulong TaskPriority { get; set; }

        public bool LocalApicEnabled => true;

        public bool LeaveRequested => random.Next(1000) == 0;

        public int AcknowledgeInterrupt() => random.Next(-1, 256);

        public bool Hypercall(IVirtualProcessor processor, Span<ulong> registers) => random.Next(2) == 0;

        public ulong ReadMmio(ulong address, int size)
        {
            Assert.Contains(size, (int[])[1, 2, 4, 8]);
            return (ulong)random.NextInt64();
        }

        public bool ReadMsr(uint index, out ulong value)
        {
            value = (ulong)random.NextInt64();
            return random.Next(2) == 0;
        }

        public uint ReadPort(ushort port, int size)
        {
            Assert.Contains(size, (int[])[1, 2, 4]);
            return (uint)random.NextInt64();
        }

        public void WriteMmio(ulong address, int size, ulong value) => Assert.Contains(size, (int[])[1, 2, 4, 8]);

        public bool WriteMsr(uint index, ulong value) => random.Next(2) == 0;

        public void WritePort(ushort port, int size, uint value) => Assert.Contains(size, (int[])[1, 2, 4]);
    }
}
