using Aerostat.Memory;
using Aerostat.Processors;
using Aerostat.X86;
using Iced.Intel;
using Xunit;
using static Iced.Intel.AssemblerRegisters;

namespace Aerostat.Cpu.Tests;

/// <summary>Single steps and breakpoints (Intel SDM vol. 3 chapter 18).</summary>
public class DebugTests : ProcessorTests
{
    private const int Log = 0x1800;

    /// <summary>
    /// A #DB handler that writes RIP and DR6 of each trap to a log (R15 points at it), clears DR6 and returns; the code ends with an INT3.
    /// </summary>
    private TestMachine CreateMachine(bool setRf = false)
    {
        TestMachine m = Machine(TestMode.Long);
        m.Assemble(
            a =>
            {
                a.push(rax);
                a.mov(rax, __qword_ptr[rsp + 8]);
                a.mov(__qword_ptr[r15], rax);
                a.mov(rax, dr6);
                a.mov(__qword_ptr[r15 + 8], rax);
                a.add(r15, 16);
                a.mov(eax, 0xFFFF0FF0);
                a.mov(dr6, rax);
                if (setRf)
                    a.or(__dword_ptr[rsp + 8 + 16], (int)RFlags.Rf);
                a.pop(rax);
                a.iretq();
            },
            Log);
        m.SetGate(Vector.Debug, TestMachine.KernelCode + Log, TestMachine.KernelCs64, 0x8E, ist: 1);
        // Breakpoints on the code itself must not stop the end of the run.
        m.State.Gpr[15] = TestMachine.StackTop - 0x2000 + 0x200;
        return m;
    }

    private const ulong LogAt = TestMachine.StackTop - 0x2000 + 0x200;

    private static List<(ulong Rip, ulong Dr6)> Traps(TestMachine m, TestResult r)
    {
        var list = new List<(ulong, ulong)>();
        for (ulong at = LogAt; at < r.State.Gpr[15]; at += 16)
            list.Add((m.Memory.Read<ulong>(new GuestAddress(at)), m.Memory.Read<ulong>(new GuestAddress(at + 8)) & 0xE00F));
        return list;
    }

    /// <summary>TF traps after each instruction, and DR6 says so.</summary>
    [Theory]
    [InlineData(0)]
    [InlineData(3)]
    public void EachInstructionTraps(int cpl)
    {
        using TestMachine m = CreateMachine();
        var starts = new List<ulong>();
        ulong code = m.Assemble(a =>
        {
            Label skip = a.CreateLabel();
            a.mov(eax, 1);
            a.add(ecx, 2);
            a.push(rax);
            a.pop(rcx);
            a.jmp(skip);
            a.nop();
            a.Label(ref skip);
            a.imul(ecx, ecx, 7);
            a.cpuid();
            a.int3();
        });
        m.State.Rflags |= RFlags.Tf;
        ulong at = cpl == 3 ? TestMachine.UserCode : code;
        TestResult r = m.Run(cpl, at);
        Assert.Equal(Vector.Breakpoint, r.Vector);
        ulong[] offsets = [5, 8, 9, 10, 13, 16, 18];
        Assert.Equal(offsets.Select(o => (at + o, 0x4000UL)), Traps(m, r));
        Assert.NotEqual(0UL, r.Rflags & RFlags.Tf);
    }

    /// <summary>Each iteration of a repeated string instruction traps: in between with RIP at the instruction.</summary>
    [Fact]
    public void EachIterationTraps()
    {
        using TestMachine m = CreateMachine();
        ulong code = m.Assemble(a =>
        {
            a.rep.stosb();
            a.int3();
        });
        m.State.Gpr[1] = 3;
        m.State.Gpr[7] = TestMachine.Data;
        m.State.Rflags |= RFlags.Tf;
        TestResult r = m.Run(0, code);
        Assert.Equal([(code, 0x4000UL), (code, 0x4000UL), (code + 2, 0x4000UL)], Traps(m, r));
        Assert.Equal((0UL, TestMachine.Data + 3), (r.State.Gpr[1], r.State.Gpr[7]));
    }

    /// <summary>An instruction that faults does not trap; the fault's frame has TF.</summary>
    [Fact]
    public void AFaultIsNotAStep()
    {
        using TestMachine m = CreateMachine();
        ulong code = m.Assemble(a => a.ud2());
        m.State.Rflags |= RFlags.Tf;
        TestResult r = m.Run(0, code);
        Assert.Equal(Vector.InvalidOpcode, r.Vector);
        Assert.NotEqual(0UL, r.Rflags & RFlags.Tf);
        Assert.Empty(Traps(m, r));
    }

