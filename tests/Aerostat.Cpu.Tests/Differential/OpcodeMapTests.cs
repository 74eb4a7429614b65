using System.Globalization;
using Aerostat.X86;
using Iced.Intel;
using Xunit;

namespace Aerostat.Cpu.Tests;

/// <summary>Opcode maps, prefixes and lengths: what exists, what is #UD, and what is too long.</summary>
public sealed unsafe class OpcodeMapTests
{
    private static DifferentialRunner CreateRunner() => new(m => new InterpreterHypervisor(m), CpuModels.CreateCpuid(CpuModels.Default, 0, 1, "none"));

    // Every register an address that nothing is at, so that whatever the host makes of unknown bytes can do no harm.
    private static TestCase Harmless(byte[] code, int bitness)
    {
        var c = new TestCase { Code = code, Bitness = bitness };
        c.State = TestState.Clean();
        c.State.Rip = Layout.StartRip(bitness);
        for (int k = 0; k < (bitness == 64 ? 16 : 8); k++)
            c.State.Gpr[k] = Layout.Hole + 0x800;
        c.State.Gpr[4] = Layout.Window + Layout.StackOffset;
        return c;
    }

    private static readonly byte[][] Maps = [[], [0x0F], [0x0F, 0x38], [0x0F, 0x3A]];

    /// <summary>
    /// All opcodes of the legacy maps, with each mandatory prefix and REX.W, each register field, register and memory operands. What no decoder
    /// knows runs on the host too, and so does whatever the comparison covers; what exists but not in the model is #UD.
    /// </summary>
    [Theory]
    [InlineData(64)]
    [InlineData(32)]
    public void EveryOpcode(int bitness)
    {
        HostRequirements.Check();
        using DifferentialRunner runner = CreateRunner();
        Assert.SkipUnless(runner.Native.CanRun(bitness), $"the host does not run {bitness}-bit code");
        var compared = FormCatalog.Forms(bitness).ToHashSet();
        var states = new StateGenerator(new Rng(1));
        var wrong = new List<string>();
        int ran = 0, undefined = 0;
        foreach (byte[] map in Maps)
        {
            foreach (byte prefix in (byte[])[0, 0x66, 0xF3, 0xF2, 0xF0])
            {
                for (int opcode = 0; opcode < 256; opcode++)
                {
                    for (int reg = 0; reg < 8; reg++)
                    {
                        foreach (int mod in (int[])[0x03, 0xC1])
                        {
                            byte[] bytes = [.. prefix == 0 ? [] : (byte[])[prefix], .. map, (byte)opcode, (byte)(mod | reg << 3), 0x05, 0, 0, 0, 0, 0, 0, 0];
                            var decoder = Decoder.Create(bitness, bytes);
                            decoder.IP = Layout.Start;
                            decoder.Decode(out Instruction i);
                            // Prefixes, and the ways into other maps.
                            if (map.Length == 0 && (opcode is 0x0F or 0x62 or 0xC4 or 0xC5 or 0xF0 or 0xF2 or 0xF3 or (>= 0x64 and <= 0x67)
                                or 0x26 or 0x2E or 0x36 or 0x3E || (bitness == 64 && opcode is >= 0x40 and < 0x50)))
                                continue;
                            if (map.Length == 1 && opcode is 0x38 or 0x3A)
                                continue;
                            TestCase c = Harmless(i.IsInvalid ? bytes : bytes[..i.Length], bitness);
                            if (!i.IsInvalid && !compared.Contains(i.Code))
                            {
                                if (!FormCatalog.InModel(i.Code))
                                {
                                    undefined++;
                                    Expect(runner, c, wrong, i);
                                }

                                continue;
                            }

                            if (!i.IsInvalid && (!states.IsContained(c, i) || i.IsStackInstruction || i.FlowControl is not (FlowControl.Next or FlowControl.Exception)))
                                continue;
                            // A reserved NOP on one host is an invalid opcode on another; LOCK MOV CR0 is CR8 on some; and the hypercalls are
                            // the host's hypervisor's. LOCK VERW runs where microcode has made a buffer flush of it.
                            if (map.Length == 1 && (opcode is 0x0D || (opcode == 0x00 && reg == 5 && prefix == 0xF0) || (opcode is 0x20 or 0x22 && prefix == 0xF0) || (opcode == 0x01 && mod == 0xC1 && reg == 0)))
                                continue;
                            ran++;
                            if (runner.Run(c) is { } difference)
                                wrong.Add($"{Convert.ToHexString(c.Code)} {i}: host{difference}");
                        }
                    }
                }
            }
        }

        Console.WriteLine($"{ran} encodings compared, {undefined} are not in the model");
        Assert.True(wrong.Count == 0, string.Join('\n', wrong.Take(60)) + $"\n{wrong.Count} in all");
    }

