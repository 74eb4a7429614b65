using System.Runtime.InteropServices;

namespace Aerostat.Cpu.Tests;

/// <summary>What the lanes of a vector register or a memory operand hold.</summary>
internal enum LaneKind
{
    Integer,
    Single,
    Double,
    Extended,
}

/// <summary>Values that are likely to be handled wrongly, and random ones between them.</summary>
internal static class ValuePool
{
    private static readonly byte[] ShiftCounts = [0, 1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 255];

    private static readonly uint[] Singles =
    [
        0, 0x80000000, 1, 0x80000001, 0x007FFFFF, 0x807FFFFF, 0x00800000, 0x80800000, 0x3F800000, 0xBF800000, 0x3F800001, 0x3F7FFFFF,
        0x40000000, 0x3F000000, 0xBF000000, 0x3FC00000, 0x40200000, 0x7F7FFFFF, 0xFF7FFFFF, 0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC00000,
        0x7FC12345, 0x7F800001, 0x7FA00000, 0xFFBFFFFF, 0x4F000000, 0xCF000000, 0x4EFFFFFF, 0x5F000000, 0xDF000000, 0x4B000001, 0x33800000,
        0x00000100, 0x42280000,
    ];

    private static readonly ulong[] Doubles =
    [
        0, 1UL << 63, 1, (1UL << 63) | 1, 0x000FFFFFFFFFFFFF, 0x800FFFFFFFFFFFFF, 0x0010000000000000, 0x3FF0000000000000, 0xBFF0000000000000,
        0x3FF0000000000001, 0x3FEFFFFFFFFFFFFF, 0x4000000000000000, 0x3FE0000000000000, 0xBFE0000000000000, 0x3FF8000000000000,
        0x4004000000000000, 0x7FEFFFFFFFFFFFFF, 0xFFEFFFFFFFFFFFFF, 0x7FF0000000000000, 0xFFF0000000000000, 0x7FF8000000000000,
        0xFFF8000000000000, 0x7FF8000012345678, 0x7FF0000000000001, 0x7FF4000000000000, 0xFFF7FFFFFFFFFFFF, 0x41E0000000000000,
        0xC1E0000000000000, 0x41DFFFFFFFC00000, 0x43E0000000000000, 0xC3E0000000000000, 0x43DFFFFFFFFFFFFF, 0x4330000000000001,
        0x36A0000000000000, 0x3810000000000000, 0x47EFFFFFE0000000, 0x47EFFFFFFFFFFFFF, 0x4059000000000000,
    ];

    // Sign and exponent, then the significand (Intel SDM vol. 1 section 4.2.2 and tables 8-3, 8-20: unsupported encodings too).
    private static readonly (ushort, ulong)[] Extendeds =
    [
        (0, 0), (0x8000, 0), (0, 1), (0x8000, 1), (0, 0x7FFFFFFFFFFFFFFF), (0, 0x8000000000000000), (1, 0x8000000000000000),
        (0x3FFF, 0x8000000000000000), (0xBFFF, 0x8000000000000000), (0x3FFF, 0x8000000000000001), (0x3FFE, 0xFFFFFFFFFFFFFFFF),
        (0x4000, 0x8000000000000000), (0x3FFE, 0x8000000000000000), (0x3FFF, 0xC000000000000000), (0x4000, 0xC90FDAA22168C235),
        (0x7FFE, 0xFFFFFFFFFFFFFFFF), (0xFFFE, 0xFFFFFFFFFFFFFFFF), (0x7FFF, 0x8000000000000000), (0xFFFF, 0x8000000000000000),
        (0x7FFF, 0xC000000000000000), (0xFFFF, 0xC000000000000000), (0x7FFF, 0xC000000012345678), (0x7FFF, 0x8000000000000001),
        (0x7FFF, 0xA000000000000000), (0xFFFF, 0xBFFFFFFFFFFFFFFF), (0x403E, 0x8000000000000000), (0xC03E, 0x8000000000000000),
        (0x403D, 0xFFFFFFFFFFFFFFFE), (0x401E, 0x8000000000000000), (0x401D, 0xFFFFFFFE00000000), (0x400E, 0x8000000000000000),
        (0x3F80, 0x8000000000000000), (0x3C00, 0x8000000000000000), (0x43FF, 0x8000000000000000), (0x407F, 0x8000000000000000),
        (0x403B, 0xDE0B6B3A763FFFF0), (0x4005, 0xC800000000000000), (0x1234, 0x0123456789ABCDEF), (0x7FFF, 0), (0x7FFF, 0x4000000000000000),
    ];