    /// <summary>An exception handler runs without TF.</summary>
    [Fact]
    public void HandlersRunWithoutTf()
    {
        using TestMachine m = CreateMachine();
        ulong code = m.Assemble(a => a.int3());
        m.State.Rflags |= RFlags.Tf;
        TestResult r = m.Run(0, code);
        Assert.Equal(0UL, r.State.Rflags & RFlags.Tf);
    }

    /// <summary>IRET that sets TF traps after the instruction it returns to, not before.</summary>
    [Fact]
    public void IretSettingTf()
    {
        using TestMachine m = CreateMachine();
        ulong code = m.Assemble(a =>
        {
            Label after = a.CreateLabel();
            a.mov(rax, rsp);
            a.push((int)TestMachine.KernelSs);
            a.push(rax);
            a.push((int)(RFlags.Tf | 2));
            a.push((int)TestMachine.KernelCs64);
            a.lea(rcx, __[after]);
            a.push(rcx);
            a.iretq();
            a.Label(ref after);
            a.nop();
            a.nop();
            a.int3();
        });
        TestResult r = m.Run(0, code);
        List<(ulong Rip, ulong Dr6)> traps = Traps(m, r);
        Assert.Equal(2, traps.Count);
        Assert.Equal(r.Rip - 2, traps[0].Rip);
        Assert.Equal(r.Rip - 1, traps[1].Rip);
    }

    /// <summary>MOV SS holds the trap off until the next instruction is over (Intel SDM vol. 3 section 7.8.3).</summary>
    [Fact]
    public void MovSsHoldsTheTrapOff()
    {
        using TestMachine m = CreateMachine();
        ulong code = m.Assemble(a =>
        {
            a.mov(ss, ax);
            a.nop();
            a.nop();
            a.int3();
        });
        m.State.Gpr[0] = TestMachine.KernelSs;
        m.State.Rflags |= RFlags.Tf;
        TestResult r = m.Run(0, code);
        Assert.Equal([(r.Rip - 2, 0x4000UL), (r.Rip - 1, 0x4000UL)], Traps(m, r));
    }

    /// <summary>Instruction breakpoints are faults before the instruction, and RF in the returned flags steps over them.</summary>
    [Theory]
    [InlineData(0, 2)]
    [InlineData(3, 1)]
    public void InstructionBreakpoints(int register, int enable)
    {
        using TestMachine m = CreateMachine(setRf: true);
        ulong code = m.Assemble(a =>
        {
            a.nop();
            a.inc(eax);
            a.inc(eax);
            a.int3();
        });
        m.State.Dr[register] = code + 1;
        m.State.Dr[7] = 0x400 | ((ulong)enable << (register * 2));
        TestResult r = m.Run(0, code);
        Assert.Equal([(code + 1, 1UL << register)], Traps(m, r));
        Assert.Equal(2UL, r.State.Gpr[0]);
    }

    /// <summary>A breakpoint is met each time around.</summary>
    [Fact]
    public void InstructionBreakpointInALoop()
    {
        using TestMachine m = CreateMachine(setRf: true);
        ulong at = 0;
        ulong code = m.Assemble(a =>
        {
            Label loop = a.CreateLabel();
            a.mov(ecx, 5);
            a.Label(ref loop);
            a.dec(ecx);
            a.jnz(loop);
            a.int3();
        });
        at = code + 5;
        m.State.Dr[1] = at;
        m.State.Dr[7] = 0x400 | 4;
        TestResult r = m.Run(0, code);
        Assert.Equal(Enumerable.Repeat((at, 2UL), 5), Traps(m, r));
    }

    /// <summary>A disabled register does nothing; one with an address inside an instruction neither.</summary>
    [Fact]
    public void BreakpointsThatDoNotHit()
    {
        using TestMachine m = CreateMachine();
        ulong code = m.Assemble(a =>
        {
            a.mov(eax, 1);
            a.nop();
            a.int3();
        });
        m.State.Dr[0] = code;
        m.State.Dr[1] = code + 2;
        m.State.Dr[7] = 0x400 | 4;
        TestResult r = m.Run(0, code);
        Assert.Equal(Vector.Breakpoint, r.Vector);
        Assert.Empty(Traps(m, r));
    }

