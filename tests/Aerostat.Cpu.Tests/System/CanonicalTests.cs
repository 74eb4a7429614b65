using Aerostat.Memory;
using Aerostat.Processors;
using Aerostat.X86;
using Iced.Intel;
using Xunit;
using static Iced.Intel.AssemblerRegisters;

namespace Aerostat.Cpu.Tests;

/// <summary>
/// Where an address must be canonical, besides operands in memory (<see cref="TlbTests"/>), far transfers and IRET: Intel SDM vol. 1 section 3.3.7.1; and
/// five-level paging, which moves the border.
/// </summary>
public class CanonicalTests : ProcessorTests
{
    private const ulong Above = 0x0000_8000_0000_0000, Above5 = 1UL << 56;

    private static readonly (string Name, Action<Assembler> Code)[] s_branches =
    [
        ("jmp", a => a.jmp(rax)), ("call", a => a.call(rax)), ("jmp m", a => a.jmp(__qword_ptr[rbx])), ("call m", a => a.call(__qword_ptr[rbx])),
        ("ret", a => a.ret()), ("ret n", a => a.ret(16)),
    ];

    public static TheoryData<string> Branches => [.. s_branches.Select(b => b.Name)];

    /// <summary>A branch to nowhere faults where it stands, with the stack as it was.</summary>
    [Theory]
    [MemberData(nameof(Branches))]
    public void NearBranches(string name)
    {
        Action<Assembler> branch = s_branches.Single(b => b.Name == name).Code;
        foreach ((TestMode mode, ulong target, int vector) in ((TestMode, ulong, int)[])
            [
                (TestMode.Long, Above, Vector.GeneralProtection), (TestMode.Long, ~Above, Vector.GeneralProtection), (TestMode.Long, 1UL << 63, Vector.GeneralProtection),
                (TestMode.Long5, Above5, Vector.GeneralProtection), (TestMode.Long5, ~Above5, Vector.GeneralProtection), (TestMode.Long5, Above, Vector.PageFault),
            ])
        {
            using TestMachine m = Machine(mode);
            m.State.Gpr[0] = target;
            m.State.Gpr[3] = TestMachine.Data;
            m.Memory.Write(new GuestAddress(TestMachine.Data), target);
            ulong code = m.Assemble(a =>
            {
                a.mov(rcx, rsp);
                if (name.StartsWith("ret", StringComparison.Ordinal))
                    a.push(rax);
                a.mov(rdx, rsp);
                branch(a);
            });
            TestResult r = m.Run(0, code);
            Assert.Equal((vector, 0UL), (r.Vector, vector == Vector.PageFault ? r.Error & 7 : r.Error));
            ulong at = code + 6 + (name.StartsWith("ret", StringComparison.Ordinal) ? 1UL : 0);
            if (vector == Vector.PageFault)
                Assert.Equal((target, target), (r.Rip, r.State.Cr2));
            else
                Assert.Equal((at, r.State.Gpr[2]), (r.Rip, r.Rsp));
        }
    }

    /// <summary>Going on past the last address below the hole.</summary>
    [Fact]
    public void FallingOffTheEdge()
    {
        using TestMachine m = Machine(TestMode.Long);
        m.Tables.Map(Above - 0x1000, TestMachine.FreeGpa, 0x1000, PageTableEntry.W);
        m.Memory.Write(new GuestAddress(TestMachine.FreeGpa + 0xFFE), [0x90, 0x90]);
        TestResult r = m.Run(0, Above - 2);
        Assert.Equal((Vector.GeneralProtection, 0UL, Above), (r.Vector, r.Error, r.Rip));
    }

    private static SystemGuest Msr(SystemGuest g, uint index, ulong value) => g.Run(a =>
    {
        a.mov(ecx, (int)index);
        a.mov(eax, (int)(uint)value);
        a.mov(edx, (int)(value >> 32));
        a.wrmsr();
    });

    /// <summary>Registers that hold addresses take what the processor has bits for, whatever the paging mode.</summary>
    [Theory]
    [InlineData("aerostat-v2-1", 47)]
    [InlineData("max", 56)]
    public void RegistersWithAddresses(string model, int top)
    {
        using SystemGuest g = Guest(GuestMode.Long, model);
        foreach (uint index in (uint[])[X86.Msr.FsBase, X86.Msr.GsBase, X86.Msr.KernelGsBase, X86.Msr.Lstar, X86.Msr.Cstar, X86.Msr.SysenterEsp, X86.Msr.SysenterEip])
        {
            for (int bit = 47; bit < 64; bit++)
            {
                Assert.Equal((index, bit, bit < top ? -1 : Vector.GeneralProtection), (index, bit, Msr(g, index, 1UL << bit).Stopped));
                ulong negative = ulong.MaxValue << bit;
                Assert.Equal((index, bit, bit <= top ? -1 : Vector.GeneralProtection), (index, bit, Msr(g, index, negative).Stopped));
            }
        }
        foreach (Action<Assembler> code in (Action<Assembler>[])
            [a => a.wrfsbase(rax), a => a.wrgsbase(rax), a => a.lgdt(__[SystemGuest.Data]), a => a.lidt(__[SystemGuest.Data])])
        {
            foreach (int bit in (int[])[top, 62, 63])
            {
                g.State.Gpr[0] = 1UL << bit;
                g.Memory.Write(new GuestAddress(SystemGuest.Data), (ushort)0xFFF);
                g.Memory.Write(new GuestAddress(SystemGuest.Data + 2), 1UL << bit);
                g.Run(code).Raised(Vector.GeneralProtection);
            }
        }
    }

