namespace Aerostat.HyperV.Tests;

/// <summary>Numbers that hostile guests like.</summary>
internal static class HostileValues
{
    /// <summary>Nothing, everything, one bit, anything, or a number that makes sense as often as not.</summary>
    public static ulong Odd(Random random, int small) => random.Next(6) switch
    {
        0 => 0,
        1 => ulong.MaxValue,
        2 => 1UL << random.Next(64),
        3 => (ulong)random.NextInt64(),
        _ => (ulong)random.Next(small),
    };
}