    private static IEnumerable<(int Kind, int Length, bool Write, int Offset, int Size, bool Hits)> DataBreakpoints()
    {
        foreach (int length in (int[])[1, 2, 4, 8])
        {
            foreach (int size in (int[])[1, 2, 4, 8])
            {
                for (int offset = -8; offset <= 8; offset += size == 1 ? 1 : 3)
                {
                    bool overlaps = offset < length && offset + size > 0;
                    foreach (bool write in (bool[])[false, true])
                    {
                        // Kind 1: writes; kind 3: reads and writes.
                        yield return (1, length, write, offset, size, overlaps && write);
                        yield return (3, length, write, offset, size, overlaps);
                    }
                }
            }
        }
    }

    /// <summary>Data breakpoints trap after the access that touches any byte of theirs.</summary>
    [Fact]
    public void DataBreakpointsCoverTheirBytes()
    {
        using TestMachine m = CreateMachine();
        const ulong address = TestMachine.Data + 0x100;
        var wrong = new List<string>();
        foreach ((int kind, int length, bool write, int offset, int size, bool hits) in DataBreakpoints())
        {
            ulong code = m.Assemble(a =>
            {
                switch (size, write)
                {
                    case (1, true): a.mov(__byte_ptr[rbx], al); break;
                    case (1, false): a.mov(al, __byte_ptr[rbx]); break;
                    case (2, true): a.mov(__word_ptr[rbx], ax); break;
                    case (2, false): a.mov(ax, __word_ptr[rbx]); break;
                    case (4, true): a.mov(__dword_ptr[rbx], eax); break;
                    case (4, false): a.mov(eax, __dword_ptr[rbx]); break;
                    case (8, true): a.mov(__qword_ptr[rbx], rax); break;
                    default: a.mov(rax, __qword_ptr[rbx]); break;
                }

                a.nop();
                a.int3();
            });
            m.State.Gpr[3] = address + (ulong)offset;
            m.State.Dr[2] = address;
            ulong lengthBits = length switch { 1 => 0, 2 => 1, 8 => 2, _ => 3 };
            m.State.Dr[7] = 0x400 | 0x20 | (((lengthBits << 2) | (uint)kind) << 24);
            TestResult r = m.Run(0, code);
            List<(ulong Rip, ulong Dr6)> traps = Traps(m, r);
            if (hits ? !traps.SequenceEqual([(r.Rip - 2, 4UL)]) : traps.Count != 0)
                wrong.Add($"kind {kind} length {length} {(write ? "write" : "read")} of {size} at {offset}: {string.Join(' ', traps)}");
        }

        Assert.Empty(wrong);
    }

    /// <summary>Data breakpoints see the stack, strings, read-modify-writes and wide accesses.</summary>
    [Fact]
    public void EveryKindOfAccessMeetsDataBreakpoints()
    {
        using TestMachine m = CreateMachine();
        const ulong address = TestMachine.Data + 0x100;
        m.State.Dr[0] = address;
        m.State.Dr[7] = 0x400 | 2 | (0b1101 << 16);
        m.State.Gpr[3] = address;
        m.State.Gpr[7] = address;
        m.State.Gpr[6] = address + 0x40;
        m.State.Gpr[1] = 1;
        foreach ((string name, Action<Assembler> body) in ((string, Action<Assembler>)[])
        [
            ("add", a => a.add(__dword_ptr[rbx], eax)),
            ("lock", a => a.@lock.xadd(__dword_ptr[rbx], eax)),
            ("push", a => a.lea(rsp, __[rbx + 8])),
            ("stosd", a => a.stosd()),
            ("rep movsd", a => a.rep.movsd()),
            ("movups", a => a.movups(__xmmword_ptr[rbx - 8], xmm0)),
            ("fstp", a => a.fnstcw(__word_ptr[rbx + 2])),
            ("cmpxchg", a => a.cmpxchg(__dword_ptr[rbx], edx)),
        ])
        {
            ulong code = m.Assemble(a =>
            {
                body(a);
                if (name == "push")
                    a.push(rax);
                a.nop();
                a.int3();
            });
            TestResult r = m.Run(0, code);
            Assert.Equal([(r.Rip - 2, 1UL)], Traps(m, r));
            Assert.True(r.Vector == Vector.Breakpoint, name);
        }
    }

    /// <summary>In user code, and with single step at the same time: one #DB with both reasons.</summary>
    [Fact]
    public void StepAndDataBreakpointTogether()
    {
        using TestMachine m = CreateMachine();
        ulong code = m.Assemble(a =>
        {
            a.mov(__dword_ptr[rbx], eax);
            a.int3();
        });
        m.State.Gpr[3] = TestMachine.Data;
        m.State.Dr[0] = TestMachine.Data;
        m.State.Dr[7] = 0x400 | 1 | (0b1101 << 16);
        m.State.Rflags |= RFlags.Tf;
        TestResult r = m.Run(3, TestMachine.UserCode);
        Assert.Equal([(TestMachine.UserCode + 2, 0x4001UL)], Traps(m, r));
    }

