using System.ComponentModel;
using System.Runtime.InteropServices;

namespace Aerostat.Platform;

/// <summary>
/// The terminal (or pipe, or file) that standard input and output are: raw mode with restore on every way out that the
/// process can see, reads that another thread can end, writes without a buffer.
/// </summary>
/// <remarks>
/// Restored on Dispose, normal exit, unhandled exceptions, SIGINT, SIGTERM, SIGHUP and SIGQUIT; raw mode is taken up again after
/// SIGCONT. What no process can see (SIGKILL, a native crash) leaves the terminal raw: <c>reset</c> helps.
/// </remarks>
public sealed unsafe partial class Terminal : IDisposable
{
    // struct termios is 60 bytes with glibc and musl on 64-bit Linux: four flag words, line, 32 control characters, speeds.
    private const int TermiosSize = 128;
    private const int Now = 0, Drain = 1;
    private const uint PostProcess = 1;
    private const nuint GetWindowSize = 0x5413;
    private const short PollIn = 1, PollOut = 4;
    private const int Interrupted = 4, HungUp = 5, TryAgain = 11, BrokenPipe = 32;
    private const int CloseOnExec = 0x80000, NonBlocking = 0x800, WriteOnly = 1, NoControllingTerminal = 0x100;

    // A pipe that polls ready takes this much without blocking: one slot, a page.
    private const int PipeChunk = 4096;

    private readonly Lock gate = new();
    private readonly int input;
    private readonly int output;
    private readonly int outputChunk = PipeChunk;
    private readonly bool outputIsOwn;
    private readonly bool inputIsUsable;
    private readonly bool outputIsUsable;
    private readonly int cancelRead;
    private readonly int cancelWrite;
    private readonly byte[] original = new byte[TermiosSize];
    private readonly List<PosixSignalRegistration> registrations = [];
    private bool raw;
    private bool disposed;

    /// <summary>Uses the given descriptors; they stay open on Dispose.</summary>
    /// <exception cref="Win32Exception">The host has no descriptors left.</exception>
    public Terminal(int inputDescriptor = 0, int outputDescriptor = 1)
    {
        input = inputDescriptor;
        output = outputDescriptor;
        inputIsUsable = HostFile.IsUsable(input);
        outputIsUsable = HostFile.IsUsable(output);
        cancelRead = eventfd(0, CloseOnExec | NonBlocking);
        cancelWrite = cancelRead < 0 ? -1 : eventfd(0, CloseOnExec | NonBlocking);
        if (cancelWrite < 0)
        {
            int error = Marshal.GetLastPInvokeError();
            if (cancelRead >= 0)
                _ = close(cancelRead);
            throw new Win32Exception(error, "eventfd failed");
        }
        if (!outputIsUsable || isatty(output) != 1)
            return;
        // A terminal polls ready when it can take a single character and then blocks in the middle of a longer write. O_NONBLOCK on the
        // descriptor that was given would reach every process that shares it, so it is opened once more, for this one alone.
        int own = open($"/proc/self/fd/{output}", WriteOnly | NonBlocking | NoControllingTerminal | CloseOnExec);
        outputIsOwn = own >= 0;
        if (outputIsOwn)
            output = own;
        else
            // Another user's terminal, as after su: one character at a time never blocks for long.
            outputChunk = 1;
    }

    /// <summary>Whether input is a terminal.</summary>
    public bool InputIsTerminal => isatty(input) == 1;

    /// <summary>Whether output is a terminal.</summary>
    public bool OutputIsTerminal => isatty(output) == 1;

    /// <summary>Whether a descriptor is a terminal.</summary>
    public static bool IsTerminal(int descriptor) => isatty(descriptor) == 1;

    /// <summary>Characters in a line of the terminal that a descriptor is; null when it is none or does not tell.</summary>
    public static int? ColumnsOf(int descriptor)
    {
        // struct winsize: rows, columns and two more 16-bit fields.
        ushort* size = stackalloc ushort[4];
        // SAFETY: the kernel writes struct winsize, 8 bytes.
        return ioctl(descriptor, GetWindowSize, size) == 0 && size[1] != 0 ? size[1] : null;
    }

