using System.Globalization;
using System.Runtime.InteropServices;
using System.Text;
using Aerostat.X86;

namespace Aerostat.Cpu.Tests;

/// <summary>What two processors made of one program.</summary>
internal static unsafe class ProgramComparison
{
    /// <summary>A program with what it finds in memory and registers.</summary>
    public static ProgramGenerator Generate(ulong seed, byte[] window, byte[] far, out byte[][] code, out TestState start)
    {
        var rng = new Rng(seed);
        var program = new ProgramGenerator(rng);
        code = program.Make();
        rng.Fill(window);
        rng.Fill(far);
        MemoryMarshal.AsBytes<ulong>(program.Pieces).CopyTo(far.AsSpan(Layout.PointerOffset));
        start = TestState.Clean();
        program.FillState(ref start);
        return program;
    }

    public static void Load(GuestRunner guest, byte[][] code, byte[] window, byte[] far)
    {
        for (int area = 0; area < code.Length; area++)
            guest.SetCode(code[area], area);
        window.CopyTo(guest.Window(false));
        far.CopyTo(guest.FarWindow);
    }

    private static string Compare(string what, Span<byte> a, Span<byte> b, string other)
    {
        int at = a.CommonPrefixLength(b);
        return at == a.Length ? "" : string.Create(CultureInfo.InvariantCulture, $"{what} from {at:x} on: {a[at]:x}, {other} {b[at]:x}");
    }

    public static string Compare(in TestState a, in TestState b, string other)
    {
        var text = new StringBuilder();
        if (a.Vector != b.Vector || a.Rip != b.Rip || a.Error != b.Error || a.Cr2 != b.Cr2)
            text.Append(CultureInfo.InvariantCulture, $" ends with {a.Vector}({a.Error:x}) at {a.Rip:x} cr2 {a.Cr2:x}, {other} {b.Vector}({b.Error:x}) at {b.Rip:x} cr2 {b.Cr2:x};");
        for (int k = 0; k < 16; k++)
            if (a.Gpr[k] != b.Gpr[k])
                text.Append(CultureInfo.InvariantCulture, $" r{k} {a.Gpr[k]:x}, {other} {b.Gpr[k]:x};");
        uint compared = a.Vector >= 0 ? 0 : RFlags.Status & ~RFlags.Af;
        if (((a.Rflags ^ b.Rflags) & compared) != 0)
            text.Append(CultureInfo.InvariantCulture, $" flags {a.Rflags:x}, {other} {b.Rflags:x};");
        TestState x = a, y = b;
        for (int k = 0; k < 16; k++)
            if (!x.Xmm(k).SequenceEqual(y.Xmm(k)))
                text.Append(CultureInfo.InvariantCulture, $" xmm{k} {Convert.ToHexString(x.Xmm(k))}, {other} {Convert.ToHexString(y.Xmm(k))};");
        for (int k = 0; k < 16; k++)
            if (!x.YmmHigh(k).SequenceEqual(y.YmmHigh(k)))
                text.Append(CultureInfo.InvariantCulture, $" ymmh{k} {Convert.ToHexString(x.YmmHigh(k))}, {other} {Convert.ToHexString(y.YmmHigh(k))};");
        if (a.Mxcsr != b.Mxcsr)
            text.Append(CultureInfo.InvariantCulture, $" mxcsr {a.Mxcsr:x}, {other} {b.Mxcsr:x};");
        return text.ToString();
    }

    /// <summary>The memory that programs may write to.</summary>
    public static string CompareMemory(GuestRunner a, GuestRunner b, string other) =>
        Compare(" memory", a.Window(false), b.Window(false), other) + Compare(" far memory", a.FarWindow, b.FarWindow, other);
}