    /// <summary>A read that faults has not met its breakpoint.</summary>
    [Fact]
    public void AFaultingAccessMeetsNoBreakpoint()
    {
        using TestMachine m = CreateMachine();
        ulong code = m.Assemble(a => a.mov(eax, __dword_ptr[rbx]));
        m.State.Gpr[3] = 0x70000;
        m.State.Dr[0] = 0x70000;
        m.State.Dr[7] = 0x400 | 1 | (0b1111 << 16);
        TestResult r = m.Run(0, code);
        Assert.Equal(Vector.PageFault, r.Vector);
        Assert.Empty(Traps(m, r));
        Assert.Equal(0UL, r.State.Dr[6] & 15);
    }

    /// <summary>I/O breakpoints (kind 2) need CR4.DE, and trap after the access.</summary>
    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void PortBreakpoints(bool enabled)
    {
        using TestMachine m = CreateMachine();
        ulong code = m.Assemble(a =>
        {
            a.@out(0x80, al);
            a.@in(eax, 0x7D);
            a.@in(al, 0x7F);
            a.@out(0x82, ax);
            a.int3();
        });
        m.State.Cr4 |= enabled ? Cr4.De : 0;
        // Two bytes at 80h: the doubleword at 7Dh reaches it, 7Fh and 82h do not.
        m.State.Dr[3] = 0x80;
        m.State.Dr[7] = 0x400 | 0x80 | (0b0110UL << 28);
        TestResult r = m.Run(0, code);
        Assert.Equal(Vector.Breakpoint, r.Vector);
        Assert.Equal(enabled ? [(code + 2, 8UL), (code + 4, 8UL)] : [], Traps(m, r));
    }

    /// <summary>A data breakpoint under a repeated string instruction traps after the iteration that met it.</summary>
    [Theory]
    [InlineData("movs")]
    [InlineData("stos")]
    [InlineData("lods")]
    [InlineData("scas")]
    [InlineData("cmps")]
    public void DataBreakpointsUnderStrings(string kind)
    {
        using TestMachine m = CreateMachine();
        ulong code = m.Assemble(a =>
        {
            switch (kind)
            {
                case "movs": a.rep.movsb(); break;
                case "stos": a.rep.stosb(); break;
                case "lods": a.rep.lodsb(); break;
                case "scas": a.repe.scasb(); break;
                default: a.repe.cmpsb(); break;
            }

            a.int3();
        });
        m.State.Gpr[1] = 10;
        m.State.Gpr[6] = kind == "lods" ? TestMachine.Data : TestMachine.Data + 0x100;
        m.State.Gpr[7] = TestMachine.Data;
        m.State.Dr[0] = TestMachine.Data + 3;
        m.State.Dr[7] = 0x400 | 1 | (0b0011 << 16);
        TestResult r = m.Run(0, code);
        Assert.Equal([(code, 1UL)], Traps(m, r));
        Assert.Equal(0UL, r.State.Gpr[1]);
    }

    /// <summary>Guest code sets the breakpoint itself, in the block that meets it.</summary>
    [Fact]
    public void BreakpointSetByTheSameBlock()
    {
        using TestMachine m = CreateMachine(setRf: true);
        ulong code = m.Assemble(a =>
        {
            Label here = a.CreateLabel();
            a.lea(rax, __[here]);
            a.mov(dr0, rax);
            a.mov(eax, 0x402);
            a.mov(dr7, rax);
            a.nop();
            a.Label(ref here);
            a.nop();
            a.int3();
        });
        TestResult r = m.Run(0, code);
        Assert.Equal([(r.Rip - 2, 1UL)], Traps(m, r));
    }

    /// <summary>The trap of a HLT under TF wakes the processor.</summary>
    [Fact]
    public void HltUnderTf()
    {
        using TestMachine m = CreateMachine();
        ulong code = m.Assemble(a =>
        {
            a.hlt();
            a.int3();
        });
        m.State.Rflags |= RFlags.Tf;
        TestResult r = m.Run(0, code);
        Assert.Equal(Vector.Breakpoint, r.Vector);
        Assert.Equal([(code + 1, 0x4000UL)], Traps(m, r));
    }
}

/// <summary>The same through the translator.</summary>
public sealed class TranslatedDebugTests : DebugTests
{
    private protected override bool Translated => true;
}
