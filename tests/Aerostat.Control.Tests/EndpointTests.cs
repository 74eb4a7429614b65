using System.Net.Sockets;
using Xunit;

namespace Aerostat.Control.Tests;

/// <summary>The socket: who gets it, who may use it, and what is left of it.</summary>
public sealed class EndpointTests : IDisposable
{
    private const UnixFileMode Owner = UnixFileMode.UserRead | UnixFileMode.UserWrite;

    private readonly Folder folder = new();

    private static CancellationToken Token => TestContext.Current.CancellationToken;

    public void Dispose() => folder.Dispose();

    [Fact]
    public void TheFolderAndTheSocketAreTheOwnersAlone()
    {
        ControlEndpoint endpoint = new(Path.Combine(folder.Path, "new", "a.sock"), "a");
        using (ControlListener.Open(endpoint))
        {
            Assert.Equal(Owner | UnixFileMode.UserExecute, File.GetUnixFileMode(Path.GetDirectoryName(endpoint.Path)!));
            Assert.Equal(Owner, File.GetUnixFileMode(endpoint.Path));
        }
        Assert.False(File.Exists(endpoint.Path));
    }

    [Fact]
    public void AFolderThatOthersCanReadIsClosedToThem()
    {
        string open = Directory.CreateDirectory(Path.Combine(folder.Path, "open"), (UnixFileMode)0x1ED).FullName;
        using ControlListener listener = ControlListener.Open(new ControlEndpoint(Path.Combine(open, "a.sock"), "a"));
        Assert.Equal(Owner | UnixFileMode.UserExecute, File.GetUnixFileMode(open));
    }

    [Fact]
    public void ANameThatIsTakenIsRefusedInOneLine()
    {
        using ControlListener first = ControlListener.Open(folder.Endpoint("web"));
        ControlException e = Assert.Throws<ControlException>(() => ControlListener.Open(folder.Endpoint("web")));
        Assert.Equal(ControlErrorKind.Usage, e.Kind);
        Assert.Equal("--name: a machine named 'web' is running already; choose another name, or end that one with 'aerostat stop web'", e.Message);
        Assert.True(File.Exists(first.Endpoint.Path));
        using ControlListener other = ControlListener.Open(folder.Endpoint("web2"));
    }

    [Fact]
    public async Task ASocketOfAMachineThatWasKilledIsReplaced()
    {
        ControlEndpoint endpoint = folder.Endpoint("web");
        Leave(endpoint.Path);
        ControlException gone = await Assert.ThrowsAsync<ControlException>(() => ControlClient.ConnectAsync(endpoint, Token));
        Assert.Equal(ControlErrorKind.NotFound, gone.Kind);
        using ControlListener listener = ControlListener.Open(endpoint);
        using Socket client = new(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
        await client.ConnectAsync(new UnixDomainSocketEndPoint(endpoint.Path), Token);
    }

    // What a killed process leaves behind: the runtime removes the file of a socket that it closes, so the file is moved away and back.
    private static void Leave(string path)
    {
        using (Socket killed = new(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified))
        {
            killed.Bind(new UnixDomainSocketEndPoint(path));
            File.Move(path, path + ".kept");
        }
        File.Move(path + ".kept", path);
    }

    [Fact]
    public void SomethingElseIsLeftAlone()
    {
        ControlEndpoint endpoint = new(Path.Combine(folder.Path, "notes.txt"));
        File.WriteAllText(endpoint.Path, "precious");
        Assert.Equal(ControlErrorKind.Usage, Assert.Throws<ControlException>(() => ControlListener.Open(endpoint)).Kind);
        Assert.Equal("precious", File.ReadAllText(endpoint.Path));
        string link = Path.Combine(folder.Path, "dangling");
        File.CreateSymbolicLink(link, Path.Combine(folder.Path, "nowhere"));
        Assert.Equal(ControlErrorKind.Usage, Assert.Throws<ControlException>(() => ControlListener.Open(new ControlEndpoint(link))).Kind);
    }

    [Fact]
    public void APathThatDoesNotFitIsSaid()
    {
        ControlException e = Assert.Throws<ControlException>(() => ControlListener.Open(new ControlEndpoint("/tmp/" + new string('x', 103))));
        Assert.Contains("1 to 107 bytes", e.Message, StringComparison.Ordinal);
        e = Assert.Throws<ControlException>(() => ControlListener.Open(new ControlEndpoint(Path.Combine(folder.Path, "none", "x.sock"))));
        Assert.Contains("there is no such folder", e.Message, StringComparison.Ordinal);
    }

    /// <summary>Of many that start at once under one name over a socket that was left behind, one wins.</summary>
    [Fact]
    public async Task OneOfManyGetsTheName()
    {
        ControlEndpoint endpoint = folder.Endpoint("web");
        for (int round = 0; round < 5; round++)
        {
            Leave(endpoint.Path);
            ControlListener?[] listeners = await Task.WhenAll(Enumerable.Range(0, 6).Select(_ => Task.Run(() =>
            {
                try
                {
                    return ControlListener.Open(endpoint);
                }
                catch (ControlException e) when (e.Message.Contains("running already", StringComparison.Ordinal))
                {
                    return null;
                }
            }, Token)));
            ControlListener winner = Assert.Single(listeners.OfType<ControlListener>());
            using (Socket client = new(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified))
                await client.ConnectAsync(new UnixDomainSocketEndPoint(endpoint.Path), Token);
            winner.Dispose();
            Assert.False(File.Exists(endpoint.Path));
        }
    }

    [Theory]
    [InlineData("hello\n", "no machine of aerostat")]
    [InlineData("[1]\n", "no machine of aerostat")]
    [InlineData("{}\n", "no machine of aerostat")]
    [InlineData("{\"hello\":1}\n", "cannot be understood")]
    [InlineData("{\"hello\":{\"protocol\":\"http\",\"version\":1,\"name\":\"x\",\"pid\":1,\"product\":\"1\",\"verbs\":[]}}\n", "no machine of aerostat")]
    [InlineData("{\"hello\":{\"protocol\":\"aerostat-control\",\"version\":2,\"name\":\"x\",\"pid\":1,\"product\":\"9.0\",\"verbs\":[]}}\n", "use the aerostat that runs it")]
    [InlineData("{\"ok\":false,\"error\":{\"kind\":\"refused\",\"message\":\"32 clients\"}}\n", "32 clients")]
    [InlineData("", "has ended before it answered")]
    public async Task AClientIsNotFooled(string said, string expected)
    {
        ControlEndpoint endpoint = folder.Endpoint("odd");
        using Socket server = new(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
        server.Bind(new UnixDomainSocketEndPoint(endpoint.Path));
        server.Listen(1);
        Task<ControlClient> connecting = ControlClient.ConnectAsync(endpoint, Token);
        using (Socket accepted = await server.AcceptAsync(Token))
            await accepted.SendAsync(System.Text.Encoding.UTF8.GetBytes(said), Token);
        ControlException e = await Assert.ThrowsAsync<ControlException>(() => connecting);
        Assert.Contains(expected, e.Message, StringComparison.Ordinal);
        Assert.DoesNotContain('\n', e.Message);
    }
}
