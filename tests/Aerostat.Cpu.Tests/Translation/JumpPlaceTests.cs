using Aerostat.X86;
using Iced.Intel;
using Xunit;
using static Iced.Intel.AssemblerRegisters;

namespace Aerostat.Cpu.Tests;

/// <summary>
/// Jumps to constant addresses in other pages go through places of their own in the jump table, where nobody asks whether the code there is the right one.
/// So whatever changes what is at an address has to empty them.
/// </summary>
public sealed class JumpPlaceTests
{
    private const ulong Caller = 0x50_0000, Target = Caller + 0x1000, Entries = 0x70_0000, Alias = 0x60_0000;
    private const ulong CallerGpa = TestMachine.FreeGpa, TargetGpa = CallerGpa + 0x1000, OtherGpa = CallerGpa + 0x2000;
    private const ulong Flags = PageTableEntry.P | PageTableEntry.W | PageTableEntry.A | PageTableEntry.D, Keep = 1UL << 63;
    private const int Rounds = 100;

    // ECX times across the page: a call, a jump, and a jump back with a condition.
    private static TestMachine Create(int hotThreshold, ulong global)
    {
        Assert.SkipUnless(TranslatorHypervisor.IsSupported, "the host is not x86-64");
        TestMachine m = new(TestMode.Long, hypervisor: memory => new TranslatorHypervisor(memory, threshold: 0, hotThreshold: hotThreshold));
        m.Tables.Map(Caller, CallerGpa, 0x2000, Flags | global);
        m.Tables.Map(Alias, TargetGpa, 0x1000, Flags);
        m.State.Cr4 |= Cr4.Pge | Cr4.Pcide;
        m.Assemble(CallerGpa, Caller, a =>
        {
            Label loop = a.CreateLabel();
            a.Label(ref loop);
            a.call(Target + 0x40);
            a.jmp(Target);
            a.nop();
        });
        foreach ((ulong gpa, int number) in ((ulong, int)[])[(TargetGpa, 1), (OtherGpa, 0x1_0000)])
        {
            m.Assemble(gpa, Target, a =>
            {
                a.add(eax, number);
                a.dec(ecx);
                a.jne(Caller);
                a.ret();
            });
            m.Assemble(gpa + 0x40, Target + 0x40, a =>
            {
                a.mov(rdx, __qword_ptr[rsp]);
                a.add(eax, 0x10 * number);
                a.ret();
            });
        }
        return m;
    }

    private static void CallLoop(Assembler a)
    {
        a.xor(eax, eax);
        a.mov(ecx, Rounds);
        a.mov(edi, (uint)Caller);
        a.call(rdi);
    }

    public static TheoryData<string, bool, int> Ways
    {
        get
        {
            var data = new TheoryData<string, bool, int>();
            foreach (string way in (string[])["invlpg", "cr3", "pcid", "pcid kept", "write"])
                foreach (int hotThreshold in (int[])[TranslationState.DefaultHotThreshold, 4])
                {
                    data.Add(way, false, hotThreshold);
                    // A global page stays where only CR3 changes.
                    if (way is "invlpg" or "write")
                        data.Add(way, true, hotThreshold);
                }
            return data;
        }
    }

