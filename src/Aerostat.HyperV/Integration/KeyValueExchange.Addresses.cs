using System.Net;
using System.Net.Sockets;

namespace Aerostat.HyperV;

/// <summary>Addresses that the host wants a guest's network adapter to have.</summary>
/// <param name="Adapter">The adapter as the guest's daemon knows it: what hv_kvp_daemon finds in /sys/class/net/*/device/device_id, a GUID in braces.</param>
public sealed record GuestAddresses(string Adapter)
{
    /// <summary>The guest asks a DHCP server.</summary>
    public bool Dhcp { get; init; }

    /// <summary>Addresses with the length of their network, IPv4 and IPv6.</summary>
    public IReadOnlyList<IPNetworkAddress> Addresses { get; init; } = [];

    /// <summary>Gateways.</summary>
    public IReadOnlyList<IPAddress> Gateways { get; init; } = [];

    /// <summary>Name servers.</summary>
    public IReadOnlyList<IPAddress> NameServers { get; init; } = [];
}

/// <summary>An address with the length of its network's prefix.</summary>
/// <param name="Address">The address.</param>
/// <param name="PrefixLength">0..32, or 0..128 for IPv6.</param>
public readonly record struct IPNetworkAddress(IPAddress Address, int PrefixLength)
{
    /// <summary>Reads "10.0.0.2/24" or "fd00::2/64".</summary>
    public static bool TryParse(string text, out IPNetworkAddress result)
    {
        ArgumentNullException.ThrowIfNull(text);
        result = default;
        string[] parts = text.Split('/');
        if (parts.Length != 2 || !IPAddress.TryParse(parts[0], out IPAddress? address) || address.AddressFamily == AddressFamily.InterNetwork != parts[0].Contains('.') || parts[0].Contains('%')
            || !byte.TryParse(parts[1], System.Globalization.NumberStyles.None, null, out byte length) || length > (address.AddressFamily == AddressFamily.InterNetwork ? 32 : 128))
            return false;
        result = new IPNetworkAddress(address, length);
        return true;
    }

    // As the guest's daemon wants it: 255.255.255.0, but /64.
    internal string Mask => Address.AddressFamily == AddressFamily.InterNetwork
        ? new IPAddress([.. BitConverter.GetBytes(IPAddress.HostToNetworkOrder((int)(PrefixLength == 0 ? 0 : uint.MaxValue << (32 - PrefixLength))))]).ToString()
        : $"/{PrefixLength}";
}

/// <summary>What became of addresses for a guest.</summary>
public enum AddressOutcome
{
    /// <summary>The guest's daemon has set them.</summary>
    Set,
    /// <summary>There is no daemon: the guest's driver has agreed on no version.</summary>
    NoDaemon,
    /// <summary>It knows no such adapter.</summary>
    NoAdapter,
    /// <summary>It could not, or its script (hv_set_ifconfig) is not there or has failed.</summary>
    Refused,
}

public sealed partial class KeyValueExchange
{
    private const byte SetAddresses = 5;
    private const uint NotFound = 0x8004_1002;
    // Right behind operation and pool; texts are UTF-16, lists have semicolons.
    private const int AdapterAt = 2, AdapterSize = 256, FamilyAt = AdapterAt + AdapterSize, DhcpAt = FamilyAt + 1, AddressesAt = DhcpAt + 1, AddressesSize = 2048,
        MasksAt = AddressesAt + AddressesSize, GatewaysAt = MasksAt + AddressesSize, GatewaysSize = 1024, ServersAt = GatewaysAt + GatewaysSize, AddressesBodySize = ServersAt + AddressesSize;

    /// <summary>Has the guest's daemon give an adapter addresses. Any thread.</summary>
    /// <exception cref="ArgumentException">There are none, or more than the message has room for.</exception>
    public async Task<AddressOutcome> SetAddressesAsync(GuestAddresses addresses)
    {
        ArgumentNullException.ThrowIfNull(addresses);
        if (addresses.Addresses.Count == 0 && !addresses.Dhcp)
            throw new ArgumentException("there are no addresses to set");
        byte[] body = new byte[AddressesBodySize];
        body[0] = SetAddresses;
        body[1] = ExternalPool;
        body[FamilyAt] = (byte)addresses.Addresses.Aggregate(0, (bits, a) => bits | (a.Address.AddressFamily == AddressFamily.InterNetwork ? 1 : 2));
        body[DhcpAt] = addresses.Dhcp ? (byte)1 : (byte)0;
        Put(body.AsSpan(AdapterAt, AdapterSize), addresses.Adapter);
        Put(body.AsSpan(AddressesAt, AddressesSize), string.Join(';', addresses.Addresses.Select(a => a.Address)));
        Put(body.AsSpan(MasksAt, AddressesSize), string.Join(';', addresses.Addresses.Select(a => a.Mask)));
        Put(body.AsSpan(GatewaysAt, GatewaysSize), string.Join(';', addresses.Gateways));
        Put(body.AsSpan(ServersAt, AddressesSize), string.Join(';', addresses.NameServers));
        return await WishAsync(body).ConfigureAwait(false) switch
        {
            Succeeded => AddressOutcome.Set,
            NoDaemon => AddressOutcome.NoDaemon,
            NotFound => AddressOutcome.NoAdapter,
            _ => AddressOutcome.Refused,
        };

        static void Put(Span<byte> at, string text)
        {
            if (text.Length >= at.Length / 2)
                throw new ArgumentException($"the guest takes no list of {text.Length} characters: there is room for {(at.Length / 2) - 1}");
            WriteText(at, text);
        }
    }
}
