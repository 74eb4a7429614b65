using System.Buffers.Binary;
using System.Net.NetworkInformation;
using System.Net.Sockets;
using System.Text;

namespace Aerostat.Guest.Agent;

/// <summary>
/// Key/value exchange with the host (hv_utils, /dev/vmbus/hv_kvp): what the guest is goes to the host, and what the host gives is kept in files
/// with fixed records, as hv_kvp_daemon keeps them, for whoever reads those.
/// </summary>
internal sealed class KeyValues(string folder, Func<IReadOnlyList<(string Key, string Value)>> facts, ILog log)
{
    public const string Path = "/dev/vmbus/hv_kvp";
    /// <summary>At least the largest message; the kernel takes a registration that is longer than it needs.</summary>
    public const int MessageLength = 16384;
    public const uint Success = 0, Failure = 0x80004005, NoMore = 0x80070103;
    private const byte Get = 0, Set = 1, Delete = 2, Enumerate = 3, Register = 100;
    private const int AutomaticPool = 2, Pools = 4, MostEntries = 1024;
    private const int KeyLength = 512, ValueLength = 2048, Record = KeyLength + ValueLength;

    /// <summary>Serves until it is told to stop; whenever the device is there and nobody else has it.</summary>
    public void Run(CancellationToken stop)
    {
        byte[] message = new byte[MessageLength];
        while (!stop.IsCancellationRequested)
        {
            int descriptor = Host.Open(Path, write: true);
            if (descriptor < 0)
            {
                stop.WaitHandle.WaitOne(2000);
                continue;
            }
            message.AsSpan().Clear();
            message[0] = Register;
            int error = Host.Write(descriptor, message);
            while (error >= 0 && !stop.IsCancellationRequested)
            {
                int events = Host.Poll(descriptor, 250);
                if (events == 0)
                    continue;
                error = Host.IsReadable(events) ? Host.Read(descriptor, message) : -Host.InputOutput;
                // The first message only says that we are known.
                if (error > 0 && message[0] != Register)
                {
                    Handle(message);
                    error = Host.Write(descriptor, message.AsSpan(0, error));
                }
            }
            if (error < 0)
                log.Write(LogLevel.Notice, $"key/value exchange: {Host.Text(error)}; registering again");
            Host.Close(descriptor);
            stop.WaitHandle.WaitOne(1000);
        }
    }

    /// <summary>Carries out a request; the answer is in its place.</summary>
    public void Handle(Span<byte> message)
    {
        // Operation, pool, padding; then what the operation has. The answer begins with a status.
        byte operation = message[0];
        int pool = message[1];
        uint status = Failure;
        try
        {
            if (pool < Pools)
            {
                status = operation switch
                {
                    Enumerate => EnumerateAt(pool, BinaryPrimitives.ReadUInt32LittleEndian(message[4..]), message),
                    Get => GetValue(pool, message),
                    Set when pool != AutomaticPool => Change(pool, Text(message.Slice(16, KeyLength)), Text(message.Slice(528, ValueLength))),
                    Delete when pool != AutomaticPool => Change(pool, Text(message.Slice(8, KeyLength)), null),
                    _ => Failure,
                };
            }
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            log.Write(LogLevel.Error, $"key/value exchange: {e.Message}");
        }
        BinaryPrimitives.WriteUInt32LittleEndian(message, status);
    }

    /// <summary>What the guest is, by the names that hosts know.</summary>
    public static IReadOnlyList<(string Key, string Value)> GuestFacts()
    {
        Dictionary<string, string> release = [];
        if (File.Exists("/etc/os-release"))
            foreach (string line in File.ReadLines("/etc/os-release"))
                if (line.IndexOf('=', StringComparison.Ordinal) is > 0 and var at)
                    release[line[..at]] = line[(at + 1)..].Trim('"', '\'');
        string build = File.ReadAllText("/proc/sys/kernel/osrelease").Trim(), version = build.Split('-')[0];
        string[] numbers = version.Split('.');
        return
        [
            ("FullyQualifiedDomainName", File.ReadAllText("/proc/sys/kernel/hostname").Trim()),
            ("IntegrationServicesVersion", "3.1"),
            ("NetworkAddressIPv4", Addresses(AddressFamily.InterNetwork)),
            ("NetworkAddressIPv6", Addresses(AddressFamily.InterNetworkV6)),
            ("OSBuildNumber", build),
            ("OSName", release.GetValueOrDefault("NAME", "Linux")),
            ("OSMajorVersion", numbers[0]),
            ("OSMinorVersion", numbers.Length > 1 ? numbers[1] : "0"),
            ("OSVersion", release.GetValueOrDefault("VERSION_ID", version)),
            ("ProcessorArchitecture", "x86_64"),
        ];
    }

