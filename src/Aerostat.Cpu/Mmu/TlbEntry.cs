using System.Runtime.InteropServices;

namespace Aerostat.Cpu;

/// <summary>
/// One entry of the software TLB. A tag is the page's linear address when that access may go straight to <see cref="Host"/>,
/// otherwise an address of a page that this entry never serves. <c>linear ^ tag</c> is then the offset in the page, or large:
/// one unsigned comparison with <c>4096 - size</c> checks tag and page crossing at once.
/// </summary>
[StructLayout(LayoutKind.Sequential)]
internal unsafe struct TlbEntry
{
    public ulong ReadTag;
    public ulong WriteTag;
    /// <summary>Host address of the page.</summary>
    public byte* Host;
    /// <summary>Guest physical address of the page.</summary>
    public ulong Gpa;
}