    /// <summary>SYSRET and SYSEXIT fault in the kernel; INVLPG of an address that is none does nothing.</summary>
    [Fact]
    public void ReturnsToUserCode()
    {
        using SystemGuest g = Guest(GuestMode.Long);
        g.State.Msrs[X86.Msr.SysenterCs] = SystemGuest.Code64;
        foreach ((int register, Action<Assembler> code) in ((int, Action<Assembler>)[])[(1, a => a.sysretq()), (1, a => a.sysexitq()), (2, a => a.sysexitq())])
        {
            g.State.Gpr[1] = g.State.Gpr[2] = 0x1000;
            g.State.Gpr[register] = Above;
            g.Run(code).Raised(Vector.GeneralProtection);
            Assert.Equal((SystemGuest.Code, SystemGuest.Code64), ((uint)g.Frame[0], (ushort)g.Frame[1]));
        }
        g.State.Gpr[3] = Above;
        g.Run(a => a.invlpg(__[rbx])).Ended();
    }

    /// <summary>A gate that leads nowhere is #GP, a stack that is nowhere #SS; both with the external bit unless an INT asked.</summary>
    [Fact]
    public void GatesAndTheirStacks()
    {
        using SystemGuest g = Guest(GuestMode.Long);
        g.WriteGate(Vector.Breakpoint, SystemGuest.Code64, Above, dpl: 3);
        g.WriteGate(Vector.InvalidOpcode, SystemGuest.Code64, Above);
        g.Run(a => a.int3()).Raised(Vector.GeneralProtection, 0);
        g.Run(a => a.ud2()).Raised(Vector.GeneralProtection, 1);
        g.Memory.Write(new GuestAddress(SystemGuest.Tss + 4), Above + 0x1000);
        g.Memory.Write(new GuestAddress(SystemGuest.Tss + 0x2C), Above + 0x1000);
        g.WriteGate(Vector.StackFault, SystemGuest.Code64, SystemGuest.Handlers + (Vector.StackFault * 16), ist: 1);
        g.WriteGate(Vector.InvalidOpcode, SystemGuest.Code64, SystemGuest.Handlers, ist: 2);
        g.WriteGate(Vector.Overflow, SystemGuest.Code64, SystemGuest.Handlers, dpl: 3);
        g.Run(a => a.ud2()).Raised(Vector.StackFault, 1);
        g.AsUser();
        g.Run(a => a.@int(4)).Raised(Vector.StackFault, 0);
    }

    /// <summary>Five levels are switched on with paging off, and not in long mode; bits 48 to 56 then count.</summary>
    [Fact]
    public void FiveLevelPaging()
    {
        const uint Top = SystemGuest.PageTables + 0x8000;
        using SystemGuest g = Guest(GuestMode.Protected32);
        g.Memory.Write(new GuestAddress(Top), (ulong)SystemGuest.PageTables | 3);
        g.Memory.Write(new GuestAddress(Top + (0x81 * 8)), (ulong)SystemGuest.PageTables | 3);
        g.Memory.Write(new GuestAddress(SystemGuest.Data), 0x1122_3344_5566_7788UL);
        g.Place(SystemGuest.UserCode, 64, a =>
        {
            a.mov(rbx, (0x81UL << 48) + SystemGuest.Data);
            a.mov(rcx, __qword_ptr[rbx]);
            a.mov(rax, cr4);
            a.and(eax, ~(int)Cr4.La57);
            a.mov(cr4, rax);
            a.hlt();
        });
        g.WriteGate(Vector.GeneralProtection, SystemGuest.Code64, SystemGuest.Handlers + (Vector.GeneralProtection * 16));
        // The long-mode form of that one gate: the others are not used.
        g.Memory.Write(new GuestAddress(SystemGuest.Idt + (Vector.GeneralProtection * 16)), g.Memory.Read<ulong>(new GuestAddress(SystemGuest.Idt + (Vector.GeneralProtection * 8))));
        g.Memory.Write(new GuestAddress(SystemGuest.Idt + (Vector.GeneralProtection * 16) + 8), 0UL);
        g.Run(a =>
        {
            a.mov(eax, (int)(Cr4.Pae | Cr4.La57));
            a.mov(cr4, eax);
            a.mov(eax, (int)Top);
            a.mov(cr3, eax);
            a.mov(ecx, unchecked((int)X86.Msr.Efer));
            a.mov(eax, (int)Efer.Lme);
            a.xor(edx, edx);
            a.wrmsr();
            a.mov(eax, unchecked((int)(Cr0.Pe | Cr0.Pg)));
            a.mov(cr0, eax);
            a.jmp(SystemGuest.Code64, SystemGuest.UserCode);
        }).Raised(Vector.GeneralProtection);
        Assert.Equal((0x1122_3344_5566_7788UL, Cr4.La57), (g.Result.Gpr[1], g.Result.Cr4 & Cr4.La57));
    }
}

/// <summary>The same through the translator.</summary>
public sealed class TranslatedCanonicalTests : CanonicalTests
{
    private protected override bool Translated => true;
}
