using Aerostat.Kvm;

namespace Aerostat.Hosting;

/// <summary>What a look at the host's KVM has found, for <c>aerostat doctor</c>.</summary>
/// <param name="Usable">Whether machines can be made with it.</param>
/// <param name="Fast">Whether guests run at the processor's own speed; false where the kernel emulates them.</param>
/// <param name="Verdict">Which check came out, in a word or two.</param>
/// <param name="Explanation">One line: what was found and, if it hinders, what to do.</param>
/// <param name="MillionInstructionsPerSecond">Speed of a probe guest; 0 when it did not run.</param>
/// <param name="Capabilities">Names and values of the capability record; empty when the device could not be opened.</param>
public sealed record KvmReport(
    bool Usable, bool Fast, string Verdict, string Explanation, double MillionInstructionsPerSecond, IReadOnlyList<(string Name, string Value)> Capabilities)
{
    internal static KvmReport From(KvmStatus status) => new(
        status.Usable, status.Verdict == KvmVerdict.Fast, Name(status.Verdict), status.Explanation, status.MillionInstructionsPerSecond,
        [.. status.Capabilities?.Describe() ?? []]);

    private static string Name(KvmVerdict verdict) => verdict switch
    {
        KvmVerdict.Fast => "usable",
        KvmVerdict.Emulating => "usable but emulating",
        KvmVerdict.NoDevice => "no device",
        KvmVerdict.NoPermission => "no permission",
        KvmVerdict.NoVirtualization => "no virtualization",
        KvmVerdict.WrongVersion => "wrong version",
        KvmVerdict.MissingCapability => "missing capability",
        _ => "broken",
    };
}