    /// <summary>A 64-bit register value.</summary>
    public static ulong Integer(Rng rng)
    {
        switch (rng.Below(8))
        {
            case 0:
                return unchecked((ulong)(rng.Below(7) - 3L));
            case 1:
                int width = rng.Pick<int>([8, 16, 32, 64]);
                ulong top = 1UL << (width - 1);
                ulong v = rng.Below(4) switch { 0 => top, 1 => top - 1, 2 => top * 2 - 1, _ => top + 1 };
                return rng.OneIn(2) ? v : v | (rng.Next() << 8 << (width - 8));
            case 2:
                return 1UL << rng.Below(64);
            case 3:
                return (1UL << rng.Below(64)) - 1;
            case 4:
                return (ulong)rng.Pick<byte>(ShiftCounts) | (rng.OneIn(2) ? rng.Next() << 8 : 0);
            case 5:
                return rng.Next() & rng.Next() & rng.Next();
            case 6:
                return rng.Next() >> rng.Below(64);
            default:
                return rng.Next();
        }
    }

    public static byte Count(Rng rng) => rng.OneIn(3) ? (byte)rng.Next() : rng.Pick<byte>(ShiftCounts);

    public static uint Single(Rng rng) => rng.Below(8) switch
    {
        0 => (uint)rng.Next(),
        1 or 2 => BitConverter.SingleToUInt32Bits((int)rng.Next() / (float)(1 << rng.Below(31))),
        _ => rng.Pick<uint>(Singles),
    };

    public static ulong Double(Rng rng) => rng.Below(8) switch
    {
        0 => rng.Next(),
        1 or 2 => BitConverter.DoubleToUInt64Bits((long)rng.Next() / (double)(1L << rng.Below(63))),
        _ => rng.Pick<ulong>(Doubles),
    };

    public static void Extended(Rng rng, Span<byte> to)
    {
        (ushort exponent, ulong significand) = rng.Below(8) switch
        {
            0 => ((ushort)rng.Next(), rng.Next()),
            1 or 2 => ((ushort)((rng.Next() & 0x8000) | (uint)(0x3FFF - 70 + rng.Below(140))), rng.Next() | 1UL << 63),
            3 => ((ushort)((rng.Next() & 0x8000) | (uint)(0x3FFF + rng.Below(64))), (rng.Next() & (ulong.MaxValue << rng.Below(64))) | 1UL << 63),
            _ => rng.Pick<(ushort, ulong)>(Extendeds),
        };
        MemoryMarshal.Write(to, significand);
        MemoryMarshal.Write(to[8..], exponent);
    }

    /// <summary>Fills bytes with lanes of a kind; integer lanes get every width.</summary>
    public static void Lanes(Rng rng, LaneKind kind, Span<byte> to)
    {
        if (kind != LaneKind.Integer && rng.OneIn(16))
            kind = LaneKind.Integer;
        switch (kind)
        {
            case LaneKind.Single:
                for (int i = 0; i + 4 <= to.Length; i += 4)
                    MemoryMarshal.Write(to[i..], Single(rng));
                break;
            case LaneKind.Double:
                for (int i = 0; i + 8 <= to.Length; i += 8)
                    MemoryMarshal.Write(to[i..], Double(rng));
                break;
            case LaneKind.Extended:
                for (int i = 0; i + 10 <= to.Length; i += 16)
                    Extended(rng, to[i..]);
                break;
            default:
                int width = rng.Pick<int>([1, 2, 4, 8, 8]);
                for (int i = 0; i + width <= to.Length; i += width)
                {
                    ulong v = Integer(rng);
                    if (width == 1)
                        to[i] = (byte)v;
                    else if (width == 2)
                        MemoryMarshal.Write(to[i..], (ushort)v);
                    else if (width == 4)
                        MemoryMarshal.Write(to[i..], (uint)v);
                    else
                        MemoryMarshal.Write(to[i..], v);
                }

                break;
        }
    }
}