    /// <summary>
    /// All opcodes of the three VEX maps with each implied prefix, both lengths, both W and a used and an unused VEX.vvvv, registers and memory: what is
    /// reserved is #UD here as on the host, what is not in the model is #UD.
    /// </summary>
    [Theory]
    [InlineData(64)]
    [InlineData(32)]
    public void EveryVexOpcode(int bitness)
    {
        HostRequirements.Check();
        using DifferentialRunner runner = CreateRunner();
        Assert.SkipUnless(runner.Native.CanRun(bitness), $"the host does not run {bitness}-bit code");
        var compared = FormCatalog.Forms(bitness).ToHashSet();
        var states = new StateGenerator(new Rng(1));
        var wrong = new List<string>();
        int ran = 0, undefined = 0;
        for (int choice = 0; choice < 3 << 6; choice++)
        {
            int map = 1 + (choice >> 6), prefix = choice & 3, length = choice >> 2 & 1, wide = choice >> 3 & 1;
            int vvvv = (choice >> 4 & 1) == 0 ? 15 : 12;
            byte modRm = (choice >> 5 & 1) == 0 ? (byte)0xCB : (byte)0x0B;
            for (int opcode = 0; opcode < 256; opcode++)
            {
                byte[] bytes = [0xC4, (byte)(0xE0 | map), (byte)(wide << 7 | vvvv << 3 | length << 2 | prefix), (byte)opcode, modRm, 0x05, 0, 0, 0];
                var decoder = Decoder.Create(bitness, bytes);
                decoder.IP = Layout.Start;
                decoder.Decode(out Instruction i);
                TestCase c = Harmless(i.IsInvalid ? bytes : bytes[..i.Length], bitness);
                if (!i.IsInvalid && !FormCatalog.InModel(i.Code))
                {
                    undefined++;
                    Expect(runner, c, wrong, i);
                    continue;
                }

                // Makers differ in what W means for VPERMQ and VPERMPD (must be 1, or ignored), and for VPEXTRD and VPINSRD in 32-bit code.
                if (map == 3 && ((opcode is 0x00 or 0x01 && wide == 0) || (opcode is 0x16 or 0x22 && wide == 1 && bitness == 32)))
                    continue;
                if (!i.IsInvalid && (!compared.Contains(i.Code) || !states.IsContained(c, i)))
                    continue;
                ran++;
                if (runner.Run(c) is { } difference)
                    wrong.Add($"{Convert.ToHexString(c.Code)} {i}: host{difference}");
            }
        }

        // A prefix that VEX stands for already, LOCK, and REX.
        foreach (byte before in (byte[])[0x66, 0xF2, 0xF3, 0xF0, 0x48, 0x40])
        {
            foreach (string hex in (string[])["C5F458C2", "C4E2F5A8C2", "C5F877", "C4E2789200", "C4E270F2C2"])
            {
                byte[] bytes = [before, .. Convert.FromHexString(hex)];
                // In 32-bit code the REX prefixes are INC EAX and DEC EAX.
                if ((before & 0xF0) == 0x40 && bitness == 32)
                    continue;
                if (runner.Run(Harmless(bytes, bitness)) is { } difference)
                    wrong.Add($"{Convert.ToHexString(bytes)}: host{difference}");
            }
        }

        Console.WriteLine($"{ran} encodings compared, {undefined} are not in the model");
        Assert.True(ran > 10_000 && undefined > 100);
        Assert.True(wrong.Count == 0, string.Join('\n', wrong.Take(60)) + $"\n{wrong.Count} in all");
    }

