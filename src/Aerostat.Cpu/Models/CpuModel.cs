using System.Text;
using Aerostat.Processors;

namespace Aerostat.Cpu;

/// <summary>A named, versioned CPU model: which CPUID bits a guest sees. The data never changes once a version has been released.</summary>
internal sealed record CpuModel
{
    public required string Name { get; init; }

    /// <summary>One line for <c>--cpu help</c>.</summary>
    public required string Description { get; init; }

    /// <summary>CPUID.1:EAX, family, model and stepping.</summary>
    public required uint Signature { get; init; }

    /// <summary>CPUID.1:ECX and EDX without OSXSAVE, APIC and HYPERVISOR, which are put in later.</summary>
    public required uint Leaf1Ecx { get; init; }

    /// <inheritdoc cref="Leaf1Ecx"/>
    public required uint Leaf1Edx { get; init; }

    /// <summary>CPUID.7.0:EBX.</summary>
    public required uint Leaf7Ebx { get; init; }

    /// <summary>CPUID.7.0:ECX.</summary>
    public required uint Leaf7Ecx { get; init; }

    /// <summary>CPUID.7.0:EDX.</summary>
    public required uint Leaf7Edx { get; init; }

    /// <summary>CPUID.7.1:EAX.</summary>
    public uint Leaf7Sub1Eax { get; init; }

    /// <summary>CPUID.7.2:EDX.</summary>
    public uint Leaf7Sub2Edx { get; init; }

    /// <summary>CPUID.80000001H:ECX.</summary>
    public required uint Extended1Ecx { get; init; }

    /// <summary>CPUID.80000001H:EDX.</summary>
    public required uint Extended1Edx { get; init; }

    /// <summary>State components that XCR0 may enable.</summary>
    public required ulong Xcr0 { get; init; }

    /// <summary>CPUID.D.1:EAX, the variants of XSAVE.</summary>
    public uint XsaveVariants { get; init; }

    /// <summary>Width of physical addresses.</summary>
    public int PhysicalBits { get; init; } = 46;

    /// <summary>Width of linear addresses: 48, or 57 with 5-level paging.</summary>
    public int LinearBits { get; init; } = 48;

    /// <summary>The model less some feature bits.</summary>
    public CpuModel Without((uint Leaf1Ecx, uint Leaf7Ebx) bits) => this with { Leaf1Ecx = Leaf1Ecx & ~bits.Leaf1Ecx, Leaf7Ebx = Leaf7Ebx & ~bits.Leaf7Ebx };

    /// <summary>The CPUID table of vCPU <paramref name="index"/> of <paramref name="count"/>.</summary>
    public CpuidTable CreateTable(int index, int count, bool hypervisor)
    {
        var t = new CpuidTable();
        uint id = (uint)index;
        t.Set(0, 0, new(0x1F, 0x756E_6547, 0x6C65_746E, 0x4965_6E69), anySubleaf: true);
        t.Set(1, 0, new(Signature, (id << 24) | ((uint)count << 16) | (8 << 8), Leaf1Ecx | (hypervisor ? 1u << 31 : 0), Leaf1Edx | (count > 1 ? 1u << 28 : 0)), anySubleaf: true);
        // Descriptor 0xFF: caches are described by leaf 4.
        t.Set(2, 0, new(0x00FF_0001, 0, 0, 0), anySubleaf: true);
        AddCaches(t, count);
        // ARAT: the local APIC timer runs in every idle state, so a guest needs no broadcast timer.
        t.Set(6, 0, new(1 << 2, 0, 0, 0), anySubleaf: true);
        t.Set(7, 0, new(2, Leaf7Ebx, Leaf7Ecx, Leaf7Edx));
        t.Set(7, 1, new(Leaf7Sub1Eax, 0, 0, 0));
        t.Set(7, 2, new(0, 0, 0, Leaf7Sub2Edx));
        AddTopology(t, 0xB, id, count);
        AddTopology(t, 0x1F, id, count);
        AddExtendedState(t);
        // TSC = 25 MHz crystal * 40 / 1 = 1 GHz, and nominal frequency the same: Linux then calibrates nothing, neither the TSC
        // nor the local APIC timer (which counts the crystal clock).
        t.Set(0x15, 0, new(1, 40, 25_000_000, 0), anySubleaf: true);
        t.Set(0x16, 0, new(1000, 1000, 25, 0), anySubleaf: true);
        t.Set(0x8000_0000, 0, new(0x8000_0008, 0, 0, 0), anySubleaf: true);
        t.Set(0x8000_0001, 0, new(0, 0, Extended1Ecx, Extended1Edx), anySubleaf: true);
        AddBrand(t, "Aerostat Virtual CPU");
        // L2: 2 MiB, 16 ways (encoding 8), 64-byte lines.
        t.Set(0x8000_0006, 0, new(0, 0, (2048 << 16) | (8 << 12) | 64, 0), anySubleaf: true);
        // Invariant TSC.
        t.Set(0x8000_0007, 0, new(0, 0, 0, 1 << 8), anySubleaf: true);
        t.Set(0x8000_0008, 0, new((uint)(PhysicalBits | (LinearBits << 8)), 0, 0, 0), anySubleaf: true);
        return t;
    }

