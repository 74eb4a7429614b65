using System.Net.Sockets;
using System.Text;
using System.Text.Json;
using Aerostat.Hosting;
using Aerostat.Machine;
using Xunit;

namespace Aerostat.Control.Tests;

/// <summary>A machine with a guest of a few bytes of real-mode code, and its control server.</summary>
internal sealed class ControlledGuest : IAsyncDisposable
{
    public static readonly TimeSpan Limit = TimeSpan.FromMinutes(2);

    /// <summary>jmp $.</summary>
    public static byte[] Forever => [0xEB, 0xFE];

    /// <summary>Polls PM1_STS for the power button, and powers off when it is pressed (ACPI 6.5, sections 4.8.3.1 and 4.8.3.2).</summary>
    public static byte[] PowersOffOnButton =>
    [
        0xBA, 0x00, 0x06,       // mov dx, PM1a_EVT
        0xED,                   // wait: in ax, dx
        0xF6, 0xC4, 0x01,       // test ah, 1 (PWRBTN_STS)
        0x74, 0xFA,             // jz wait
        0xB8, 0x00, 0x01, 0xEF, // mov ax, 0x100; out dx, ax: acknowledge
        0xBA, 0x04, 0x06,       // mov dx, PM1a_CNT
        0xB8, 0x00, 0x34, 0xEF, // mov ax, SLP_TYP 5 | SLP_EN; out dx, ax
        0xEB, 0xFE,
    ];

    /// <summary>Acknowledges the power button and does nothing about it.</summary>
    public static byte[] AcknowledgesButton =>
    [
        0xBA, 0x02, 0x06,       // mov dx, PM1a_EVT + 2
        0xB8, 0x00, 0x01, 0xEF, // mov ax, PWRBTN_EN; out dx, ax
        0xBA, 0x00, 0x06,       // mov dx, PM1a_EVT
        0xB8, 0x00, 0x01, 0xEF, // again: mov ax, 0x100; out dx, ax
        0xEB, 0xFA,             // jmp again
    ];

    private ControlledGuest(byte[] code, string name, ControlEndpoint endpoint, IReadOnlyList<ControlVerb> verbs, DeviceOptions[] devices)
    {
        Endpoint = endpoint;
        ControlListener listener = ControlListener.Open(endpoint);
        Machine = Machines.Create(new MachineOptions
        {
            Name = name,
            MemoryBytes = 4 << 20,
            Accelerator = "interpreter",
            Devices = devices,
            Boot = new RealModeBootOptions(code),
        });
        Controlled = new ControlledMachine(Machine, "0.0");
        Server = new ControlServer(listener, Controlled, verbs);
    }

    public VirtualMachine Machine { get; }

    public ControlledMachine Controlled { get; }

    public ControlServer Server { get; }

    public ControlEndpoint Endpoint { get; }

    private static CancellationToken Token => TestContext.Current.CancellationToken;

    public static async Task<ControlledGuest> StartAsync(Folder folder, byte[]? code = null, string name = "small", IReadOnlyList<ControlVerb>? verbs = null, params DeviceOptions[] devices)
    {
        ControlledGuest guest = new(code ?? Forever, name, folder.Endpoint(name), verbs ?? ControlVerbs.All(), devices);
        await guest.Machine.StartAsync();
        return guest;
    }

    public Task<ControlClient> ConnectAsync() => ControlClient.ConnectAsync(Endpoint, Token);

    public Task<RawClient> RawAsync() => RawClient.ConnectAsync(Endpoint);

    /// <summary>The guest runs: it completes instructions while this waits.</summary>
    public async Task MakesProgressAsync()
    {
        long before = Machine.GetStatistics().Instructions;
        for (int i = 0; i < 6000; i++)
        {
            if (Machine.GetStatistics().Instructions > before)
                return;
            await Task.Delay(10, Token);
        }
        Assert.Fail("the guest stands still");
    }

    public async ValueTask DisposeAsync()
    {
        await Server.DisposeAsync();
        await Controlled.DisposeAsync();
        await Machine.DisposeAsync();
    }
}

/// <summary>A folder for sockets, short enough for their paths.</summary>
internal sealed class Folder : IDisposable
{
    public string Path { get; } = Directory.CreateTempSubdirectory("ctl-").FullName;

    public ControlEndpoint Endpoint(string name) => new(System.IO.Path.Combine(Path, name + ".sock"), name);

    public void Dispose() => Directory.Delete(Path, recursive: true);
}

/// <summary>A client that sends what it likes.</summary>
internal sealed class RawClient : IDisposable
{
    private readonly Socket socket = new(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
    private readonly List<byte> received = [];

    private static CancellationToken Token => TestContext.Current.CancellationToken;

    public static async Task<RawClient> ConnectAsync(ControlEndpoint endpoint)
    {
        RawClient client = new();
        await client.socket.ConnectAsync(new UnixDomainSocketEndPoint(endpoint.Path), Token);
        return client;
    }

    /// <summary>Connects and takes the hello.</summary>
    public static async Task<RawClient> OpenAsync(ControlEndpoint endpoint)
    {
        RawClient client = await ConnectAsync(endpoint);
        Assert.Equal("aerostat-control", (await client.ReadAsync())!.Value.GetProperty("hello").GetProperty("protocol").GetString());
        return client;
    }

    public Task SendAsync(string text) => SendAsync(Encoding.UTF8.GetBytes(text));

    public async Task SendAsync(ReadOnlyMemory<byte> bytes)
    {
        while (!bytes.IsEmpty)
            bytes = bytes[await socket.SendAsync(bytes, SocketFlags.None, Token).AsTask().WaitAsync(ControlledGuest.Limit, Token)..];
    }

    /// <summary>Sends without waiting for room; answers how many bytes the host took.</summary>
    public int TrySend(byte[] bytes)
    {
        socket.Blocking = false;
        try
        {
            return socket.Send(bytes);
        }
        catch (SocketException e) when (e.SocketErrorCode is SocketError.WouldBlock)
        {
            return 0;
        }
    }

    public void CloseSending() => socket.Shutdown(SocketShutdown.Send);

    /// <summary>The next line; null when the server has closed.</summary>
    public async Task<JsonElement?> ReadAsync()
    {
        byte[] buffer = new byte[4096];
        while (!received.Contains((byte)'\n'))
        {
            int count;
            try
            {
                count = await socket.ReceiveAsync(buffer, SocketFlags.None, Token).AsTask().WaitAsync(ControlledGuest.Limit, Token);
            }
            catch (SocketException e) when (e.SocketErrorCode is SocketError.ConnectionReset)
            {
                count = 0;
            }
            if (count == 0)
            {
                Assert.Empty(received);
                return null;
            }
            received.AddRange(buffer.AsSpan(0, count));
        }
        int end = received.IndexOf((byte)'\n');
        byte[] line = [.. received.Take(end)];
        received.RemoveRange(0, end + 1);
        using JsonDocument document = JsonDocument.Parse(line);
        return document.RootElement.Clone();
    }

    /// <summary>Sends a line and takes the next one.</summary>
    public async Task<JsonElement> AskAsync(string line)
    {
        await SendAsync(line + "\n");
        return (await ReadAsync())!.Value;
    }

    public void Dispose() => socket.Dispose();
}