    private static void Expect(DifferentialRunner runner, TestCase c, List<string> wrong, in Instruction i)
    {
        // Encodings that processors without the feature take for something else.
        if (i.Mnemonic is Mnemonic.Wbnoinvd or Mnemonic.Rdsspd or Mnemonic.Rdsspq or Mnemonic.Vmcall or Mnemonic.Vmmcall)
            return;
        TestState s = c.State;
        runner.Guest.SetCode(c.Code);
        runner.Guest.Run(ref s, c.Bitness, c.Code.Length);
        if (s.Vector != Vector.InvalidOpcode || s.Rip != Layout.Start)
            wrong.Add($"{Convert.ToHexString(c.Code)} {i} is not in the model, but ends with {s.Vector} at {s.Rip:x}");
    }

    /// <summary>Every instruction that Iced knows and the model lacks (AVX, AVX-512, XOP, 3DNow!, ...) is #UD, RIP and registers as before.</summary>
    [Theory]
    [InlineData(64)]
    [InlineData(32)]
    public void InstructionsOutsideTheModelAreUndefined(int bitness)
    {
        using var guest = new GuestRunner(m => new InterpreterHypervisor(m), CpuModels.CreateCpuid(CpuModels.Default, 0, 1, "none"));
        var encoder = new MemoryEncoder(bitness);
        var wrong = new List<string>();
        int count = 0;
        foreach (Code code in Enum.GetValues<Code>())
        {
            OpCodeInfo info = code.ToOpCode();
            if (!info.IsInstruction || !(bitness == 64 ? info.Mode64 : info.Mode32) || FormCatalog.InModel(code) || info.DecoderOption != DecoderOptions.None || info.Fwait
                || !(bitness == 64 ? info.IntelDecoder64 : info.IntelDecoder32)
                || info.Mnemonic is Mnemonic.Wbnoinvd or Mnemonic.Rdsspd or Mnemonic.Rdsspq or Mnemonic.Vmcall or Mnemonic.Vmmcall)
                continue;
            byte[]? bytes = encoder.TryEncode(info);
            if (bytes == null)
                continue;
            count++;
            TestCase c = Harmless(bytes, bitness);
            TestState s = c.State;
            guest.SetCode(bytes);
            guest.Run(ref s, bitness, bytes.Length);
            bool same = true;
            for (int k = 0; k < 8; k++)
                same &= s.Gpr[k] == c.State.Gpr[k];
            if (s.Vector != Vector.InvalidOpcode || s.Rip != Layout.Start || !same)
                wrong.Add($"{code} {Convert.ToHexString(bytes)} ends with {s.Vector} at {s.Rip:x}");
        }

        Console.WriteLine($"{count} forms outside the model");
        Assert.True(count > 1500);
        Assert.True(wrong.Count == 0, string.Join('\n', wrong.Take(60)) + $"\n{wrong.Count} in all");
    }

    /// <summary>Encodes any instruction with plain operands, for the only question whether it exists.</summary>
    private sealed class MemoryEncoder(int bitness) : CodeWriter
    {
        private readonly List<byte> _bytes = [];

        public override void WriteByte(byte value) => _bytes.Add(value);

