using Aerostat.Memory;
using Aerostat.Processors;
using Aerostat.X86;
using Iced.Intel;
using Xunit;
using static Iced.Intel.AssemblerRegisters;

namespace Aerostat.Cpu.Tests;

/// <summary>Split locks (Intel SDM vol. 3 section 9.1.2), alignment checks (section 7.15), and machine-check banks (chapter 16).</summary>
public class LockAndMachineCheckTests : ProcessorTests
{
    private const uint CoreCapabilities = 0xCF, TestControl = 0x33, DebugControl = 0x1D9;

    private static readonly Action<Assembler>[] s_locked =
    [
        a => a.@lock.add(__dword_ptr[rbx], 5), a => a.xchg(__dword_ptr[rbx], ecx), a => a.@lock.xadd(__dword_ptr[rbx], ecx), a => a.@lock.cmpxchg8b(__qword_ptr[rbx]),
        a => a.@lock.inc(__qword_ptr[rbx]), a => a.@lock.bts(__word_ptr[rbx], 3),
    ];

    /// <summary>A locked access across a cache line or a page is made, and raises nothing.</summary>
    [Theory]
    [InlineData(0x3D)]
    [InlineData(0x3F)]
    [InlineData(0xFFD)]
    [InlineData(0xFFF)]
    public void SplitLocksAreMade(int at)
    {
        foreach (bool user in (bool[])[false, true])
        {
            using SystemGuest g = Guest(GuestMode.Long);
            if (user)
                g.AsUser();
            GuestAddress address = new(SystemGuest.Data + (ulong)at);
            g.State.Gpr[3] = address.Value;
            g.Memory.Write(address, 0x0102_0304_0506_0708UL);
            g.Run(a =>
            {
                a.@lock.add(__dword_ptr[rbx], 0x10);
                a.mov(ecx, 0x1111_1111);
                a.@lock.xadd(__dword_ptr[rbx + 4], ecx);
                a.mov(edx, 0x2222_2222);
                a.xchg(__word_ptr[rbx + 2], dx);
                a.ud2();
            }).Raised(Vector.InvalidOpcode);
            Assert.Equal((0x1213_1415_2222_0718UL, 0x0102_0304UL, 0x2222_0506UL), (g.Memory.Read<ulong>(address), g.Result.Gpr[1], g.Result.Gpr[2]));
        }
    }

    /// <summary>#AC needs all of CR0.AM, RFLAGS.AC and privilege level 3, and is the same for locked accesses.</summary>
    [Theory]
    [InlineData(true, true, true)]
    [InlineData(false, true, true)]
    [InlineData(true, false, true)]
    [InlineData(true, true, false)]
    public void AlignmentChecks(bool mask, bool flag, bool user)
    {
        foreach (Action<Assembler> code in (Action<Assembler>[])[.. s_locked, a => a.mov(eax, __dword_ptr[rbx]), a => a.mov(__word_ptr[rbx], ax)])
        {
            using SystemGuest g = Guest(GuestMode.Long);
            if (user)
                g.AsUser();
            g.State.Gpr[3] = SystemGuest.Data + 0x3D;
            g.State.Cr0 |= mask ? Cr0.Am : 0;
            g.State.Rflags |= flag ? RFlags.Ac : 0;
            g.Run(a =>
            {
                code(a);
                a.int3();
            }).Raised(mask && flag && user ? Vector.AlignmentCheck : Vector.Breakpoint);
            // Aligned ones are good.
            g.State.Gpr[3] = SystemGuest.Data + 0x38;
            g.Run().Raised(Vector.Breakpoint);
        }
    }

