using Aerostat.Machine;
using Aerostat.Processors;

namespace Aerostat.Cli;

/// <summary>
/// What the flags after QEMU's <c>-cpu</c> do to one of our CPU models: a feature can be taken away, or given back when the
/// widest model has it.
/// </summary>
internal static class CpuFlags
{
    private enum Register
    {
        Eax,
        Ebx,
        Ecx,
        Edx,
    }

    private static readonly Dictionary<string, (uint Leaf, uint Subleaf, Register Register, int Bit)> s_features = new()
    {
        ["pcid"] = (1, 0, Register.Ecx, 17),
        ["x2apic"] = (1, 0, Register.Ecx, 21),
        ["tsc-deadline"] = (1, 0, Register.Ecx, 24),
        ["xsave"] = (1, 0, Register.Ecx, 26),
        ["smep"] = (7, 0, Register.Ebx, 7),
        ["invpcid"] = (7, 0, Register.Ebx, 10),
        ["smap"] = (7, 0, Register.Ebx, 20),
        ["umip"] = (7, 0, Register.Ecx, 2),
        ["pku"] = (7, 0, Register.Ecx, 3),
        ["la57"] = (7, 0, Register.Ecx, 16),
        ["pks"] = (7, 0, Register.Ecx, 31),
        ["rdtscp"] = (0x8000_0001, 0, Register.Edx, 27),
    };

    /// <summary>The accelerator with its CPUID changed as the entry asks. <paramref name="widest"/> is the accelerator with its widest model.</summary>
    /// <param name="test">The entry.</param>
    /// <param name="accelerator">Where to start.</param>
    /// <param name="widest">What features are taken from.</param>
    /// <param name="pseudoCounters">
    /// Whether RDPMC has something to read: the tests look for that only where CPUID announces performance monitoring. Version 1 without counters does.
    /// </param>
    public static Accelerator Apply(UnitTest test, Accelerator accelerator, Accelerator widest, bool pseudoCounters = false)
    {
        Accelerator start = test.CpuModel is "max" or "host" ? widest : accelerator;
        return start with
        {
            Cpuid = (index, count) =>
            {
                CpuidTable table = Change(test.CpuFlags, start.Cpuid(index, count), widest.Cpuid(index, count));
                return pseudoCounters ? table.Set(0xA, 0, new CpuidResult(1, 0, 0, 0), anySubleaf: true) : table;
            },
        };
    }

    private static CpuidTable Change(IReadOnlyList<string> flags, CpuidTable table, CpuidTable widest)
    {
        foreach (string flag in flags)
        {
            string[] pair = flag.Split('=', 2);
            if (pair is ["vendor", string vendor])
                SetVendor(table, vendor);
            else if (pair is ["phys-bits", string bits] && byte.TryParse(bits, out byte count))
                table.Set(0x8000_0008, 0, table.Get(0x8000_0008, 0) with { Eax = (table.Get(0x8000_0008, 0).Eax & ~0xFFu) | count });
            else if (flag.Length > 1 && flag[0] is '+' or '-' && s_features.TryGetValue(flag[1..], out var f))
                SetBit(table, f, flag[0] == '+' && (Pick(widest.Get(f.Leaf, f.Subleaf), f.Register) >> f.Bit & 1) != 0);
        }
        return table;
    }

    private static void SetVendor(CpuidTable table, string vendor)
    {
        if (vendor.Length != 12)
            return;
        uint At(int i) => (uint)(vendor[i] | (vendor[i + 1] << 8) | (vendor[i + 2] << 16) | (vendor[i + 3] << 24));
        table.Set(0, 0, table.Get(0, 0) with { Ebx = At(0), Edx = At(4), Ecx = At(8) }, anySubleaf: true);
        table.Set(0x8000_0000, 0, table.Get(0x8000_0000, 0) with { Ebx = At(0), Edx = At(4), Ecx = At(8) }, anySubleaf: true);
    }

    private static uint Pick(CpuidResult r, Register register) => register switch
    {
        Register.Eax => r.Eax,
        Register.Ebx => r.Ebx,
        Register.Ecx => r.Ecx,
        _ => r.Edx,
    };

    private static void SetBit(CpuidTable table, (uint Leaf, uint Subleaf, Register Register, int Bit) f, bool on)
    {
        CpuidResult r = table.Get(f.Leaf, f.Subleaf);
        uint value = (Pick(r, f.Register) & ~(1u << f.Bit)) | (on ? 1u << f.Bit : 0);
        r = f.Register switch
        {
            Register.Eax => r with { Eax = value },
            Register.Ebx => r with { Ebx = value },
            Register.Ecx => r with { Ecx = value },
            _ => r with { Edx = value },
        };
        bool any = f.Leaf is 1 or >= 0x8000_0000;
        table.Set(f.Leaf, f.Subleaf, r, any);
    }
}
