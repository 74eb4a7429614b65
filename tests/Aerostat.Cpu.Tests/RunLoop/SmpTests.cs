using Aerostat.Memory;
using Aerostat.Processors;
using Iced.Intel;
using Xunit;
using static Iced.Intel.AssemblerRegisters;

namespace Aerostat.Cpu.Tests;

/// <summary>Several processors on several threads: locked instructions are atomic, also across cache lines and pages.</summary>
public sealed class SmpTests
{
    private const int Rounds = 20000;

    /// <summary>Runs the same code at CPL 0 on every processor at once; R14 is the processor's number.</summary>
    private static void RunAll(TestMachine m, ulong code)
    {
        var threads = new List<Thread>();
        var errors = new List<string>();
        using var barrier = new Barrier(m.Processors.Count);
        for (int k = 0; k < m.Processors.Count; k++)
        {
            int n = k;
            m.Enter(0, code);
            m.State.Gpr[14] = (ulong)n;
            m.State.Gpr[4] = TestMachine.CodeStack - (ulong)n * 0x400;
            m.Processors[n].SetState(m.State);
            var thread = new Thread(() =>
            {
                barrier.SignalAndWait();
                ProcessorExit exit = m.Processors[n].Run(new TestExitHandler());
                if (exit.Reason != ExitReason.Halted)
                {
                    lock (errors)
                        errors.Add($"{n}: {exit.Reason}");
                }
            });
            threads.Add(thread);
            thread.Start();
        }

        threads.ForEach(t => t.Join());
        Assert.Empty(errors);
    }

    /// <summary>A vCPU that spins lets other host threads run at every 256th PAUSE; one that is alone has nobody to wait for.</summary>
    [Theory]
    [InlineData(false, 1, 0)]
    [InlineData(false, 2, 3)]
    [InlineData(true, 1, 0)]
    [InlineData(true, 2, 3)]
    public void PausesYield(bool translated, int processors, int yields)
    {
        Assert.SkipWhen(translated && !TranslatorHypervisor.IsSupported, "the translator needs an x86-64 host");
        using var m = new TestMachine(TestMode.Long, processors: processors, hypervisor: translated ? memory => new TranslatorHypervisor(memory, threshold: 0) : null);
        ulong code = m.Assemble(a =>
        {
            a.mov(ecx, (3 * 256) + 255);
            Label again = a.CreateLabel();
            a.Label(ref again);
            a.pause();
            a.dec(ecx);
            a.jne(again);
            a.hlt();
        });
        RunAll(m, code);
        Assert.All(m.Processors, p => Assert.Equal(yields, p.Counters.Named["spin-yields"]));
    }

    /// <summary>
    /// A processor that runs ignores a start-up IPI; INIT and another one right behind it must start it again, however they meet the moment in
    /// which it drops the first.
    /// </summary>
    [Fact]
    public void InitAndStartupBehindAnIgnoredStartup()
    {
        using var m = new TestMachine(TestMode.Real, processors: 2);
        // mov byte cs:[0], 1 ... jmp $; the page number of the vector is the page that is marked.
        byte[] code = [0x2E, 0xC6, 0x06, 0x80, 0x00, 0x01, 0xEB, 0xFE];
        foreach (byte page in (byte[])[0x50, 0x51])
            m.Memory.Write(new GuestAddress((ulong)page << 12), code);
        IVirtualProcessor other = m.Processors[1];
        using ManualResetEventSlim wake = new(false, 0);
        other.WakeUp = wake.Set;
        bool end = false;
        var thread = new Thread(() =>
        {
            while (!Volatile.Read(ref end))
            {
                ProcessorExit exit = other.Run(new TestExitHandler());
                if (exit.Reason != ExitReason.WaitForStartup)
                    continue;
                wake.Reset();
                if (!other.HasWork)
                    wake.Wait();
            }
        });
        other.RaiseInit();
        thread.Start();
        byte[] mark = new byte[1];
        for (int i = 0; i < Rounds / 4; i++)
        {
            byte page = (byte)(0x50 + (i & 1));
            ulong at = ((ulong)page << 12) + 0x80;
            m.Memory.Write(new GuestAddress(at), [0]);
            other.RaiseStartup((byte)(0x50 + (~i & 1)));
            Thread.SpinWait(i & 63);
            other.RaiseInit();
            other.RaiseStartup(page);
            Assert.True(
                SpinWait.SpinUntil(
                    () => m.Memory.TryRead(new GuestAddress(at), mark) && mark[0] == 1,
                    TimeSpan.FromSeconds(30)),
                $"did not start in round {i}");
        }
        Volatile.Write(ref end, true);
        other.Kick();
        thread.Join();
    }