    // Deterministic cache parameters (Intel SDM vol. 2A, CPUID leaf 4): L1 is private, L2 is private, L3 belongs to the package.
    private static void AddCaches(CpuidTable t, int count)
    {
        uint coreIds = (RoundUp(count) - 1) << 26, shared = (RoundUp(count) - 1) << 14;
        t.Set(4, 0, Cache(type: 1, level: 1, ways: 8, sets: 64, coreIds));
        t.Set(4, 1, Cache(type: 2, level: 1, ways: 8, sets: 64, coreIds));
        t.Set(4, 2, Cache(type: 3, level: 2, ways: 16, sets: 2048, coreIds));
        t.Set(4, 3, Cache(type: 3, level: 3, ways: 16, sets: 16384, coreIds | shared));
    }

    private static CpuidResult Cache(uint type, uint level, uint ways, uint sets, uint eax) =>
        new(eax | type | (level << 5) | (1 << 8), ((ways - 1) << 22) | 63, sets - 1, 0);

    // One package, one thread a core, x2APIC ID = index.
    private static void AddTopology(CpuidTable t, uint leaf, uint id, int count)
    {
        t.Set(leaf, 0, new(0, 1, 1 << 8, id));
        t.Set(leaf, 1, new((uint)int.Log2((int)RoundUp(count)), (uint)count, (2 << 8) | 1, id));
        t.Set(leaf, 2, new(0, 0, 2, id));
    }

    private void AddExtendedState(CpuidTable t)
    {
        uint size = ExtendedState.AreaSize(Xcr0);
        // EBX of sub-leaf 0 follows XCR0 and is put in by the processor.
        t.Set(0xD, 0, new((uint)Xcr0, size, size, (uint)(Xcr0 >> 32)));
        t.Set(0xD, 1, new(XsaveVariants, 0, 0, 0));
        if ((Xcr0 & ExtendedState.Avx) != 0)
            t.Set(0xD, 2, new(256, 576, 0, 0));
        if ((Xcr0 & ExtendedState.Pkru) != 0)
            t.Set(0xD, 9, new(8, CpuState.PkruOffset, 0, 0));
    }

    private static void AddBrand(CpuidTable t, string brand)
    {
        Span<byte> text = stackalloc byte[48];
        text.Clear();
        Encoding.ASCII.GetBytes(brand, text);
        for (uint i = 0; i < 3; i++)
        {
            Span<byte> part = text.Slice((int)i * 16, 16);
            t.Set(0x8000_0002 + i, 0, new(BitConverter.ToUInt32(part), BitConverter.ToUInt32(part[4..]), BitConverter.ToUInt32(part[8..]), BitConverter.ToUInt32(part[12..])), anySubleaf: true);
        }
    }

    private static uint RoundUp(int count) => System.Numerics.BitOperations.RoundUpToPowerOf2((uint)count);
}

/// <summary>State components of XSAVE (Intel SDM vol. 1 chapter 13).</summary>
internal static class ExtendedState
{
    public const ulong X87 = 1, Sse = 2, Avx = 4, Pkru = 1 << 9;

    /// <summary>Bytes of a standard-format XSAVE area for these components.</summary>
    public static uint AreaSize(ulong components) =>
        (components & Pkru) != 0 ? 840u : (components & Avx) != 0 ? 832u : 576;

    /// <summary>Bytes of a compacted XSAVE area for these components.</summary>
    public static uint CompactedSize(ulong components) =>
        576 + ((components & Avx) != 0 ? 256u : 0) + ((components & Pkru) != 0 ? 8u : 0);
}
