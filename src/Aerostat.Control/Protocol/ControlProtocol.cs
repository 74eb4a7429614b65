namespace Aerostat.Control;

/// <summary>
/// The control protocol: lines of JSON in UTF-8 over a Unix socket (docs/control.md). The server says <see cref="ControlHello"/> first; then
/// each request gets one answer, in order.
/// </summary>
public static class ControlProtocol
{
    /// <summary>What the hello begins with.</summary>
    public const string Name = "aerostat-control";

    /// <summary>Grows when a client written for the older one would no longer work. New verbs, and new members of answers, leave it as it is.</summary>
    public const int Version = 1;

    /// <summary>Most bytes of a request, its line end not counted.</summary>
    public const int LongestRequest = 64 << 10;

    /// <summary>Most bytes of an answer or event.</summary>
    public const int LongestAnswer = 8 << 20;

    /// <summary>Most clients of a machine at one time.</summary>
    public const int MostClients = 32;
}
