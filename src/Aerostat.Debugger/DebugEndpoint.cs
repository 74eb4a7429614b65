using System.Globalization;
using System.Net;
using System.Net.Sockets;

namespace Aerostat.Debugger;

/// <summary>Where a debugger can connect: a TCP port, on loopback unless a host is named, or a Unix socket.</summary>
/// <param name="Address">What to listen on.</param>
/// <param name="Path">The socket's path, for a Unix socket.</param>
public sealed record DebugEndpoint(EndPoint Address, string? Path = null)
{
    /// <summary>Reads <c>PORT</c>, <c>HOST:PORT</c> (a numeric address) or the path of a socket, which has a slash in it.</summary>
    /// <exception cref="FormatException">It is none of these.</exception>
    public static DebugEndpoint Parse(string text)
    {
        ArgumentNullException.ThrowIfNull(text);
        if (text.Contains('/'))
        {
            if (System.Text.Encoding.UTF8.GetByteCount(text) > 107)
                throw new FormatException($"the path of a socket has at most 107 bytes; '{text}' is longer");
            return new DebugEndpoint(new UnixDomainSocketEndPoint(text), text);
        }
        int colon = text.LastIndexOf(':');
        IPAddress? host = IPAddress.Loopback;
        if ((colon >= 0 && !IPAddress.TryParse(text.AsSpan(0, colon).Trim("[]"), out host))
            || !ushort.TryParse(text.AsSpan(colon + 1), NumberStyles.None, CultureInfo.InvariantCulture, out ushort port))
            throw new FormatException($"'{text}' is no place to listen; give a port (0..65535), ADDRESS:PORT, or the path of a socket with a slash in it");
        return new DebugEndpoint(new IPEndPoint(host!, port));
    }

    /// <summary>What to type after GDB's <c>target remote</c>.</summary>
    public string ForGdb => Path ?? (Address is IPEndPoint ip && IPAddress.Loopback.Equals(ip.Address) ? $":{ip.Port}" : Address.ToString()!);
}