    // At 0: within a cache line; at 0x3D: across lines; at 0xFFD: across pages.
    public static TheoryData<string, int, bool> Forms
    {
        get
        {
            var data = new TheoryData<string, int, bool>();
            foreach (string form in (string[])["add", "xadd", "inc", "cmpxchg", "xchg", "cmpxchg16b", "btc", "sub byte"])
            {
                foreach (int at in (int[])[0, 0x3D, 0xFFD])
                {
                    if (form == "cmpxchg16b" && at != 0)
                        continue;
                    data.Add(form, at, false);
                    data.Add(form, at, true);
                }
            }

            return data;
        }
    }

    [Theory]
    [MemberData(nameof(Forms))]
    public void LockedInstructionsAreAtomic(string form, int at, bool translated)
    {
        using var m = new TestMachine(TestMode.Long, processors: 2, hypervisor: memory => TestMachine.Open(memory, translated));
        ulong address = TestMachine.Data + (ulong)at;
        m.State.Gpr[3] = address;
        ulong code = m.Assemble(a =>
        {
            Label loop = a.CreateLabel(), retry = a.CreateLabel(), spin = a.CreateLabel();
            a.mov(r13d, Rounds);
            a.Label(ref loop);
            switch (form)
            {
                case "add": a.@lock.add(__qword_ptr[rbx], 3); break;
                case "xadd":
                    a.mov(eax, 3);
                    a.@lock.xadd(__qword_ptr[rbx], rax);
                    break;
                case "inc": a.@lock.inc(__dword_ptr[rbx]); break;
                case "cmpxchg":
                    a.mov(eax, __dword_ptr[rbx]);
                    a.Label(ref retry);
                    a.lea(ecx, __[eax + 3]);
                    a.@lock.cmpxchg(__dword_ptr[rbx], ecx);
                    a.jne(retry);
                    break;
                case "cmpxchg16b":
                    a.mov(r8, rbx);
                    a.mov(rax, __qword_ptr[r8]);
                    a.mov(rdx, __qword_ptr[r8 + 8]);
                    a.Label(ref retry);
                    // Both halves count; they can only stay equal if they change together.
                    a.lea(rbx, __[rax + 1]);
                    a.lea(rcx, __[rdx + 1]);
                    a.@lock.cmpxchg16b(__xmmword_ptr[r8]);
                    a.jne(retry);
                    a.mov(rbx, r8);
                    break;
                case "xchg":
                    a.nop();
                    // A spin lock around a plain increment at +0x100.
                    a.Label(ref spin);
                    a.mov(eax, 1);
                    a.xchg(__dword_ptr[rbx], eax);
                    a.test(eax, eax);
                    a.jne(spin);
                    a.inc(__qword_ptr[rbx + 0x100]);
                    a.mov(__dword_ptr[rbx], 0);
                    break;
                case "btc":
                    // Each processor flips its own bit of the same word.
                    a.@lock.btc(__dword_ptr[rbx], r14d);
                    break;
                default:
                    a.@lock.sub(__byte_ptr[rbx], 1);
                    break;
            }

            a.dec(r13d);
            a.jnz(loop);
            a.hlt();
        });
        RunAll(m, code);
        ulong value = m.Memory.Read<ulong>(new GuestAddress(address));
        const ulong total = 2 * Rounds;
        switch (form)
        {
            case "add" or "xadd" or "cmpxchg":
                Assert.Equal(3 * total, value);
                break;
            case "inc":
                Assert.Equal(total, value);
                break;
            case "cmpxchg16b":
                Assert.Equal((total, total), (value, m.Memory.Read<ulong>(new GuestAddress(address + 8))));
                break;
            case "xchg":
                Assert.Equal(total, m.Memory.Read<ulong>(new GuestAddress(address + 0x100)));
                break;
            case "btc":
                // An even number of flips each.
                Assert.Equal(0UL, value);
                break;
            default:
                Assert.Equal(0, (byte)(value + total));
                break;
        }
    }

