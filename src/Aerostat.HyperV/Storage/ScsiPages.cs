using System.Buffers.Binary;
using System.Security.Cryptography;
using System.Text;

namespace Aerostat.HyperV;

/// <summary>
/// What a disk says of itself (SPC-4, 6.4, 7.5 and 7.8; SBC-3, 6.4 and 6.6). The vendor is Microsoft's: guests' drivers go by
/// that name where a host cannot be asked for what it supports.
/// </summary>
internal static class ScsiPages
{
    public const uint MostUnmapBlocks = 1 << 21, MostUnmapRanges = 32, MostSameBlocks = 1 << 16;
    // The host's pages.
    private const int Granularity = 8;
    private const string Vendor = "Msft    ", Product = "Virtual Disk    ", Revision = "1.0 ";

    /// <summary>INQUIRY without a page.</summary>
    public static byte[] Standard(bool present)
    {
        byte[] d = new byte[36];
        // Nothing can be there: qualifier 3, type unknown.
        d[0] = present ? (byte)0 : (byte)0x7F;
        d[2] = 6;
        // Response format 2, LUNs by REPORT LUNS; command queueing.
        d[3] = 0x12;
        d[4] = (byte)(d.Length - 5);
        d[7] = 2;
        Encoding.ASCII.GetBytes(Vendor + Product + Revision, d.AsSpan(8));
        return d;
    }

    /// <summary>A page of vital product data; null: there is none.</summary>
    public static byte[]? VitalProductData(byte page, string name, string serial, int transferBlocks, bool readOnly)
    {
        byte[] body;
        switch (page)
        {
            case 0x00:
                body = [0x00, 0x80, 0x83, 0xB0, 0xB1, 0xB2];
                break;
            case 0x80:
                body = Encoding.ASCII.GetBytes(serial);
                break;
            case 0x83:
                body = Identification(name, serial);
                break;
            case 0xB0:
                body = new byte[0x3C];
                // WRITE SAME without a number of blocks is refused.
                body[0] = 1;
                BinaryPrimitives.WriteUInt16BigEndian(body.AsSpan(2), Granularity);
                BinaryPrimitives.WriteInt32BigEndian(body.AsSpan(4), transferBlocks);
                if (readOnly)
                    break;
                BinaryPrimitives.WriteUInt32BigEndian(body.AsSpan(16), MostUnmapBlocks);
                BinaryPrimitives.WriteUInt32BigEndian(body.AsSpan(20), MostUnmapRanges);
                BinaryPrimitives.WriteUInt32BigEndian(body.AsSpan(24), Granularity);
                BinaryPrimitives.WriteUInt32BigEndian(body.AsSpan(28), 1u << 31);
                BinaryPrimitives.WriteUInt64BigEndian(body.AsSpan(32), MostSameBlocks);
                break;
            case 0xB1:
                body = new byte[0x3C];
                // Does not rotate.
                body[1] = 1;
                break;
            case 0xB2:
                // UNMAP, WRITE SAME with unmapping, unmapped blocks read as zeros; thin.
                body = readOnly ? [0, 0, 0, 0] : [0, 0xC4, 2, 0];
                break;
            default:
                return null;
        }
        byte[] d = new byte[4 + body.Length];
        d[1] = page;
        BinaryPrimitives.WriteUInt16BigEndian(d.AsSpan(2), (ushort)body.Length);
        body.CopyTo(d, 4);
        return d;
    }

    // Vendor and serial number in letters, and a number of our own (NAA 3, locally assigned) made of the name and the serial number.
    private static byte[] Identification(string name, string serial)
    {
        byte[] text = Encoding.ASCII.GetBytes(Vendor + (serial.Length > 0 ? serial : name));
        Span<byte> hash = SHA256.HashData(Encoding.UTF8.GetBytes($"aerostat disk {name} {serial}")).AsSpan(0, 8);
        hash[0] = (byte)(0x30 | (hash[0] & 0xF));
        return [2, 1, 0, (byte)text.Length, .. text, 1, 3, 0, 8, .. hash];
    }

    /// <summary>Pages of MODE SENSE, with nothing before them; null: there is no such page.</summary>
    /// <param name="page">8, 10, or 63 for all.</param>
    /// <param name="changeable">Asks for what could be changed: nothing.</param>
    public static byte[]? Mode(byte page, bool changeable)
    {
        byte[] caching = new byte[20], control = new byte[12];
        (caching[0], caching[1]) = (0x08, 18);
        (control[0], control[1]) = (0x0A, 10);
        if (!changeable)
        {
            // The write cache is on: what is written is durable after SYNCHRONIZE CACHE.
            caching[2] = 4;
            // Commands may be reordered.
            control[3] = 0x10;
        }
        return page switch
        {
            0x08 => caching,
            0x0A => control,
            0x3F => [.. caching, .. control],
            _ => null,
        };
    }
}
