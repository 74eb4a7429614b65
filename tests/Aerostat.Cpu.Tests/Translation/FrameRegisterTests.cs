using Aerostat.X86;
using Iced.Intel;
using Xunit;
using static Iced.Intel.AssemblerRegisters;

namespace Aerostat.Cpu.Tests;

/// <summary>Instructions whose guest registers live in memory, in all combinations with those that do not, against the interpreter.</summary>
public sealed class FrameRegisterTests
{
    private static readonly Register[] s_registers = [Register.RAX, Register.RBX, Register.R9, Register.R10, Register.R11, Register.R14, Register.R15];

    public static TheoryData<Code> Forms => [.. Enum.GetValues<Code>().Where(c => c.ToString() is string name
        && (name.Split('_') is [var mnemonic, var to, var from] && (mnemonic, to, from) is
            ("Add" or "Or" or "And" or "Sub" or "Xor" or "Cmp" or "Mov" or "Adc", "rm32" or "rm64" or "r32" or "r64", "rm32" or "rm64" or "r32" or "r64" or "imm8" or "imm32")
            or ("Test", "rm32" or "rm64", "r32" or "r64" or "imm32")
            or ("Movzx" or "Movsx" or "Movsxd", "r32" or "r64", "rm8" or "rm16" or "rm32")))];

    [Theory]
    [MemberData(nameof(Forms))]
    public void TheyDoWhatTheyShould(Code form)
    {
        using TestMachine oracle = TestMachineOf(translated: false), translated = TestMachineOf(translated: true);
        TestResult a = oracle.Run(0, Assemble(oracle, form)), b = translated.Run(0, Assemble(translated, form));
        Assert.Equal(Vector.Breakpoint, a.Vector);
        Assert.Equal(Vector.Breakpoint, b.Vector);
        for (int r = 0; r < 16; r++)
            Assert.Equal((r, a.State.Gpr[r]), (r, b.State.Gpr[r]));
        Assert.DoesNotContain($"interpreted/{form.Mnemonic().ToString().ToLowerInvariant()}", translated.Processor.Counters.Named.Keys.Where(k => form.Mnemonic() != Mnemonic.Mov || k == "interpreted/mov"));
    }

    private static TestMachine TestMachineOf(bool translated) =>
        new(TestMode.Long, hypervisor: memory => translated ? new TranslatorHypervisor(memory, threshold: 0) : new InterpreterHypervisor(memory));

    // R12 and R13 take up what the instructions leave in registers and flags (but AF, which logical operations leave undefined).
    private static ulong Assemble(TestMachine m, Code form) => m.Assemble(a =>
    {
        var random = new Random((int)form);
        string[] parts = form.ToString().Split('_');
        a.xor(r12d, r12d);
        foreach (Register to in s_registers)
        {
            foreach (Register from in parts[2].StartsWith("imm", StringComparison.Ordinal) ? s_registers[..3] : s_registers)
            {
                Move(a, to, random);
                Move(a, from, random);
                a.AddInstruction(Create(form, parts, to, from, random));
                a.pushfq();
                a.pop(r13);
                a.and(r13d, (int)(RFlags.Status & ~RFlags.Af));
                Mix(a);
                a.AddInstruction(Instruction.Create(Code.Mov_rm64_r64, Register.R13, to));
                Mix(a);
            }
        }
        a.int3();
    });

    private static void Mix(Assembler a)
    {
        a.imul(r12, r12, 0x1003F);
        a.add(r12, r13);
    }

    private static void Move(Assembler a, Register to, Random random) => a.AddInstruction(Instruction.Create(Code.Mov_r64_imm64, to, (ulong)random.NextInt64(long.MinValue, long.MaxValue)));

    private static Instruction Create(Code form, string[] parts, Register to, Register from, Random random)
    {
        Register first = Sized(to, parts[1]);
        return parts[2] switch
        {
            "imm8" => Instruction.Create(form, first, random.Next(-128, 128)),
            "imm32" => Instruction.Create(form, first, random.Next(int.MinValue, int.MaxValue)),
            string size => Instruction.Create(form, first, Sized(from, size)),
        };
    }

    private static Register Sized(Register r, string size) => size.TrimStart('r', 'm') switch
    {
        "8" => r.GetNumber() < 4 ? Register.AL + r.GetNumber() : Register.SPL + (r.GetNumber() - 4),
        "16" => Register.AX + r.GetNumber(),
        "32" => Register.EAX + r.GetNumber(),
        _ => r,
    };
}
