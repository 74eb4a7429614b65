namespace Aerostat.Debugger;

/// <summary>Frames packets: checksum, and escapes for what may not stand in a body.</summary>
internal static class PacketWriter
{
    /// <summary>A packet with a body of any bytes.</summary>
    public static byte[] Frame(ReadOnlySpan<byte> body)
    {
        List<byte> packet = new(body.Length + 8) { (byte)'$' };
        byte sum = 0;
        foreach (byte b in body)
        {
            if (b is (byte)'#' or (byte)'$' or (byte)'}' or (byte)'*')
            {
                packet.Add((byte)'}');
                packet.Add((byte)(b ^ 0x20));
                sum += (byte)('}' + (b ^ 0x20));
            }
            else
            {
                packet.Add(b);
                sum += b;
            }
        }
        packet.Add((byte)'#');
        packet.Add((byte)"0123456789abcdef"[sum >> 4]);
        packet.Add((byte)"0123456789abcdef"[sum & 15]);
        return [.. packet];
    }

    /// <summary>A packet with a body of ASCII text.</summary>
    public static byte[] Frame(string body) => Frame(System.Text.Encoding.Latin1.GetBytes(body));
}
