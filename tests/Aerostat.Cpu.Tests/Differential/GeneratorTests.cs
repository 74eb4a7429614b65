using Iced.Intel;
using Xunit;

namespace Aerostat.Cpu.Tests;

/// <summary>The generator and the native half, without the interpreter.</summary>
public sealed class GeneratorTests
{
    [Theory]
    [InlineData(64)]
    [InlineData(32)]
    public void EveryFormGetsEncodingsThatRunOnTheHost(int bitness)
    {
        using var native = new NativeRunner();
        Assert.SkipUnless(native.CanRun(bitness), $"the host does not run {bitness}-bit code");
        var rng = new Rng(1);
        var encodings = new EncodingGenerator(bitness, rng);
        var states = new StateGenerator(rng);
        var missing = new List<string>();
        foreach (Code code in FormCatalog.Forms(bitness))
        {
            int made = 0, ran = 0;
            var vectors = new SortedDictionary<long, int>();
            for (int k = 0; k < 24 && made < 6; k++)
            {
                Encoding? e = encodings.TryMake(code, (k & 1) != 0);
                if (e == null || (e.Low && !native.HasLowWindow))
                    continue;
                made++;
                native.SetCode(e.Bytes, bitness);
                for (int n = 0; n < 4; n++)
                {
                    TestCase? c = states.TryMake(e);
                    if (c == null)
                        continue;
                    c.Window.CopyTo(native.Window(c.Low));
                    TestState s = c.State;
                    native.Run(ref s, bitness, e.Bytes.Length);
                    vectors[s.Vector] = vectors.GetValueOrDefault(s.Vector) + 1;
                    ran++;
                }
            }

            if (ran == 0)
                missing.Add(code.ToString());
        }

        Assert.Empty(missing);
    }
}
