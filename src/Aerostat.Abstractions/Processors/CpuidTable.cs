namespace Aerostat.Processors;

/// <summary>The four registers that CPUID returns.</summary>
public readonly record struct CpuidResult(uint Eax, uint Ebx, uint Ecx, uint Edx);

/// <summary>
/// What CPUID answers on one vCPU before the dynamic bits (OSXSAVE, APIC enable, OSPKE, XSAVE size) are put in by the processor.
/// Immutable once the processor runs.
/// </summary>
public sealed class CpuidTable
{
    private readonly Dictionary<(uint Leaf, uint Subleaf), CpuidResult> _entries = [];

    /// <summary>Highest basic leaf; a request above it answers zeros, as does any hole.</summary>
    public uint HighestBasic => _entries.TryGetValue((0, 0), out CpuidResult r) ? r.Eax : 0;

    /// <summary>Sets one entry. A leaf that ignores the sub-leaf is stored under sub-leaf 0 with <paramref name="anySubleaf"/>.</summary>
    public CpuidTable Set(uint leaf, uint subleaf, CpuidResult value, bool anySubleaf = false)
    {
        _entries[(leaf, anySubleaf ? AnySubleaf : subleaf)] = value;
        if (anySubleaf)
            _entries[(leaf, 0)] = value;
        return this;
    }

    /// <summary>Looks an entry up; absent ones are all zeros.</summary>
    public CpuidResult Get(uint leaf, uint subleaf) =>
        _entries.TryGetValue((leaf, AnySubleaf), out CpuidResult r) || _entries.TryGetValue((leaf, subleaf), out r) ? r : default;

    /// <summary>All entries, for display and for handing to KVM. Sub-leaf 0xFFFFFFFF stands for "any".</summary>
    public IEnumerable<(uint Leaf, uint Subleaf, CpuidResult Value)> Entries =>
        _entries.OrderBy(e => e.Key).Select(e => (e.Key.Leaf, e.Key.Subleaf, e.Value));

    /// <summary>The sub-leaf number that means "any".</summary>
    public const uint AnySubleaf = 0xFFFFFFFF;
}
