using Aerostat.Processors;
using Aerostat.X86;
using Iced.Intel;
using Xunit;
using static Iced.Intel.AssemblerRegisters;

namespace Aerostat.Kvm.Tests;

/// <summary>Breakpoints by address, in any number, that no memory shows and no change of code loses.</summary>
public sealed class CodeBreakpointTests
{
    private const ulong Code = SmallGuest.Code, Int3Handler = SmallGuest.Handlers + (3 * 16);
    private const byte IncRbx = 3;

    public static TheoryData<string> Kinds => ProcessorKinds.All;

    private const string Lacks = "does not intercept #BP when INT3 raises it";

    private static SmallGuest Open(string kind)
    {
        ProcessorKinds.SkipIfNested(kind, Lacks);
        SmallGuest g = new(kind);
        if ((g.Processor.DebugSupport & GuestDebugSupport.Code) == 0)
        {
            g.Dispose();
            Assert.Skip("this host's KVM has no memory that only the guest's writes come out of");
        }
        return g;
    }

    private static void Break(SmallGuest g, params ulong[] addresses) => g.Processor.SetGuestDebug(new GuestDebug { Code = new HashSet<ulong>(addresses) });

    private static ProcessorState RunTo(SmallGuest g, ulong address)
    {
        ProcessorExit exit = g.Run();
        ProcessorState s = g.Processor.GetState();
        Assert.Equal((ExitReason.Debug, GuestDebugBits.Code, address), (exit.Reason, exit.Detail & GuestDebugBits.Code, s.Rip));
        return s;
    }

    private static byte[] Bytes(SmallGuest g, ulong address, int count)
    {
        byte[] bytes = new byte[count];
        Assert.True(g.Memory.TryRead(new(address), bytes));
        return bytes;
    }

    [Theory, MemberData(nameof(Kinds))]
    public void MoreThanThereAreDebugRegisters(string kind)
    {
        using SmallGuest g = Open(kind);
        g.Long(a =>
        {
            for (int i = 0; i < 20; i++)
                a.inc(rbx);
            a.hlt();
        });
        byte[] before = Bytes(g, Code, 64);
        Break(g, [.. Enumerable.Range(0, 20).Select(i => Code + ((ulong)i * IncRbx))]);
        for (ulong i = 0; i < 12; i++)
            Assert.Equal(i, RunTo(g, Code + (i * IncRbx)).Gpr[3]);
        // Nobody sees them but the guest that would read its own code.
        Assert.Equal(before, Bytes(g, Code, 64));
        // Gone without a trace.
        g.Processor.SetGuestDebug(GuestDebug.None);
        Assert.Equal(20UL, g.RunToHalt().Gpr[3]);
        Assert.Equal(before, Bytes(g, Code, 64));
    }

    /// <summary>The guest writes over the instruction, and so does a device: the breakpoint stays, and what runs is what was written.</summary>
    [Theory, MemberData(nameof(Kinds))]
    public void CodeIsPatchedUnderThem(string kind)
    {
        using SmallGuest g = Open(kind);
        ulong target = 0;
        g.Long(a =>
        {
            Label here = a.CreateLabel(), again = a.CreateLabel();
            a.Label(ref again);
            a.lea(rdi, __[here]);
            a.mov(eax, __dword_ptr[rdi]);
            a.mov(__byte_ptr[rdi + 2], 0xCB);
            a.mov(__byte_ptr[rdi], 0x48);
            a.nop();
            a.Label(ref here);
            a.inc(rbx);
            a.hlt();
            a.jmp(again);
        });
        while (g.Memory.Read<uint>(new(Code + target)) << 8 != 0xC3FF4800)
            target++;
        target += Code;
        Break(g, target);
        Assert.Equal(0UL, RunTo(g, target).Gpr[3]);
        // INC has become DEC.
        Assert.Equal(ulong.MaxValue, g.RunToHalt().Gpr[3]);
        Assert.Equal<byte[]>([0x48, 0xFF, 0xCB], Bytes(g, target, 3));
        // From outside: INC RDX.
        g.Memory.Write(new(target), [0x48, 0xFF, 0xC2]);
        ProcessorState s = g.Processor.GetState();
        s.Rip = target - 1;
        s.Activity = ActivityState.Running;
        g.Processor.SetState(s);
        ulong before = RunTo(g, target).Gpr[2];
        Assert.Equal(before + 1, g.RunToHalt().Gpr[2]);
    }

