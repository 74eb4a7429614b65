using System.Net.Sockets;
using System.Text;
using System.Text.Json;

namespace Aerostat.Cli;

/// <summary>QEMU's monitor protocol (QMP) as far as a benchmark needs it: one command, one answer; events are passed over.</summary>
internal sealed class QemuMonitor : IDisposable
{
    private readonly Socket socket;
    private readonly StreamReader reader;

    private QemuMonitor(Socket socket)
    {
        this.socket = socket;
        reader = new StreamReader(new NetworkStream(socket), Encoding.UTF8);
    }

    /// <summary>Connects, once QEMU listens.</summary>
    /// <exception cref="SocketException">It does not within ten seconds.</exception>
    public static async Task<QemuMonitor> ConnectAsync(string path, CancellationToken cancellation)
    {
        for (int attempt = 0; ; attempt++)
        {
            Socket socket = new(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
            try
            {
                await socket.ConnectAsync(new UnixDomainSocketEndPoint(path), cancellation).ConfigureAwait(false);
            }
            catch (SocketException) when (attempt < 100)
            {
                socket.Dispose();
                await Task.Delay(100, cancellation).ConfigureAwait(false);
                continue;
            }
            QemuMonitor monitor = new(socket);
            await monitor.reader.ReadLineAsync(cancellation).ConfigureAwait(false);
            await monitor.AskAsync("""{"execute":"qmp_capabilities"}""", cancellation).ConfigureAwait(false);
            return monitor;
        }
    }

    /// <summary>Sends a command; its "return", or null when it failed.</summary>
    public async Task<JsonElement?> AskAsync(string command, CancellationToken cancellation)
    {
        await socket.SendAsync(Encoding.UTF8.GetBytes(command + "\n"), cancellation).ConfigureAwait(false);
        while (await reader.ReadLineAsync(cancellation).ConfigureAwait(false) is { } line)
        {
            using JsonDocument document = JsonDocument.Parse(line);
            if (document.RootElement.TryGetProperty("return", out JsonElement answer))
                return answer.Clone();
            if (document.RootElement.TryGetProperty("error", out _))
                return null;
        }
        return null;
    }

    public void Dispose()
    {
        reader.Dispose();
        socket.Dispose();
    }
}
