using System.Net;
using System.Security.Cryptography;
using Aerostat.HyperV;
using Aerostat.Loader;
using Aerostat.Machine;
using Xunit;

namespace Aerostat.Boot.Tests;

/// <summary>What the host gives a stock guest with Debian's own daemons: files (hv_fcopy_daemon), and values and addresses (hv_kvp_daemon).</summary>
public sealed class HostGivesTests
{
    private const string Adapter = "{7dcfaad4-0e42-4c43-a5bb-8b3b5f4a5d77}";

    // The daemon looks for adapters of the VMBus, which has none here: one that looks like it stands in. The script is the administrator's, as in Debian.
    private const string Script = $$"""
        while read -r m; do insmod $m || echo FAILED=$m; done < /etc/modules
        mkdir -p /var/lib /tmp /usr/libexec/hypervkvpd
        busybox ip link set dummy0 up || echo FAILED=dummy
        mac=$(cat /sys/class/net/dummy0/address)
        mount -t tmpfs tmpfs /sys/class/net || echo FAILED=mount
        mkdir -p /sys/class/net/dummy0/device
        echo $mac > /sys/class/net/dummy0/address
        echo '{{Adapter}}' > /sys/class/net/dummy0/device/device_id
        cat > /usr/libexec/hypervkvpd/hv_set_ifconfig <<'END'
        #!/bin/sh
        . "$1"
        busybox ip addr add $IPADDR0/$(busybox ipcalc -p $IPADDR0 $NETMASK0 | cut -d= -f2) dev $DEVICE && busybox ip route add default via $GATEWAY && echo ASSIGNED=$DNS1
        END
        chmod 755 /usr/libexec/hypervkvpd/hv_set_ifconfig
        until [ -e /dev/vmbus/hv_fcopy ] && [ -e /dev/vmbus/hv_kvp ]; do sleep 0.1; done
        echo WITHOUT-DAEMONS
        read -r line < /dev/ttyS0
        hv_fcopy_daemon -n &
        hv_kvp_daemon -n > /dev/ttyS0 &
        read -r line < /dev/ttyS0
        echo FILE=$(sha256sum < /tmp/new/folder/data | cut -c1-64)
        echo LEFT=$(ls /tmp)
        echo ADDRESS=$(busybox ip -4 -o addr show dummy0 | awk '{ print $4 }')
        echo GATEWAY=$(busybox ip route | awk '/^default/ { print $3 }')
        echo VALUE=$(tr -d '\0' < /var/lib/hyperv/.kvp_pool_0)
        """;

    [Fact]
    public async Task DebiansDaemonsTakeFilesValuesAndAddresses()
    {
        CancellationToken token = TestContext.Current.CancellationToken;
        IReadOnlyList<InitramfsFile> daemons = FrozenGuest.Daemons();
        byte[] data = new byte[200_001], first = new byte[10];
        new Random(6).NextBytes(data);
        BootOutcome outcome = await Guest.BootAsync(
            accelerator: "translator", personality: "hyperv", modules: ["hv_utils", "dummy"], script: Script, files: daemons,
            companion: async (machine, console) =>
            {
                HyperVComponents components = machine.IntegrationComponents!;
                Assert.True(await console.WaitForAsync("WITHOUT-DAEMONS", token), console.Text);
                while (components.Files.State != ComponentState.Ready)
                    await Task.Delay(20, token);
                FileCopyException e = await Assert.ThrowsAsync<FileCopyException>(() => CopyAsync(first, "/tmp/x"));
                Assert.Contains("hv_fcopy_daemon", e.Message, StringComparison.Ordinal);
                Assert.Equal(AddressOutcome.NoDaemon, await components.KeyValues.SetAddressesAsync(Wanted(Adapter)));
                await machine.SendSerialAsync("\n"u8.ToArray(), token);

                // Until the daemon has registered it is refused.
                while (true)
                {
                    try
                    {
                        Assert.Equal(first.Length, await CopyAsync(first, "/tmp/new/folder/data"));
                        break;
                    }
                    catch (FileCopyException) when (!machine.Exit.IsCompleted)
                    {
                        await Task.Delay(50, token);
                    }
                }
                e = await Assert.ThrowsAsync<FileCopyException>(() => CopyAsync(data, "/tmp/new/folder/data"));
                Assert.Contains("--overwrite", e.Message, StringComparison.Ordinal);
                Assert.Equal(data.Length, await CopyAsync(data, "/tmp/new/folder/data", overwrite: true));
                await Assert.ThrowsAsync<FileCopyException>(() => CopyAsync(first, "/tmp/none/data", createFolders: false));
                // Given up half-way: nothing is left of it.
                using CancellationTokenSource giveUp = new();
                Half source = new(data, giveUp);
                await Assert.ThrowsAnyAsync<OperationCanceledException>(() => components.Files.CopyAsync(source, "/tmp/half", false, false, null, giveUp.Token));

                while (components.KeyValues.State != ComponentState.Ready && !machine.Exit.IsCompleted)
                    await Task.Delay(50, token);
                Assert.True(await components.KeyValues.SetAsync("colour", "blue"));
                Assert.Equal(AddressOutcome.NoAdapter, await components.KeyValues.SetAddressesAsync(Wanted("{00000000-0000-0000-0000-000000000000}")));
                AddressOutcome set = await components.KeyValues.SetAddressesAsync(Wanted(Adapter));
                Assert.True(set == AddressOutcome.Set, $"{set}: {console.Text}");
                await machine.SendSerialAsync("\n"u8.ToArray(), token);

                Task<long> CopyAsync(byte[] bytes, string to, bool overwrite = false, bool createFolders = true) =>
                    components.Files.CopyAsync(new MemoryStream(bytes), to, overwrite, createFolders, null, token);
            });
        Guest.AssertPoweredOff(outcome);
        Assert.DoesNotContain("FAILED=", outcome.Console, StringComparison.Ordinal);
        Assert.Equal(Convert.ToHexStringLower(SHA256.HashData(data)), outcome.Value("FILE"));
        Assert.Equal("new", outcome.Value("LEFT"));
        Assert.Equal(("10.20.30.40/20", "10.20.16.1", "10.20.16.53"), (outcome.Value("ADDRESS"), outcome.Value("GATEWAY"), outcome.Value("ASSIGNED")));
        Assert.Equal("colourblue", outcome.Value("VALUE"));
    }

    private static GuestAddresses Wanted(string adapter) => new(adapter)
    {
        Addresses = [IPNetworkAddress.TryParse("10.20.30.40/20", out IPNetworkAddress address) ? address : default],
        Gateways = [IPAddress.Parse("10.20.16.1")],
        NameServers = [IPAddress.Parse("10.20.16.53")],
    };

    // Gives up once half of it has been read.
    private sealed class Half(byte[] data, CancellationTokenSource giveUp) : MemoryStream(data)
    {
        public override ValueTask<int> ReadAsync(Memory<byte> buffer, CancellationToken cancellationToken = default)
        {
            if (Position > Length / 2)
                giveUp.Cancel();
            return base.ReadAsync(buffer, cancellationToken);
        }
    }
}