    /// <summary>The target's page is exchanged, in one of the ways there are, and then comes back.</summary>
    [Theory]
    [MemberData(nameof(Ways))]
    public void WhatIsAtTheTargetNowRuns(string way, bool global, int hotThreshold)
    {
        using TestMachine m = Create(hotThreshold, global ? PageTableEntry.G : 0);
        ulong entry = m.Tables.EntryAddress(Target, 1), first = m.Tables.Root | 1;
        m.Tables.Map(Entries, entry & ~4095UL, 0x1000, Flags);
        var other = new PageTables(m.Memory, 0x180000);
        other.Map(Caller, CallerGpa, 0x1000, Flags);
        other.Map(Target, OtherGpa, 0x1000, Flags);
        other.Map(TestMachine.KernelCode, TestMachine.UserCode, 0x2000, Flags);
        other.Map(TestMachine.Gdt, TestMachine.Gdt, 0x6000, Flags);
        other.Map(TestMachine.Data, TestMachine.Data, 0x4000, Flags);
        byte[] firstBytes = new byte[0x80], otherBytes = new byte[0x80];
        m.Memory.TryRead(new Memory.GuestAddress(TargetGpa), firstBytes);
        m.Memory.TryRead(new Memory.GuestAddress(OtherGpa), otherBytes);
        void Exchange(Assembler a, bool back)
        {
            switch (way)
            {
                case "invlpg" or "cr3":
                    a.mov(edi, (uint)Entries + (uint)(entry & 4095));
                    a.mov(rsi, (back ? TargetGpa : OtherGpa) | Flags | (global ? PageTableEntry.G : 0));
                    a.mov(__qword_ptr[rdi], rsi);
                    a.mov(edi, (uint)Target);
                    if (way == "invlpg")
                        a.invlpg(__byte_ptr[rdi]);
                    else
                        LoadCr3(a, first);
                    break;
                case "write":
                    byte[] bytes = back ? firstBytes : otherBytes;
                    a.mov(edi, (uint)Alias);
                    for (int i = 0; i < bytes.Length; i += 8)
                    {
                        a.mov(rsi, BitConverter.ToUInt64(bytes, i));
                        a.mov(__qword_ptr[rdi + i], rsi);
                    }

                    break;
                default:
                    LoadCr3(a, (back ? first : other.Root | 2) | (way == "pcid kept" ? Keep : 0));
                    break;
            }
        }

        ulong code = m.Assemble(a =>
        {
            LoadCr3(a, first);
            for (int i = 0; i < 3; i++)
            {
                CallLoop(a);
                a.mov(r8d, eax);
                Exchange(a, back: false);
                CallLoop(a);
                a.mov(r9d, eax);
                Exchange(a, back: true);
            }
            CallLoop(a);
            a.int3();
        });
        TestResult r = m.Run(0, code);
        Assert.Equal(Vector.Breakpoint, r.Vector);
        const uint Expected = 0x11 * Rounds;
        Assert.Equal((Expected, Expected << 16, Expected), ((uint)r.State.Gpr[8], (uint)r.State.Gpr[9], (uint)r.State.Gpr[0]));
    }

    private static void LoadCr3(Assembler a, ulong value)
    {
        a.mov(rsi, value);
        a.mov(cr3, rsi);
    }

    /// <summary>More targets than there are places: jumps to the rest go by the address' sum.</summary>
    [Fact]
    public void FurtherTargetsDoWithout()
    {
        Assert.SkipUnless(TranslatorHypervisor.IsSupported, "the host is not x86-64");
        const int Pages = 180, JumpBytes = 5, Jumps = Pages * (4096 / JumpBytes);
        Assert.True(Jumps > CodeCache.MaxPlaces + 10_000);
        using TestMachine m = new(TestMode.Long, hypervisor: memory => new TranslatorHypervisor(memory, threshold: 0));
        m.Tables.Map(Caller, CallerGpa, Pages * 4096, Flags);
        // From page to page, and to the next jump in each.
        static int At(int jump) => (jump % Pages * 4096) + (jump / Pages * JumpBytes);
        byte[] memory = new byte[Pages * 4096];
        for (int i = 0; i < Jumps - 1; i++)
        {
            memory[At(i)] = 0xE9;
            BitConverter.TryWriteBytes(memory.AsSpan(At(i) + 1), At(i + 1) - (At(i) + JumpBytes));
        }
        memory[At(Jumps - 1)] = 0xC3;
        m.Memory.Write(new Memory.GuestAddress(CallerGpa), memory);
        TestResult r = m.Run(0, m.Assemble(a =>
        {
            Label again = a.CreateLabel();
            a.mov(edi, (uint)Caller);
            a.mov(ebx, 3);
            a.Label(ref again);
            a.call(rdi);
            a.dec(ebx);
            a.jne(again);
            a.int3();
        }));
        Assert.Equal(Vector.Breakpoint, r.Vector);
        Assert.Equal(0, m.Processor.Counters.Named["code-cache-evictions"]);
        Assert.InRange(m.Processor.Counters.Named["entries"], Jumps, 3 * Jumps);
    }
}