    /// <summary>Neither of the ways to forbid split locks is offered, nor does it exist.</summary>
    [Fact]
    public void SplitLockDetectionIsNotThere()
    {
        foreach ((string model, _) in CpuModels.All)
        {
            if (!CpuModels.RunsOnHost(model))
                continue;
            CpuidTable table = CpuModels.CreateCpuid(model, 0, 1, "none");
            Assert.Equal((0u, 0u), (table.Get(7, 0).Edx >> 30 & 1, table.Get(7, 0).Ecx >> 24 & 1));
            using SystemGuest g = Guest(GuestMode.Long, model);
            foreach (uint index in (uint[])[CoreCapabilities, TestControl])
            {
                g.State.Gpr[1] = index;
                g.Run(a => a.rdmsr()).Raised(Vector.GeneralProtection);
                g.Run(a => a.wrmsr()).Raised(Vector.GeneralProtection);
            }
            g.State.Gpr[1] = DebugControl;
            g.State.Gpr[0] = 1 << 2;
            g.Run(a => a.wrmsr()).Raised(Vector.GeneralProtection);
        }
    }

    private static int Write(SystemGuest g, uint index, ulong value) => g.Run(a =>
    {
        a.mov(ecx, (int)index);
        a.mov(eax, (int)(uint)value);
        a.mov(edx, (int)(value >> 32));
        a.wrmsr();
        a.rdmsr();
    }).Stopped;

    /// <summary>Four banks, in which nothing is ever found; the next one is not there.</summary>
    [Fact]
    public void MachineCheckBanksAreEmpty()
    {
        using SystemGuest g = Guest(GuestMode.Long);
        g.State.Gpr[1] = Msr.McgCap;
        Assert.Equal(4UL, g.Run(a => a.rdmsr()).Ended().Rax);
        for (uint i = 0; i < 4 * 4; i++)
        {
            g.State.Gpr[1] = Msr.Mc0Ctl + i;
            g.State.Gpr[0] = g.State.Gpr[2] = 0xAAAA;
            g.Run(a => a.rdmsr()).Ended();
            Assert.Equal((0UL, 0UL), (g.Rax, g.Result.Gpr[2]));
            Assert.Equal(-1, Write(g, Msr.Mc0Ctl + i, 0));
            // What an error could be enabled by and described with keeps what is written; the status takes nothing but zero.
            bool status = i % 4 == 1, control = i % 4 == 0;
            Assert.Equal(status ? Vector.GeneralProtection : -1, Write(g, Msr.Mc0Ctl + i, ulong.MaxValue));
            if (!status)
                Assert.Equal((uint.MaxValue, uint.MaxValue), ((uint)g.Rax, (uint)g.Result.Gpr[2]));
            Assert.Equal(status || control ? Vector.GeneralProtection : -1, Write(g, Msr.Mc0Ctl + i, 1UL << 50));
        }
        for (uint i = 16; i < 32 * 4; i++)
        {
            g.State.Gpr[1] = Msr.Mc0Ctl + i;
            g.Run(a => a.rdmsr()).Raised(Vector.GeneralProtection);
            Assert.Equal(Vector.GeneralProtection, Write(g, Msr.Mc0Ctl + i, 0));
        }
    }

    [Fact]
    public void MachineCheckBanksAreSavedAndReset()
    {
        using SystemGuest g = Guest(GuestMode.Long);
        Assert.Equal(-1, Write(g, Msr.Mc0Ctl + 4, ulong.MaxValue));
        Assert.Equal(ulong.MaxValue, g.Result.Msrs[Msr.Mc0Ctl + 4]);
        ProcessorState s = g.Result;
        g.Processor.Reset();
        Assert.Equal(0UL, g.Processor.GetState().Msrs.GetValueOrDefault(Msr.Mc0Ctl + 4));
        g.Processor.SetState(s);
        Assert.Equal(ulong.MaxValue, g.Processor.GetState().Msrs[Msr.Mc0Ctl + 4]);
        // A state from before there were any.
        s.Msrs.Remove(Msr.Mc0Ctl + 4);
        g.Processor.SetState(s);
        Assert.Equal(0UL, g.Processor.GetState().Msrs.GetValueOrDefault(Msr.Mc0Ctl + 4));
    }
}

/// <summary>The same through the translator.</summary>
public sealed class TranslatedLockAndMachineCheckTests : LockAndMachineCheckTests
{
    private protected override bool Translated => true;
}