    /// <summary>Whether raw mode is on.</summary>
    public bool IsRaw
    {
        get
        {
            lock (gate)
                return raw;
        }
    }

    /// <summary>
    /// Hands keys over one by one, unechoed, Ctrl-C included. Line feeds in output still become CR LF, so that messages of
    /// this program stay readable. Does nothing, and answers false, when input is not a terminal.
    /// </summary>
    /// <exception cref="Win32Exception">The terminal refuses.</exception>
    public bool EnterRawMode()
    {
        lock (gate)
        {
            ObjectDisposedException.ThrowIf(disposed, this);
            if (raw)
                return true;
            if (!InputIsTerminal)
                return false;
            fixed (byte* t = original)
                if (tcgetattr(input, t) != 0)
                    throw new Win32Exception(Marshal.GetLastPInvokeError(), "the terminal does not tell its settings");
            if (registrations.Count == 0)
            {
                AppDomain.CurrentDomain.ProcessExit += OnExit;
                AppDomain.CurrentDomain.UnhandledException += OnUnhandledException;
                foreach (PosixSignal signal in (PosixSignal[])[PosixSignal.SIGINT, PosixSignal.SIGTERM, PosixSignal.SIGHUP, PosixSignal.SIGQUIT])
                    registrations.Add(PosixSignalRegistration.Create(signal, OnSignal));
                if (!OperatingSystem.IsWindows())
                    registrations.Add(PosixSignalRegistration.Create(PosixSignal.SIGCONT, OnContinue));
            }
            raw = true;
            SetRaw();
            return true;
        }
    }

    /// <summary>Puts back the settings from before <see cref="EnterRawMode"/>. Harmless when not raw.</summary>
    public void LeaveRawMode()
    {
        lock (gate)
        {
            if (!raw)
                return;
            raw = false;
            // Not TCSAFLUSH: keys typed ahead belong to the shell.
            fixed (byte* t = original)
                _ = tcsetattr(input, Drain, t);
        }
    }

    /// <summary>
    /// Waits for input and reads what there is. Answers the number of bytes, 0 at the end of input (closed pipe, terminal
    /// hung up, Ctrl-D on a terminal that is not raw), -1 after <see cref="CancelRead"/>. One thread at a time.
    /// </summary>
    public int Read(Span<byte> buffer)
    {
        if (buffer.IsEmpty || !inputIsUsable)
            return 0;
        while (true)
        {
            if (!WaitFor(input, PollIn, cancelRead))
                return -1;
            fixed (byte* p = buffer)
            {
                nint count = read(input, p, (nuint)buffer.Length);
                if (count >= 0)
                    return (int)count;
            }
            // EIO: the terminal is gone. Anything else that is not "again" cannot get better either.
            if (Marshal.GetLastPInvokeError() is not (Interrupted or TryAgain))
                return 0;
        }
    }

    /// <summary>Ends the present and all later <see cref="Read"/> calls.</summary>
    public void CancelRead() => Signal(cancelRead);

    /// <summary>
    /// Writes everything, waiting as long as the reader at the other end is slow. False: the other end is gone or
    /// <see cref="CancelWrite"/> was called. A vCPU thread must not call this: a stopped terminal would stop it too.
    /// </summary>
    public bool Write(ReadOnlySpan<byte> bytes)
    {
        if (!outputIsUsable)
        {
            WriteFailure = HostFile.NotOpen;
            return false;
        }
        while (!bytes.IsEmpty)
        {
            if (!WaitFor(output, PollOut, cancelWrite))
                return false;
            fixed (byte* p = bytes)
            {
                nint count = write(output, p, (nuint)Math.Min(bytes.Length, outputChunk));
                if (count >= 0)
                {
                    bytes = bytes[(int)count..];
                    continue;
                }
            }
            if (Marshal.GetLastPInvokeError() is var error && error is not (Interrupted or TryAgain))
            {
                WriteFailure = error is BrokenPipe or HungUp ? null : Marshal.GetPInvokeErrorMessage(error);
                return false;
            }
        }
        return true;
    }