    /// <summary>INT3 of the guest's own is the guest's, also where a breakpoint is.</summary>
    [Theory, MemberData(nameof(Kinds))]
    public void TheGuestsOwnInt3IsItsOwn(string kind)
    {
        ProcessorKinds.SkipWithoutInt3(kind);
        using SmallGuest g = Open(kind);
        g.Long(a =>
        {
            a.int3();
            a.inc(rbx);
            a.int3();
            a.inc(rbx);
            a.hlt();
        });
        g.Assemble(64, Int3Handler, a =>
        {
            a.inc(rcx);
            a.mov(rdx, __[rsp]);
            a.iretq();
        });
        Break(g, Code + 4, Code + 5);
        ProcessorState s = RunTo(g, Code + 4);
        Assert.Equal((1UL, 1UL, Code + 1), (s.Gpr[3], s.Gpr[1], s.Gpr[2]));
        s = RunTo(g, Code + 5);
        Assert.Equal((1UL, 2UL, Code + 5), (s.Gpr[3], s.Gpr[1], s.Gpr[2]));
        s = g.RunToHalt();
        Assert.Equal((2UL, 2UL), (s.Gpr[3], s.Gpr[1]));
    }

    /// <summary>Page tables that come to lead somewhere, or elsewhere, take the breakpoint along.</summary>
    [Theory, MemberData(nameof(Kinds))]
    public void AddressesThatAreMappedLater(string kind)
    {
        const ulong Entry = 0x3000 + (5 * 8), Linear = 5UL << 21;
        using SmallGuest g = Open(kind);
        g.Long(a =>
        {
            a.mov(__qword_ptr[Entry], 0x20_0083);
            a.mov(rax, cr3);
            a.mov(cr3, rax);
            a.@out(0x10, al);
            a.mov(eax, (uint)Linear + 0x10);
            a.call(rax);
            a.hlt();
        });
        g.Memory.Write(new(Entry), 0UL);
        g.Assemble(64, 0x20_0010, a =>
        {
            a.inc(rbx);
            a.ret();
        });
        Break(g, Linear + 0x10, Linear + 0x13);
        Assert.Equal(0UL, RunTo(g, Linear + 0x10).Gpr[3]);
        Assert.Equal(1UL, RunTo(g, Linear + 0x13).Gpr[3]);
        g.RunToHalt();
    }

    /// <summary>A loop stops each time around, steps go through a breakpoint, and TF of the guest's own works beside it.</summary>
    [Theory, MemberData(nameof(Kinds))]
    public void StepsAndLoops(string kind)
    {
        using SmallGuest g = Open(kind);
        g.Long(a =>
        {
            Label loop = a.CreateLabel();
            a.Label(ref loop);
            a.inc(rbx);
            a.cmp(rbx, 5);
            a.jne(loop);
            a.pushfq();
            a.or(__dword_ptr[rsp], 0x100);
            a.popfq();
            a.nop();
            a.nop();
            a.hlt();
        });
        g.Assemble(64, SmallGuest.Handlers + 0x10, a =>
        {
            a.inc(rcx);
            a.and(__dword_ptr[rsp + 16], -0x101);
            a.iretq();
        });
        Break(g, Code);
        for (ulong i = 0; i < 3; i++)
            Assert.Equal(i, RunTo(g, Code).Gpr[3]);
        g.Processor.SetGuestDebug(new GuestDebug { Code = new HashSet<ulong> { Code, Code + 3 }, SingleStep = true });
        ProcessorExit step = g.Run();
        Assert.Equal((ExitReason.Debug, Code + 3), (step.Reason, g.Processor.GetState().Rip));
        Assert.NotEqual(0UL, step.Detail & (GuestDebugBits.SingleStep | GuestDebugBits.Code));
        Break(g, Code);
        Assert.Equal(3UL, RunTo(g, Code).Gpr[3]);
        Assert.Equal(4UL, RunTo(g, Code).Gpr[3]);
        ProcessorState s = g.RunToHalt();
        Assert.Equal((5UL, 1UL), (s.Gpr[3], s.Gpr[1]));
    }

