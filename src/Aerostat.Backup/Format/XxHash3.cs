using System.Buffers.Binary;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.X86;
using System.Security.Cryptography;

namespace Aerostat.Backup;

/// <summary>
/// XXH3 of 128 bits with a secret (xxHash's specification, doc/xxhash_spec.md, "XXH3"; there XXH3_128bits_withSecret), for inputs of more than 240 bytes: chunks have
/// at least a sector.
/// </summary>
internal sealed class XxHash3
{
    /// <summary>Fewer bytes are hashed in another way, which is not here.</summary>
    public const int LeastLength = 241;

    private const int SecretSize = 192, Stripe = 64, StripesPerBlock = (SecretSize - Stripe) / 8, Block = Stripe * StripesPerBlock;
    private const uint Prime32A = 0x9E3779B1, Prime32B = 0x85EBCA77, Prime32C = 0xC2B2AE3D;
    private const ulong Prime64A = 0x9E3779B185EBCA87, Prime64B = 0xC2B2AE3D27D4EB4F, Prime64C = 0x165667B19E3779F9, Prime64D = 0x85EBCA77C2B2AE63, Prime64E = 0x27D4EB2F165667C5;
    private const ulong Avalanche = 0x165667919E3779F9;

    private readonly byte[] secret;

    /// <summary>With a secret of 192 bytes.</summary>
    public XxHash3(ReadOnlySpan<byte> secret)
    {
        ArgumentOutOfRangeException.ThrowIfNotEqual(secret.Length, SecretSize);
        this.secret = secret.ToArray();
    }

    /// <summary>With a secret that comes from a seed: SHA-256 of the seed and a count, as often as there is room.</summary>
    public static XxHash3 FromSeed(long seed)
    {
        byte[] secret = new byte[SecretSize];
        Span<byte> from = stackalloc byte[sizeof(long) + 1];
        BinaryPrimitives.WriteInt64LittleEndian(from, seed);
        for (int at = 0; at < SecretSize; at += SHA256.HashSizeInBytes, from[^1]++)
            SHA256.HashData(from, secret.AsSpan(at));
        return new XxHash3(secret);
    }

    /// <summary>The hash: lower and upper half.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public (ulong Low, ulong High) Of(ReadOnlySpan<byte> input)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(input.Length, LeastLength);
        Span<ulong> sums = [Prime32C, Prime64A, Prime64B, Prime64C, Prime64D, Prime32B, Prime64E, Prime32A];
        int blocks = (input.Length - 1) / Block, stripes = (input.Length - 1 - (blocks * Block)) / Stripe;
        if (Avx2.IsSupported)
        {
            Vector256<ulong> low = Vector256.Create<ulong>(sums), high = Vector256.Create<ulong>(sums[4..]);
            ref byte data = ref MemoryMarshal.GetReference(input), key = ref MemoryMarshal.GetArrayDataReference(secret);
            nuint at = 0;
            Vector256<uint> factor = Vector256.Create(Prime32A);
            for (int block = 0; block < blocks; block++)
            {
                for (nuint stripe = 0; stripe < StripesPerBlock; stripe++, at += Stripe)
                    Accumulate(ref low, ref high, ref data, at, ref key, stripe * 8);
                Scramble(ref low, ref key, SecretSize - Stripe, factor);
                Scramble(ref high, ref key, SecretSize - Stripe + 32, factor);
            }
            for (nuint stripe = 0; stripe < (nuint)stripes; stripe++, at += Stripe)
                Accumulate(ref low, ref high, ref data, at, ref key, stripe * 8);
            Accumulate(ref low, ref high, ref data, (nuint)(input.Length - Stripe), ref key, SecretSize - Stripe - 7);
            low.CopyTo(sums);
            high.CopyTo(sums[4..]);
        }
        else
        {
            int at = 0;
            for (int block = 0; block < blocks; block++)
            {
                for (int stripe = 0; stripe < StripesPerBlock; stripe++, at += Stripe)
                    Accumulate(sums, input[at..], stripe * 8);
                for (int i = 0; i < sums.Length; i++)
                    sums[i] = (sums[i] ^ (sums[i] >> 47) ^ Key(SecretSize - Stripe + (i * 8))) * Prime32A;
            }
            for (int stripe = 0; stripe < stripes; stripe++, at += Stripe)
                Accumulate(sums, input[at..], stripe * 8);
            Accumulate(sums, input[^Stripe..], SecretSize - Stripe - 7);
        }
        ulong length = (ulong)input.Length;
        return (Merge(sums, 11, length * Prime64A), Merge(sums, SecretSize - Stripe - 11, ~(length * Prime64B)));
    }

    private static void Accumulate(ref Vector256<ulong> low, ref Vector256<ulong> high, ref byte data, nuint at, ref byte key, nuint keyAt)
    {
        Accumulate(ref low, Vector256.LoadUnsafe(ref data, at).AsUInt64(), Vector256.LoadUnsafe(ref key, keyAt).AsUInt64());
        Accumulate(ref high, Vector256.LoadUnsafe(ref data, at + 32).AsUInt64(), Vector256.LoadUnsafe(ref key, keyAt + 32).AsUInt64());
    }

    // Each half of a word by the other; the word itself goes to its neighbour.
    private static void Accumulate(ref Vector256<ulong> sum, Vector256<ulong> word, Vector256<ulong> key)
    {
        Vector256<ulong> mixed = word ^ key;
        sum += Avx2.Multiply(mixed.AsUInt32(), (mixed >> 32).AsUInt32()) + Avx2.Shuffle(word.AsUInt32(), 0b01_00_11_10).AsUInt64();
    }

    // A product of 64 by 32 bits from two of 32 by 32.
    private static void Scramble(ref Vector256<ulong> sum, ref byte key, nuint keyAt, Vector256<uint> factor)
    {
        Vector256<ulong> mixed = sum ^ (sum >> 47) ^ Vector256.LoadUnsafe(ref key, keyAt).AsUInt64();
        sum = Avx2.Multiply(mixed.AsUInt32(), factor) + (Avx2.Multiply((mixed >> 32).AsUInt32(), factor) << 32);
    }

    private void Accumulate(Span<ulong> sums, ReadOnlySpan<byte> stripe, int keyAt)
    {
        for (int i = 0; i < sums.Length; i++)
        {
            ulong word = BinaryPrimitives.ReadUInt64LittleEndian(stripe[(i * 8)..]), mixed = word ^ Key(keyAt + (i * 8));
            sums[i ^ 1] += word;
            sums[i] += (uint)mixed * (mixed >> 32);
        }
    }

    private ulong Merge(ReadOnlySpan<ulong> sums, int keyAt, ulong start)
    {
        ulong result = start;
        for (int i = 0; i < sums.Length; i += 2)
        {
            ulong high = Math.BigMul(sums[i] ^ Key(keyAt + (i * 8)), sums[i + 1] ^ Key(keyAt + (i * 8) + 8), out ulong low);
            result += low ^ high;
        }
        result = (result ^ (result >> 37)) * Avalanche;
        return result ^ (result >> 32);
    }

    private ulong Key(int at) => BinaryPrimitives.ReadUInt64LittleEndian(secret.AsSpan(at));
}