    /// <summary>Why <see cref="Write"/> answered false, when there is more to it than that nobody reads any more.</summary>
    public string? WriteFailure { get; private set; }

    /// <summary>Ends the present and all later <see cref="Write"/> calls that would wait.</summary>
    public void CancelWrite() => Signal(cancelWrite);

    /// <summary>Restores the terminal. No Read or Write may be under way.</summary>
    public void Dispose()
    {
        lock (gate)
        {
            if (disposed)
                return;
            LeaveRawMode();
            disposed = true;
        }
        AppDomain.CurrentDomain.ProcessExit -= OnExit;
        AppDomain.CurrentDomain.UnhandledException -= OnUnhandledException;
        // Outside the lock: unregistering may wait for a handler that is running, and handlers take the lock.
        foreach (PosixSignalRegistration registration in registrations)
            registration.Dispose();
        _ = close(cancelRead);
        _ = close(cancelWrite);
        if (outputIsOwn)
            _ = close(output);
    }

    private void SetRaw()
    {
        byte* t = stackalloc byte[TermiosSize];
        original.CopyTo(new Span<byte>(t, TermiosSize));
        cfmakeraw(t);
        // c_oflag is the second word.
        ((uint*)t)[1] |= PostProcess;
        _ = tcsetattr(input, Now, t);
    }

    private void OnExit(object? sender, EventArgs e) => LeaveRawMode();

    private void OnUnhandledException(object sender, UnhandledExceptionEventArgs e) => LeaveRawMode();

    // The default action is not cancelled here: that is for HostSignals to decide.
    private void OnSignal(PosixSignalContext context) => LeaveRawMode();

    private void OnContinue(PosixSignalContext context)
    {
        lock (gate)
            if (raw)
                SetRaw();
    }

    // False: cancelled.
    private static bool WaitFor(int descriptor, short events, int cancel)
    {
        PollDescriptor* polls = stackalloc PollDescriptor[2];
        while (true)
        {
            polls[0] = new PollDescriptor { Descriptor = descriptor, Events = events };
            polls[1] = new PollDescriptor { Descriptor = cancel, Events = PollIn };
            if (poll(polls, 2, -1) < 0)
            {
                if (Marshal.GetLastPInvokeError() == Interrupted)
                    continue;
                return false;
            }
            if (polls[1].Returned != 0)
                return false;
            if (polls[0].Returned != 0)
                return true;
        }
    }

    private static void Signal(int descriptor)
    {
        ulong one = 1;
        _ = write(descriptor, &one, sizeof(ulong));
    }

    [StructLayout(LayoutKind.Sequential)]
    private struct PollDescriptor
    {
        public int Descriptor;
        public short Events;
        public short Returned;
    }

    [LibraryImport("libc")]
    private static partial int isatty(int fd);

    [LibraryImport("libc")]
    private static partial int ioctl(int fd, nuint request, void* argument);

    [LibraryImport("libc", StringMarshalling = StringMarshalling.Utf8)]
    private static partial int open(string path, int flags);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int tcgetattr(int fd, byte* termios);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int tcsetattr(int fd, int actions, byte* termios);

    [LibraryImport("libc")]
    private static partial void cfmakeraw(byte* termios);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int eventfd(uint initial, int flags);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int poll(PollDescriptor* descriptors, nuint count, int timeout);

    [LibraryImport("libc", SetLastError = true)]
    private static partial nint read(int fd, void* buffer, nuint count);

    [LibraryImport("libc", SetLastError = true)]
    private static partial nint write(int fd, void* buffer, nuint count);

    [LibraryImport("libc")]
    private static partial int close(int fd);
}