    /// <summary>Pages that are shown as copies and pages that are not: writes to all are in the dirty log.</summary>
    [Theory, MemberData(nameof(Kinds))]
    public void WritesBesideThemAreLogged(string kind)
    {
        using SmallGuest g = Open(kind);
        g.Long(a =>
        {
            a.nop();
            a.mov(__byte_ptr[0x8FFF], 1);
            a.mov(__byte_ptr[0x7000], 2);
            a.mov(__byte_ptr[0x100010], 3);
            a.hlt();
        });
        using Memory.DirtyLog log = g.Memory.StartDirtyLog(g.Memory.Regions[0]);
        ulong[] bits = new ulong[log.WordCount];
        log.GetAndClear(bits);
        Break(g, Code);
        RunTo(g, Code);
        log.GetAndClear(bits);
        Assert.Equal(0UL, bits[0] & (3UL << 7));
        g.RunToHalt();
        log.GetAndClear(bits);
        Assert.Equal((3UL << 7, 1UL), (bits[0] & (3UL << 7), bits[4] & 1));
        g.Processor.SetGuestDebug(GuestDebug.None);
        Assert.Equal((1, 2, 3), (g.Memory.Read<byte>(new(0x8FFF)), g.Memory.Read<byte>(new(0x7000)), g.Memory.Read<byte>(new(0x100010))));
    }

    /// <summary>A breakpoint is set while another vCPU runs: the memory slots that are replaced for that are not missed by it.</summary>
    [Theory, MemberData(nameof(Kinds))]
    public async Task WhileOthersRun(string kind)
    {
        ProcessorKinds.SkipIfNested(kind, Lacks);
        using SmallGuest g = new(kind, count: 2);
        Assert.SkipUnless((g.Processor.DebugSupport & GuestDebugSupport.Code) != 0, "this host's KVM has no memory that only the guest's writes come out of");
        IVirtualProcessor second = g.Processors[1];
        g.Long(a =>
        {
            a.inc(rbx);
            a.inc(rbx);
            a.hlt();
        });
        g.Assemble(64, 0xB000, a =>
        {
            Label loop = a.CreateLabel();
            a.Label(ref loop);
            a.inc(__qword_ptr[0x100000]);
            a.jmp(loop);
        });
        ProcessorState s = g.Processor.GetState();
        s.Rip = 0xB000;
        second.SetState(s);
        Task<ProcessorExit> other = Task.Run(() => second.Run(new World()), TestContext.Current.CancellationToken);
        try
        {
            for (ulong i = 0; i < 10; i++)
            {
                ProcessorState t = g.Processor.GetState();
                (t.Rip, t.Activity) = (Code, ActivityState.Running);
                g.Processor.SetState(t);
                Break(g, Code + IncRbx);
                Assert.Equal((i * 2) + 1, RunTo(g, Code + IncRbx).Gpr[3]);
                g.Processor.SetGuestDebug(GuestDebug.None);
                Assert.Equal((i * 2) + 2, g.RunToHalt().Gpr[3]);
            }
            // It has not met a hole in memory.
            ulong count = g.Memory.Read<ulong>(new(0x100000));
            Assert.True(SpinWait.SpinUntil(() => g.Memory.Read<ulong>(new(0x100000)) > count, TimeSpan.FromSeconds(60)));
        }
        finally
        {
            second.Kick();
            Assert.Equal(ExitReason.Interrupted, (await other).Reason);
        }
    }
}