        public byte[]? TryEncode(OpCodeInfo info)
        {
            Instruction i = default;
            i.Code = info.Code;
            for (int k = 0; k < info.OpCount; k++)
            {
                string kind = info.GetOpKind(k).ToString();
                if (kind.StartsWith("imm", StringComparison.Ordinal))
                {
                    i.SetOpKind(k, kind.StartsWith("imm8", StringComparison.Ordinal) || kind.StartsWith("imm4", StringComparison.Ordinal) ? OpKind.Immediate8 : kind == "imm16" ? OpKind.Immediate16 : OpKind.Immediate32);
                    continue;
                }

                Register r = kind.Split('_')[0] switch
                {
                    "xmm" or "xmmp3" => Register.XMM1 + k,
                    "ymm" => Register.YMM1 + k,
                    "zmm" or "zmmp3" => Register.ZMM1 + k,
                    "r8" => Register.CL,
                    "r16" => Register.CX,
                    "r32" => Register.ECX,
                    "r64" => Register.RCX,
                    "mm" => Register.MM1,
                    "k" or "kp1" => Register.K2,
                    "bnd" => Register.BND1,
                    "tmm" => Register.TMM1 + k,
                    "al" => Register.AL,
                    "eax" => Register.EAX,
                    _ => Register.None,
                };
                if (r == Register.None)
                {
                    if (!kind.StartsWith("mem", StringComparison.Ordinal) && !kind.StartsWith("sibmem", StringComparison.Ordinal))
                        return null;
                    i.SetOpKind(k, OpKind.Memory);
                    i.MemoryBase = bitness == 64 ? Register.RBX : Register.EBX;
                    if (kind.Contains("vsib", StringComparison.Ordinal))
                        i.MemoryIndex = kind.EndsWith('x') ? Register.XMM4 : kind.EndsWith('y') ? Register.YMM4 : Register.ZMM4;
                    else if (kind.StartsWith("sibmem", StringComparison.Ordinal) || kind.Contains("mib", StringComparison.Ordinal))
                        i.MemoryIndex = bitness == 64 ? Register.RDI : Register.EDI;
                    continue;
                }

                i.SetOpKind(k, OpKind.Register);
                i.SetOpRegister(k, r);
            }

            if (info.RequireOpMaskRegister)
                i.OpMask = Register.K1;
            _bytes.Clear();
            var encoder = Encoder.Create(bitness, this);
            return encoder.TryEncode(i, Layout.Start, out _, out _) ? [.. _bytes] : null;
        }
    }

    /// <summary>LOCK before everything that cannot have it, registers and memory: #UD.</summary>
    [Theory]
    [InlineData(64)]
    [InlineData(32)]
    [InlineData(16)]
    public void IllegalLock(int bitness)
    {
        HostRequirements.Check();
        using DifferentialRunner runner = CreateRunner();
        Assert.SkipUnless(runner.Native.CanRun(bitness), $"the host does not run {bitness}-bit code");
        var encodings = new EncodingGenerator(bitness, new Rng(3));
        var wrong = new List<string>();
        int count = 0;
        foreach (Code code in FormCatalog.AllCodes(bitness))
        {
            for (int k = 0; k < 12; k++)
            {
                Encoding? e = encodings.TryMake(code, (k & 1) != 0);
                if (e == null || e.Instruction.HasLockPrefix || e.Bytes.Length > 14)
                    continue;
                byte[] bytes = [0xF0, .. e.Bytes];
                Instruction i = Decoder.Create(bitness, bytes).Decode();
                if (!i.IsInvalid)
                    continue;
                // Where microcode has made a buffer flush of VERW, LOCK does not stop it.
                if (e.Instruction.Mnemonic == Mnemonic.Verw)
                    continue;
                // Some hosts read CR8 through LOCK MOV CR0.
                if (e.Instruction.Mnemonic == Mnemonic.Mov && e.Instruction.Code.ToString().Contains("cr", StringComparison.Ordinal))
                    continue;
                count++;
                if (runner.Run(Harmless(bytes, bitness)) is { } difference)
                    wrong.Add($"{Convert.ToHexString(bytes)} lock {e.Instruction}: host{difference}");
            }
        }

        Console.WriteLine($"{count} illegal LOCKs");
        Assert.True(wrong.Count == 0, string.Join('\n', wrong.Take(60)) + $"\n{wrong.Count} in all");
    }