    /// <summary>One processor runs a function while another rewrites it; every call sees the old or the new whole instruction.</summary>
    [Fact]
    public void CrossModifyingCode()
    {
        using var m = new TestMachine(TestMode.Long, processors: 2);
        // MOV EAX,imm32 (aligned, so that the immediate is written whole); RET.
        const int function = 0x803;
        m.Code(function, 0xB8, 0, 0, 0, 0, 0xC3);
        ulong code = m.Assemble(a =>
        {
            Label writer = a.CreateLabel(), loop = a.CreateLabel(), wait = a.CreateLabel(), bad = a.CreateLabel(), done = a.CreateLabel();
            a.mov(ebx, (uint)TestMachine.KernelCode + function);
            a.test(r14d, r14d);
            a.jne(writer);
            // Reader: values never go down, and the last one is seen.
            a.xor(ecx, ecx);
            a.Label(ref loop);
            a.call(rbx);
            a.cmp(eax, ecx);
            a.jb(bad);
            a.mov(ecx, eax);
            a.cmp(eax, 2000);
            a.jne(loop);
            a.jmp(done);
            a.Label(ref bad);
            a.mov(__dword_ptr[TestMachine.Data], 1);
            a.hlt();
            a.Label(ref writer);
            a.xor(eax, eax);
            a.Label(ref wait);
            a.inc(eax);
            a.mov(__dword_ptr[rbx + 1], eax);
            a.cmp(eax, 2000);
            a.jne(wait);
            a.Label(ref done);
            a.hlt();
        });
        RunAll(m, code);
        Assert.Equal(0u, m.Memory.Read<uint>(new GuestAddress(TestMachine.Data)));
    }

    /// <summary>Store, fence, load on both sides: not both can miss the other's store (Intel SDM vol. 3 section 10.2).</summary>
    [Fact]
    public void FencesOrderStoresBeforeLoads()
    {
        using var m = new TestMachine(TestMode.Long, processors: 2);
        const int rounds = 2000;
        ulong code = m.Assemble(a =>
        {
            Label loop = a.CreateLabel(), meet = a.CreateLabel(), second = a.CreateLabel(), go = a.CreateLabel();
            a.mov(ebx, (uint)TestMachine.Data);
            a.mov(r13d, 1);
            a.Label(ref loop);
            // Meet: both add to a counter and wait until it is 2 * round.
            a.@lock.inc(__dword_ptr[rbx + 0x400]);
            a.lea(ecx, __[r13d + r13d]);
            a.Label(ref meet);
            a.cmp(__dword_ptr[rbx + 0x400], ecx);
            a.jb(meet);
            a.test(r14d, r14d);
            a.jne(second);
            a.mov(__dword_ptr[rbx], r13d);
            a.mfence();
            a.mov(eax, __dword_ptr[rbx + 0x100]);
            a.mov(__dword_ptr[rbx + 0x200], eax);
            a.jmp(go);
            a.Label(ref second);
            a.mov(__dword_ptr[rbx + 0x100], r13d);
            a.mfence();
            a.mov(eax, __dword_ptr[rbx]);
            a.mov(__dword_ptr[rbx + 0x300], eax);
            a.Label(ref go);
            // Meet again, then the first checks.
            Label meet2 = a.CreateLabel(), next = a.CreateLabel(), good = a.CreateLabel();
            a.@lock.inc(__dword_ptr[rbx + 0x500]);
            a.Label(ref meet2);
            a.cmp(__dword_ptr[rbx + 0x500], ecx);
            a.jb(meet2);
            a.test(r14d, r14d);
            a.jne(next);
            a.cmp(__dword_ptr[rbx + 0x200], r13d);
            a.je(good);
            a.cmp(__dword_ptr[rbx + 0x300], r13d);
            a.je(good);
            a.inc(__dword_ptr[rbx + 0x600]);
            a.Label(ref good);
            a.nop();
            a.Label(ref next);
            a.inc(r13d);
            a.cmp(r13d, rounds);
            a.jne(loop);
            a.hlt();
        });
        RunAll(m, code);
        Assert.Equal(0u, m.Memory.Read<uint>(new GuestAddress(TestMachine.Data + 0x600)));
    }
}
