using System.Runtime.InteropServices;

namespace Aerostat.Cpu;

/// <summary>
/// One entry of the software TLB. A tag is the page's linear address when that access may go straight to the host page beside it,
/// otherwise an address of a page that this entry never serves. <c>linear ^ tag</c> is then the offset in the page, or large:
/// one unsigned comparison with <c>4096 - size</c> checks tag and page crossing at once.
/// </summary>
/// <remarks>
/// Checks of loops in generated code compare whatever address they get with the page they found last (<see cref="CheckSite"/>), so the tag of one that has
/// found none has to be one that no address has; empty entries have it too, with an index that is not theirs.
/// There is none among 64-bit numbers; it is a page that is not canonical, chosen at random for each vCPU (<see cref="TlbMemory"/>). Who found it
/// would reach a spare page of the vCPU's own instead of #GP, and never memory of anybody else: host pages belong to tags, one for each.
/// </remarks>
[StructLayout(LayoutKind.Sequential)]
internal unsafe struct TlbEntry
{
    public ulong ReadTag;
    /// <summary>Host address of the page, or of the spare page.</summary>
    public byte* ReadHost;
    public ulong WriteTag;
    /// <summary>The same for writes.</summary>
    public byte* WriteHost;
}
