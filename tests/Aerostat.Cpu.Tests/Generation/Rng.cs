namespace Aerostat.Cpu.Tests;

/// <summary>A small seeded generator whose sequence never changes, so that a seed names a case for good (SplitMix64).</summary>
internal sealed class Rng(ulong seed)
{
    private ulong _state = seed;

    public ulong Next()
    {
        ulong z = _state += 0x9E3779B97F4A7C15;
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
        return z ^ (z >> 31);
    }

    /// <summary>0..count-1.</summary>
    public int Below(int count) => (int)(Next() % (ulong)count);

    /// <summary>True once in <paramref name="n"/> times.</summary>
    public bool OneIn(int n) => Below(n) == 0;

    public T Pick<T>(ReadOnlySpan<T> from) => from[Below(from.Length)];

    public void Fill(Span<byte> bytes)
    {
        int i = 0;
        for (; i + 8 <= bytes.Length; i += 8)
            BitConverter.TryWriteBytes(bytes[i..], Next());
        for (; i < bytes.Length; i++)
            bytes[i] = (byte)Next();
    }
}
