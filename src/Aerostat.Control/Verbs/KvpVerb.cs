using System.Net;
using System.Text.Json;
using System.Text.Json.Serialization;
using Aerostat.HyperV;

namespace Aerostat.Control;

/// <summary>Arguments of <c>kvp</c>; all absent: only look.</summary>
/// <param name="Set">A value for the guest, as "key=value"; nothing behind the sign takes it away.</param>
/// <param name="Adapter">The adapter that is to have addresses, by the GUID that the guest's daemon knows it by.</param>
/// <param name="Dhcp">Whether it is to ask a DHCP server.</param>
/// <param name="Addresses">Its addresses, each as "10.0.0.2/24".</param>
/// <param name="Gateways">Gateways.</param>
/// <param name="NameServers">Name servers.</param>
public sealed record KvpArguments(
    string? Set = null, string? Adapter = null, bool Dhcp = false, IReadOnlyList<string>? Addresses = null, IReadOnlyList<string>? Gateways = null, IReadOnlyList<string>? NameServers = null);

/// <summary>The answer to <c>kvp</c>.</summary>
/// <param name="Ready">Whether a daemon answers in the guest.</param>
/// <param name="Facts">What it says of its system.</param>
public sealed record KvpAnswer(bool Ready, IReadOnlyDictionary<string, string> Facts);

/// <summary><c>kvp</c>: key/value exchange with the guest, and its addresses.</summary>
internal sealed class KvpVerb() : ControlVerb<KvpArguments, KvpAnswer>(KvpJson.Default.KvpArguments, KvpJson.Default.KvpAnswer)
{
    // Linux's driver gives its daemon 30 s.
    private static readonly TimeSpan s_patience = TimeSpan.FromSeconds(60);

    private const string NoDaemon = "kvp: no daemon answers in the guest (Linux: hv_utils and hv_kvp_daemon, in Debian's package hyperv-daemons, or aerostat-agent)";

    public override string Name => "kvp";

    protected override async Task<KvpAnswer> AnswerAsync(ControlledMachine machine, KvpArguments arguments, CancellationToken cancellation)
    {
        if (machine.Machine.IntegrationComponents?.KeyValues is not { } values)
            throw new ControlException(ControlErrorKind.Refused, "kvp: only guests with --personality hyperv exchange keys and values");
        GuestAddresses? addresses = arguments.Adapter is null ? null : Read(arguments);
        if (addresses is null && (arguments.Dhcp || arguments.Addresses is { Count: > 0 } || arguments.Gateways is { Count: > 0 } || arguments.NameServers is { Count: > 0 }))
            throw new ControlException(ControlErrorKind.Usage, "kvp: whose addresses? 'adapter' names the guest's adapter");
        try
        {
            if (arguments.Set is { } pair)
            {
                int sign = pair.IndexOf('=', StringComparison.Ordinal);
                if (sign <= 0)
                    throw new ControlException(ControlErrorKind.Usage, $"kvp: '{ControlRequest.Shorten(pair)}' is no value; write KEY=VALUE");
                if (!await values.SetAsync(pair[..sign], sign == pair.Length - 1 ? null : pair[(sign + 1)..]).WaitAsync(s_patience, cancellation).ConfigureAwait(false))
                    throw new ControlException(ControlErrorKind.Refused, values.State == ComponentState.Ready ? "kvp: the guest refuses the value, or has none of that name to take away" : NoDaemon);
            }
            if (addresses is not null)
                Check(await values.SetAddressesAsync(addresses).WaitAsync(s_patience, cancellation).ConfigureAwait(false), addresses.Adapter);
        }
        catch (ArgumentException e)
        {
            throw new ControlException(ControlErrorKind.Usage, $"kvp: {e.Message}", e);
        }
        catch (TimeoutException e)
        {
            throw new ControlException(ControlErrorKind.Timeout, $"kvp: the guest has not answered in {s_patience.TotalSeconds:0} s", e);
        }
        return new KvpAnswer(values.State == ComponentState.Ready, values.Facts);
    }

    private static void Check(AddressOutcome outcome, string adapter)
    {
        if (outcome != AddressOutcome.Set)
            throw new ControlException(ControlErrorKind.Refused, outcome switch
            {
                AddressOutcome.NoDaemon => NoDaemon,
                AddressOutcome.NoAdapter => $"kvp: the guest's daemon knows no adapter {ControlRequest.Shorten(adapter)}; it looks for it in /sys/class/net/*/device/device_id",
                _ => "kvp: the guest's daemon could not set the addresses: hv_kvp_daemon runs /usr/libexec/hypervkvpd/hv_set_ifconfig, which Debian leaves to the administrator",
            });
    }

    private static GuestAddresses Read(KvpArguments arguments) => new(arguments.Adapter!)
    {
        Dhcp = arguments.Dhcp,
        Addresses =
        [
            .. (arguments.Addresses ?? []).Select(text => IPNetworkAddress.TryParse(text, out IPNetworkAddress address) ? address
                : throw new ControlException(ControlErrorKind.Usage, $"kvp: '{ControlRequest.Shorten(text)}' is no address with the length of its network, such as 10.0.0.2/24")),
        ],
        Gateways = ReadAll(arguments.Gateways),
        NameServers = ReadAll(arguments.NameServers),
    };

    private static IReadOnlyList<IPAddress> ReadAll(IReadOnlyList<string>? texts) =>
    [
        .. (texts ?? []).Select(text => IPAddress.TryParse(text, out IPAddress? address) ? address
            : throw new ControlException(ControlErrorKind.Usage, $"kvp: '{ControlRequest.Shorten(text)}' is no address")),
    ];
}

/// <summary>How the verb's arguments and answer are written.</summary>
[JsonSourceGenerationOptions(
    PropertyNamingPolicy = JsonKnownNamingPolicy.CamelCase, DefaultIgnoreCondition = JsonIgnoreCondition.WhenWritingNull,
    UnmappedMemberHandling = JsonUnmappedMemberHandling.Skip, MaxDepth = ControlRequest.MaxDepth)]
[JsonSerializable(typeof(KvpArguments))]
[JsonSerializable(typeof(KvpAnswer))]
public sealed partial class KvpJson : JsonSerializerContext;
