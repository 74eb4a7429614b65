using System.Runtime.InteropServices;
using Aerostat.X86;
using Iced.Intel;
using Xunit;
using static Iced.Intel.AssemblerRegisters;

namespace Aerostat.Cpu.Tests;

/// <summary>What calls return to is translated with them, right behind the host's call, where it has run about as often.</summary>
public sealed class FollowerTests
{
    private const ulong Unmapped = 0x4000_0000;

    // Two kinds of call in a loop, whose last round reads where no page is, behind the second.
    private static ulong Assemble(TestMachine m) => m.Assemble(a =>
    {
        Label loop = a.CreateLabel(), add = a.CreateLabel();
        a.mov(esp, (uint)TestMachine.CodeStack);
        a.mov(ecx, 40);
        a.xor(eax, eax);
        a.mov(rbx, TestMachine.Data);
        a.lea(rdx, __[add]);
        a.Label(ref loop);
        a.cmp(ecx, 1);
        a.mov(esi, (uint)Unmapped);
        a.cmove(rbx, rsi);
        a.call(add);
        a.adc(eax, 3);
        a.call(rdx);
        a.add(eax, __dword_ptr[rbx]);
        a.mov(__dword_ptr[rbx + 8], eax);
        a.dec(ecx);
        a.jmp(loop);
        a.Label(ref add);
        a.push(rbx);
        a.lea(eax, __[rax + (rax * 8)]);
        a.cmp(eax, ecx);
        a.pop(rbx);
        a.ret();
    });

    [Theory]
    [InlineData(0, 0)]
    [InlineData(0, 2)]
    [InlineData(3, 2)]
    public void WhatCallsReturnToIsBehindThem(int threshold, int hotThreshold)
    {
        var watcher = new Watcher();
        using TestMachine oracle = new(TestMode.Long, hypervisor: m => new InterpreterHypervisor(m)),
            translated = new(TestMode.Long, hypervisor: m => new TranslatorHypervisor(m, threshold, watcher, hotThreshold));
        TestResult expected = oracle.Run(0, Assemble(oracle)), actual = translated.Run(0, Assemble(translated));
        Assert.Equal((Vector.PageFault, Unmapped), (expected.Vector, expected.State.Cr2));
        Assert.Equal((expected.Vector, expected.Rip, expected.Error, expected.State.Cr2), (actual.Vector, actual.Rip, actual.Error, actual.State.Cr2));
        Assert.Equal(expected.State.Gpr, actual.State.Gpr);
        // Of what runs often those made last.
        Assert.Equal(2, watcher.Calls.Count);
        Assert.All(watcher.Calls, c => Assert.Contains(watcher.Starts[c.Key], c.Value));
    }

    /// <summary>A loop whose calls never return: what is behind them may be anything.</summary>
    [Fact]
    public void WhatNeverRanIsNotTranslated()
    {
        var watcher = new Watcher();
        using TestMachine m = new(TestMode.Long, hypervisor: memory => new TranslatorHypervisor(memory, TranslationState.DefaultThreshold, watcher, hotThreshold: 4));
        ulong code = m.Assemble(a =>
        {
            Label loop = a.CreateLabel(), leave = a.CreateLabel();
            a.mov(esp, (uint)TestMachine.CodeStack);
            a.mov(ecx, 400);
            a.Label(ref loop);
            a.call(leave);
            a.ud2();
            a.Label(ref leave);
            a.pop(rbx);
            a.dec(ecx);
            a.jne(loop);
            a.int3();
        });
        TestResult result = m.Run(0, code);
        ulong behind = result.State.Gpr[3];
        Assert.Equal(Vector.Breakpoint, result.Vector);
        Assert.Contains(behind, watcher.Calls.Keys);
        Assert.DoesNotContain(behind, watcher.Starts.Keys);
    }

    private sealed class Watcher : IBlockObserver
    {
        /// <summary>By address, where the block made last begins.</summary>
        public Dictionary<ulong, nint> Starts { get; } = [];

        /// <summary>By return address, where the code of blocks ends that end with a call.</summary>
        public Dictionary<ulong, List<nint>> Calls { get; } = [];

        public void Translated(BlockView block)
        {
            // Where a group's check has failed, the same again.
            if (block.Ungrouped)
                return;
            Starts[block.Linear] = block.Start;
            if (block.Guest.Length != 0 && block.Guest[^1].FlowControl is FlowControl.Call or FlowControl.IndirectCall)
                (CollectionsMarshal.GetValueRefOrAddDefault(Calls, block.Guest[^1].NextIP, out _) ??= []).Add(block.End);
        }
    }
}
