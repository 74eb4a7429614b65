using System.Runtime.InteropServices;

namespace Aerostat.Platform;

/// <summary>
/// SIGINT, SIGTERM and SIGHUP as a wish to end: the first is handed to the program, which then ends in good order; a second one
/// ends the process at once.
/// </summary>
/// <remarks>SIGPIPE needs nothing: the .NET runtime ignores it, and a write to a closed pipe fails with EPIPE instead.</remarks>
public sealed class HostSignals : IDisposable
{
    private readonly PosixSignalRegistration[] registrations;
    private readonly CancellationTokenSource stopping = new();
    private readonly Action<int>? exit;
    private int received;

    /// <summary>Takes the signals over until Dispose.</summary>
    /// <param name="exit">What a second signal does; by default <see cref="Environment.Exit"/>, which restores the terminal.</param>
    public HostSignals(Action<int>? exit = null)
    {
        this.exit = exit;
        registrations =
        [
            PosixSignalRegistration.Create(PosixSignal.SIGINT, c => OnSignal(c, 2)),
            PosixSignalRegistration.Create(PosixSignal.SIGTERM, c => OnSignal(c, 15)),
            PosixSignalRegistration.Create(PosixSignal.SIGHUP, c => OnSignal(c, 1)),
        ];
    }

    /// <summary>Cancelled by the first signal (on a thread-pool thread).</summary>
    public CancellationToken Stopping => stopping.Token;

    /// <summary>Number of the first signal, 0 before.</summary>
    public int Received => Volatile.Read(ref received);

    /// <summary>The exit status of a process that a signal ended, as shells give it: 128 + number. 0 without a signal.</summary>
    public int ExitStatus => Received == 0 ? 0 : 128 + Received;

    /// <inheritdoc/>
    public void Dispose()
    {
        foreach (PosixSignalRegistration registration in registrations)
            registration.Dispose();
        stopping.Dispose();
    }

    private void OnSignal(PosixSignalContext context, int number)
    {
        context.Cancel = true;
        if (Interlocked.CompareExchange(ref received, number, 0) == 0)
        {
            try
            {
                stopping.Cancel();
            }
            catch (ObjectDisposedException)
            {
                // The program is past caring.
            }
        }
        else
            (exit ?? Environment.Exit)(128 + number);
    }
}