    /// <summary>Redundant prefixes up to 15 bytes are ignored; more are #GP(0), whatever follows.</summary>
    [Theory]
    [InlineData(64)]
    [InlineData(32)]
    public void Length(int bitness)
    {
        HostRequirements.Check();
        using DifferentialRunner runner = CreateRunner();
        Assert.SkipUnless(runner.Native.CanRun(bitness), $"the host does not run {bitness}-bit code");
        var wrong = new List<string>();
        foreach (string hex in (string[])["90", "01D8", "89C8", "0FAFC3", "0F58C1", "C1E005", "B878563412", "81C078563412", "0F0B", "D9C0", "8B0424", "0F38F0C1", "F30FB8C1", "C7840B785634120DF0AD8B"])
        {
            byte[] plain = Convert.FromHexString(hex);
            foreach (byte prefix in (byte[])[0x3E, 0x2E, 0x36, 0x26, 0x64, 0x65])
            {
                for (int length = plain.Length; length <= 17; length++)
                {
                    byte[] bytes = [.. Enumerable.Repeat(prefix, length - plain.Length), .. plain];
                    TestCase c = Harmless(bytes, bitness);
                    if (runner.Run(c) is { } difference)
                        wrong.Add($"{Convert.ToHexString(bytes)} ({length.ToString(CultureInfo.InvariantCulture)} bytes): host{difference}");
                }
            }
        }

        // REX counts too.
        if (bitness == 64)
        {
            for (int length = 4; length <= 17; length++)
            {
                byte[] bytes = [.. Enumerable.Repeat((byte)0x3E, length - 3), 0x48, 0x01, 0xD8];
                if (runner.Run(Harmless(bytes, bitness)) is { } difference)
                    wrong.Add($"{Convert.ToHexString(bytes)}: host{difference}");
            }
        }

        Assert.True(wrong.Count == 0, string.Join('\n', wrong.Take(60)) + $"\n{wrong.Count} in all");
    }

    /// <summary>An instruction that ends on the next page, which is not there: #PF at the first byte of that page, not before it is needed.</summary>
    [Fact]
    public void InstructionsAtTheEndOfAPage()
    {
        using var m = new TestMachine(TestMode.Long);
        const ulong page = 0x60000;
        m.Tables.Map(page, TestMachine.FreeGpa, 0x1000, PageTableEntry.W);
        byte[] code = [0x48, 0xB8, 1, 2, 3, 4, 5, 6, 7, 8];
        for (int inside = 1; inside <= 10; inside++)
        {
            m.Memory.Write(new Memory.GuestAddress(TestMachine.FreeGpa + 0x1000 - (ulong)inside), code.AsSpan(0, inside));
            TestResult r = m.Run(0, page + 0x1000 - (ulong)inside);
            Assert.Equal((Vector.PageFault, 0x10UL, page + 0x1000), (r.Vector, r.Error, r.State.Cr2));
            // The whole instruction fits: it runs, and the next one faults.
            Assert.Equal(inside == 10 ? page + 0x1000 : page + 0x1000 - (ulong)inside, r.Rip);
            Assert.Equal(inside == 10 ? 0x0807060504030201UL : 0, r.State.Gpr[0]);
        }

        // An invalid opcode is recognised without the bytes after it.
        m.Memory.Write(new Memory.GuestAddress(TestMachine.FreeGpa + 0xFFE), [0x0F, 0x0B]);
        Assert.Equal(Vector.InvalidOpcode, m.Run(0, page + 0xFFE).Vector);
        // Fifteen prefixes at the end of the page are too long already.
        m.Memory.Write(new Memory.GuestAddress(TestMachine.FreeGpa + 0x1000 - 15), Enumerable.Repeat((byte)0x66, 15).ToArray());
        TestResult end = m.Run(0, page + 0x1000 - 15);
        Assert.True(end.Vector is Vector.GeneralProtection or Vector.PageFault);
    }
}