    private static string Addresses(AddressFamily family)
    {
        try
        {
            return string.Join(';', NetworkInterface.GetAllNetworkInterfaces()
                .Where(n => n.NetworkInterfaceType != NetworkInterfaceType.Loopback)
                .SelectMany(n => n.GetIPProperties().UnicastAddresses).Select(a => a.Address).Where(a => a.AddressFamily == family).Select(a => a.ToString()));
        }
        catch (NetworkInformationException)
        {
            return "";
        }
    }

    private uint EnumerateAt(int pool, uint index, Span<byte> message)
    {
        IReadOnlyList<(string Key, string Value)> entries = pool == AutomaticPool ? facts() : Read(pool);
        if (index >= entries.Count)
            return NoMore;
        Put(message.Slice(20, KeyLength), entries[(int)index].Key);
        Put(message.Slice(532, ValueLength), entries[(int)index].Value);
        return Success;
    }

    private uint GetValue(int pool, Span<byte> message)
    {
        string key = Text(message.Slice(16, KeyLength));
        foreach ((string known, string value) in pool == AutomaticPool ? facts() : Read(pool))
        {
            if (known != key)
                continue;
            Put(message.Slice(528, ValueLength), value);
            return Success;
        }
        return Failure;
    }

    // The file is replaced as a whole: whoever reads it sees the old one or the new one.
    private uint Change(int pool, string key, string? value)
    {
        List<(string Key, string Value)> entries = Read(pool);
        int at = entries.FindIndex(e => e.Key == key);
        if (key.Length == 0 || (value is null && at < 0) || (at < 0 && entries.Count >= MostEntries))
            return Failure;
        if (at >= 0)
            entries.RemoveAt(at);
        if (value is not null)
            entries.Insert(at >= 0 ? at : entries.Count, (key, value));
        byte[] bytes = new byte[entries.Count * Record];
        for (int i = 0; i < entries.Count; i++)
        {
            Put(bytes.AsSpan(i * Record, KeyLength), entries[i].Key);
            Put(bytes.AsSpan((i * Record) + KeyLength, ValueLength), entries[i].Value);
        }
        Directory.CreateDirectory(folder);
        string path = FileOf(pool);
        File.WriteAllBytes(path + ".new", bytes);
        File.Move(path + ".new", path, overwrite: true);
        return Success;
    }

    private List<(string Key, string Value)> Read(int pool)
    {
        List<(string Key, string Value)> entries = [];
        string path = FileOf(pool);
        if (!File.Exists(path))
            return entries;
        byte[] bytes = File.ReadAllBytes(path);
        for (int i = 0; i + Record <= bytes.Length && entries.Count < MostEntries; i += Record)
            entries.Add((Text(bytes.AsSpan(i, KeyLength)), Text(bytes.AsSpan(i + KeyLength, ValueLength))));
        return entries;
    }

    private string FileOf(int pool) => System.IO.Path.Combine(folder, $".kvp_pool_{pool}");

    private static string Text(ReadOnlySpan<byte> bytes) => Encoding.UTF8.GetString(bytes[..(bytes.IndexOf((byte)0) is >= 0 and var end ? end : bytes.Length)]);

    // Cut to what fits with its end, between characters.
    private static void Put(Span<byte> into, string text)
    {
        into.Clear();
        Encoding.UTF8.GetEncoder().Convert(text, into[..^1], flush: false, out _, out _, out _);
    }
}
