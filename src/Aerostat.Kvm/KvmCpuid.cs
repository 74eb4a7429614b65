using Aerostat.Processors;

namespace Aerostat.Kvm;

/// <summary>Makes of a CPU model's CPUID what a host's KVM can keep (Intel SDM vol. 2A, CPUID; AMD APM vol. 3 appendix E).</summary>
public static class KvmCpuid
{
    private const uint Leaf1Xsave = 1 << 26, Leaf1Fma = 1 << 12, Leaf1Avx = 1 << 28, Leaf1F16c = 1 << 29;
    private const uint Leaf7Avx2 = 1 << 5, Leaf7Pku = 1 << 3;

    // What Aerostat provides itself or the kernel provides without saying so: the x2APIC and the TSC deadline timer are the machine's, the
    // hypervisor bit is a statement.
    private const uint OwnLeaf1Ecx = (1 << 21) | (1 << 24) | (1u << 31);

    // The local APIC and its place among several (HTT) are the machine's.
    private const uint OwnLeaf1Edx = (1 << 9) | (1 << 28);

    private const int XcrAvx = 1 << 2, XcrPkru = 1 << 9;

    /// <summary>The model's table with every feature bit that <paramref name="supported"/> lacks taken out.</summary>
    /// <param name="model">What the model would like.</param>
    /// <param name="supported">KVM_GET_SUPPORTED_CPUID.</param>
    public static CpuidTable Mask(CpuidTable model, CpuidTable supported)
    {
        bool xsave = (supported.Get(1, 0).Ecx & Leaf1Xsave) != 0;
        ulong xcr0 = xsave ? Components(model, supported) : 0;
        CpuidTable table = new();
        foreach ((uint leaf, uint subleaf, CpuidResult value) in model.Entries)
        {
            bool any = subleaf == CpuidTable.AnySubleaf;
            if (leaf == 0xD && !xsave)
                continue;
            if (leaf == 0xD && subleaf is > 1 and < 64 && (xcr0 >> (int)subleaf & 1) == 0)
                continue;
            CpuidResult host = supported.Get(leaf, any ? 0 : subleaf);
            table.Set(leaf, any ? 0 : subleaf, MaskOne(leaf, any ? 0 : subleaf, value, host, xsave, xcr0, supported), any);
        }
        return table;
    }

    private static CpuidResult MaskOne(uint leaf, uint subleaf, CpuidResult value, CpuidResult host, bool xsave, ulong xcr0, CpuidTable supported) => (leaf, subleaf) switch
    {
        (1, _) => value with
        {
            Ecx = value.Ecx & (host.Ecx | OwnLeaf1Ecx) & ~(xsave && (xcr0 & XcrAvx) != 0 ? 0 : Leaf1Avx | Leaf1Fma | Leaf1F16c),
            Edx = value.Edx & (host.Edx | OwnLeaf1Edx),
        },
        (7, 0) => value with
        {
            Ebx = value.Ebx & host.Ebx & ~((xcr0 & XcrAvx) != 0 ? 0 : Leaf7Avx2),
            Ecx = value.Ecx & host.Ecx & ~((xcr0 & XcrPkru) != 0 ? 0 : Leaf7Pku),
            Edx = value.Edx & host.Edx,
        },
        (7, 1 or 2) => new(value.Eax & host.Eax, value.Ebx & host.Ebx, value.Ecx & host.Ecx, value.Edx & host.Edx),
        (0xD, 0) => value with { Eax = (uint)xcr0, Edx = (uint)(xcr0 >> 32), Ebx = AreaSize(xcr0, supported), Ecx = AreaSize(xcr0, supported) },
        // Without XSAVES the supervisor components are gone too.
        (0xD, 1) => new(value.Eax & host.Eax, 0, 0, 0),
        // The guest's XSAVE is the host's: so are the places of the components.
        (0xD, _) => host,
        (0x8000_0001, _) => value with { Ecx = value.Ecx & host.Ecx, Edx = value.Edx & host.Edx },
        (0x8000_0007, _) => value with { Edx = value.Edx & host.Edx },
        (0x8000_0008, _) => value with { Eax = Widths(value.Eax, host.Eax), Ebx = value.Ebx & host.Ebx },
        _ => value,
    };

    private static ulong Components(CpuidTable model, CpuidTable supported)
    {
        CpuidResult ours = model.Get(0xD, 0), theirs = supported.Get(0xD, 0);
        return (ours.Eax | ((ulong)ours.Edx << 32)) & (theirs.Eax | ((ulong)theirs.Edx << 32));
    }

    private static uint AreaSize(ulong xcr0, CpuidTable supported)
    {
        uint size = 576;
        for (uint i = 2; i < 63; i++)
            if ((xcr0 >> (int)i & 1) != 0 && supported.Get(0xD, i) is var component)
                size = Math.Max(size, component.Ebx + component.Eax);
        return size;
    }

    private static uint Widths(uint value, uint host)
    {
        uint physical = Math.Min(value & 0xFF, Math.Max(host & 0xFF, 36)), linear = Math.Min((value >> 8) & 0xFF, Math.Max((host >> 8) & 0xFF, 48));
        return (value & ~0xFFFFu) | (linear << 8) | physical;
    }

    /// <summary>
    /// The table with leaves 15H and 16H telling the frequency that the time-stamp counter really has, and as its crystal what the machine's
    /// local APICs count.
    /// </summary>
    public static CpuidTable WithFrequency(CpuidTable table, long hertz, long crystal)
    {
        CpuidTable result = new();
        foreach ((uint leaf, uint subleaf, CpuidResult value) in table.Entries)
        {
            bool any = subleaf == CpuidTable.AnySubleaf;
            CpuidResult changed = value;
            if (leaf == 0x15)
            {
                long divisor = Gcd(hertz, crystal);
                changed = new((uint)(crystal / divisor), (uint)(hertz / divisor), (uint)crystal, 0);
            }
            else if (leaf == 0x16)
                changed = value with { Eax = (uint)(hertz / 1_000_000), Ebx = (uint)(hertz / 1_000_000) };
            result.Set(leaf, any ? 0 : subleaf, changed, any);
        }
        return result;
    }

    private static long Gcd(long a, long b)
    {
        while (b != 0)
            (a, b) = (b, a % b);
        return a;
    }
}
