using System.Globalization;
using System.Text;

namespace Aerostat.Cpu.Tests;

/// <summary>
/// Cases as text, one a line: code size, machine code in hexadecimal, then <c>name=value</c> for whatever is not zero (or, for fcw, mxcsr,
/// rflags and rsp, not as <see cref="TestState.Clean"/> has it). Names: the registers, rflags, fsbase, gsbase, fcw, fsw, ftw, mxcsr, st0..st7,
/// xmm0..xmm15 and the upper halves ymmh0..ymmh15 (most significant digit first), <c>w</c> + offset for bytes of the window in memory order, and <c>low</c> for the low window.
/// </summary>
internal static class Corpus
{
    private static readonly string[] Names =
        ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];

    public static unsafe string Format(TestCase c)
    {
        var text = new StringBuilder();
        text.Append(c.Bitness).Append(' ').Append(Convert.ToHexStringLower(c.Code));
        if (c.Low)
            text.Append(" low");
        TestState s = c.State, clean = TestState.Clean();
        for (int k = 0; k < 16; k++)
            Add(Names[k], s.Gpr[k], clean.Gpr[k]);
        Add("rflags", s.Rflags, clean.Rflags);
        Add("fsbase", s.FsBase, 0);
        Add("gsbase", s.GsBase, 0);
        Add("fcw", s.Fcw, clean.Fcw);
        Add("fsw", s.Fsw, 0);
        Add("ftw", s.Ftw, 0);
        Add("mxcsr", s.Mxcsr, clean.Mxcsr);
        for (int k = 0; k < 8; k++)
            AddBytes("st" + k, s.St(k));
        for (int k = 0; k < 16; k++)
        {
            AddBytes("xmm" + k, s.Xmm(k));
            AddBytes("ymmh" + k, s.YmmHigh(k));
        }

        for (int k = 0; k < c.Window.Length; k++)
        {
            if (c.Window[k] == 0)
                continue;
            int first = k, last = k;
            while (k < c.Window.Length && k - last < 4)
            {
                if (c.Window[k] != 0)
                    last = k;
                k++;
            }

            text.Append(CultureInfo.InvariantCulture, $" w{first:x}={Convert.ToHexStringLower(c.Window.AsSpan(first, last - first + 1))}");
        }

        return text.ToString();

        void Add(string name, ulong value, ulong usual)
        {
            if (value != usual)
                text.Append(CultureInfo.InvariantCulture, $" {name}={value:x}");
        }

        void AddBytes(string name, Span<byte> bytes)
        {
            if (!bytes.ContainsAnyExcept((byte)0))
                return;
            byte[] copy = bytes.ToArray();
            Array.Reverse(copy);
            text.Append(CultureInfo.InvariantCulture, $" {name}={Convert.ToHexStringLower(copy)}");
        }
    }

    public static unsafe TestCase Parse(string line)
    {
        string[] words = line.Split(' ', StringSplitOptions.RemoveEmptyEntries);
        var c = new TestCase { Bitness = int.Parse(words[0], CultureInfo.InvariantCulture), Code = Convert.FromHexString(words[1]), Low = words.Contains("low") };
        c.State = TestState.Clean();
        c.State.Rip = Layout.StartRip(c.Bitness);
        foreach (string word in words.AsSpan(2))
        {
            if (word == "low")
                continue;
            int equal = word.IndexOf('=', StringComparison.Ordinal);
            string name = word[..equal], value = word[(equal + 1)..];
            int register = Array.IndexOf(Names, name);
            if (name.StartsWith("xmm", StringComparison.Ordinal))
                Bytes(value, c.State.Xmm(int.Parse(name.AsSpan(3), CultureInfo.InvariantCulture)));
            else if (name.StartsWith("ymmh", StringComparison.Ordinal))
                Bytes(value, c.State.YmmHigh(int.Parse(name.AsSpan(4), CultureInfo.InvariantCulture)));
            else if (name.StartsWith("st", StringComparison.Ordinal))
                Bytes(value, c.State.St(name[2] - '0'));
            else if (name[0] == 'w')
                Convert.FromHexString(value).CopyTo(c.Window, int.Parse(name.AsSpan(1), NumberStyles.HexNumber, CultureInfo.InvariantCulture));
            else if (register >= 0)
                c.State.Gpr[register] = Number(value);
            else
                SetOther(ref c.State, name, Number(value));
        }

        return c;
    }

    private static void SetOther(ref TestState s, string name, ulong value)
    {
        switch (name)
        {
            case "rflags": s.Rflags = value; break;
            case "fsbase": s.FsBase = value; break;
            case "gsbase": s.GsBase = value; break;
            case "fcw": s.Fcw = (ushort)value; break;
            case "fsw": s.Fsw = (ushort)value; break;
            case "ftw": s.Ftw = (byte)value; break;
            case "mxcsr": s.Mxcsr = (uint)value; break;
            default: throw new FormatException($"'{name}' is not a part of a case");
        }
    }

    private static ulong Number(string value) => ulong.Parse(value, NumberStyles.HexNumber, CultureInfo.InvariantCulture);

    private static void Bytes(string value, Span<byte> to)
    {
        byte[] bytes = Convert.FromHexString(value);
        Array.Reverse(bytes);
        bytes.CopyTo(to);
    }
}
