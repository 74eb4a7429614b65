using System.Text;
using Iced.Intel;
using Xunit;

namespace Aerostat.Cpu.Tests;

/// <summary>That the comparison leaves nothing out that it does not say, and that the model is what the catalog takes it for.</summary>
public sealed unsafe class CatalogTests
{
    /// <summary>
    /// The forms that exist in the model but are not compared with the host are those in uncovered.txt, which is the documentation of what
    /// other tests must see to.
    /// </summary>
    [Fact]
    public void UncoveredFormsAreTheDocumentedOnes()
    {
        var text = new StringBuilder();
        foreach (int bitness in (int[])[64, 32, 16])
        {
            foreach (IGrouping<string, Code> group in FormCatalog.Exclusions(bitness).GroupBy(e => e.Reason, e => e.Code).OrderBy(g => g.Key, StringComparer.Ordinal))
            {
                text.Append(bitness).Append("-bit code: ").Append(group.Key).Append('\n');
                foreach (Code code in group.OrderBy(c => c.ToString(), StringComparer.Ordinal))
                    text.Append("  ").Append(code).Append('\n');
            }
        }

        string file = Path.Combine(AppContext.BaseDirectory, "uncovered.txt");
        string documented = File.Exists(file) ? File.ReadAllText(file) : "";
        if (documented != text.ToString())
        {
            File.WriteAllText(Path.Combine(AppContext.BaseDirectory, "uncovered.actual.txt"), text.ToString());
            Assert.Fail("uncovered.txt is not what the catalog leaves out; uncovered.actual.txt next to the test program is");
        }
    }

    /// <summary>The model's data and the catalog's list of instruction sets say the same about every form.</summary>
    [Theory]
    [InlineData(64)]
    [InlineData(32)]
    [InlineData(16)]
    public void ModelAndCatalogAgree(int bitness)
    {
        var gate = new FeatureGate(CpuModels.CreateCpuid(CpuModels.Default, 0, 1, "none"));
        var wrong = new List<string>();
        foreach (Code code in Enum.GetValues<Code>())
        {
            OpCodeInfo info = code.ToOpCode();
            bool exists = bitness switch { 64 => info.Mode64, 32 => info.Mode32, _ => info.Mode16 };
            if (!info.IsInstruction || !exists || info.Fwait || info.DecoderOption != DecoderOptions.None)
                continue;
            Instruction i = default;
            i.Code = code;
            // Hypercalls exist if the machine answers them; these are NOPs, or WBINVD, on processors without the feature.
            if (info.Mnemonic is Mnemonic.Vmcall or Mnemonic.Vmmcall or Mnemonic.Rdsspd or Mnemonic.Rdsspq or Mnemonic.Wbnoinvd)
                continue;
            if (gate.IsSupported(i) != FormCatalog.InModel(code))
                wrong.Add($"{code} ({string.Join(' ', code.CpuidFeatures())})");
        }

        Assert.Empty(wrong);
    }

    /// <summary>Every form of the model, compared or not, has a handler.</summary>
    [Theory]
    [InlineData(64)]
    [InlineData(32)]
    [InlineData(16)]
    public void EveryFormOfTheModelHasAHandler(int bitness)
    {
        var features = new FeatureGate(CpuModels.CreateCpuid(CpuModels.Default, 0, 1, "none"));
        using var stubs = new HostStubs();
        var decoder = new BlockDecoder(stubs, features);
        var encodings = new EncodingGenerator(bitness, new Rng(1)) { Address = 0x800 };
        var missing = new List<string>();
        nint undefined = (nint)(delegate*<Interpreter, CpuState*, MicroOp*, Outcome>)&BlockDecoder.Undefined;
        MicroOp op;
        foreach (Code code in FormCatalog.AllCodes(bitness))
        {
            // What only decoders of other makers yield.
            OpCodeInfo info = code.ToOpCode();
            if (!(bitness switch { 64 => info.IntelDecoder64, 32 => info.IntelDecoder32, _ => info.IntelDecoder16 }))
                continue;
            Encoding? e = null;
            for (int k = 0; k < 40 && e == null; k++)
                e = encodings.TryMake(code, (k & 1) != 0);
            if (e == null)
            {
                missing.Add($"{code} cannot be encoded");
                continue;
            }

            fixed (byte* bytes = e.Bytes)
            {
                int count = decoder.Decode(bytes, e.Bytes.Length, bitness, &op, 1, out int length);
                bool isUndefined = (nint)op.Handler == undefined;
                bool shouldBe = code.Mnemonic() is Mnemonic.Ud0 or Mnemonic.Ud1 or Mnemonic.Ud2 or Mnemonic.Rsm;
                if (count != 1 || length != e.Bytes.Length || (isUndefined && !shouldBe))
                    missing.Add($"{code}: {Convert.ToHexString(e.Bytes)} {e.Instruction}");
            }
        }

        Assert.Empty(missing);
    }
}
