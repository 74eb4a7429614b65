using System.Text;

namespace Aerostat.Guest.Agent;

/// <summary>How much a message matters: syslog(3).</summary>
internal enum LogLevel
{
    Error = 3,
    Notice = 5,
    Info = 6,
}

/// <summary>Where messages go.</summary>
internal interface ILog
{
    void Write(LogLevel level, string text);
}

/// <summary>
/// The system's log (RFC 3164 to /dev/log), or the kernel's when there is none. Never waits: the log's own disk may be frozen, and by us.
/// </summary>
internal sealed class SystemLog(bool console) : ILog
{
    private const int UnixFamily = 1, Datagram = 2, DaemonFacility = 3 << 3;

    private readonly Lock _lock = new();
    private int _socket = -1, _kernel = -1;

    public void Write(LogLevel level, string text)
    {
        text = text.ReplaceLineEndings(" ");
        byte[] line = Encoding.UTF8.GetBytes($"<{DaemonFacility | (int)level}>aerostat-agent[{Environment.ProcessId}]: {text}");
        lock (_lock)
        {
            if (console)
                _ = Host.Write(2, Encoding.UTF8.GetBytes($"aerostat-agent: {text}\n"));
            if (_socket < 0)
                _socket = Connect();
            if (_socket >= 0 && Host.SendNow(_socket, line) >= 0)
                return;
            if (_socket >= 0)
                Host.Close(_socket);
            _socket = -1;
            if (_kernel < 0)
                _kernel = Host.Open("/dev/kmsg", write: true);
            // Without an end of line the kernel waits for the rest, and shows it to nobody.
            if (_kernel >= 0)
                _ = Host.Write(_kernel, [.. line, (byte)'\n']);
        }
    }

    private static int Connect()
    {
        int descriptor = Host.Socket(UnixFamily, Datagram, 0);
        if (descriptor < 0)
            return descriptor;
        // struct sockaddr_un: family, path, zero.
        byte[] address = [UnixFamily, 0, .. "/dev/log"u8, 0];
        if (Host.Connect(descriptor, address) >= 0)
            return descriptor;
        Host.Close(descriptor);
        return -1;
    }
}
