using System.Buffers.Binary;
using System.Runtime.InteropServices;

[assembly: System.Runtime.Versioning.SupportedOSPlatform("linux")]
// Nothing below needs the runtime's help, and so its calls are compiled ahead with the rest.
[assembly: System.Runtime.CompilerServices.DisableRuntimeMarshalling]

namespace Aerostat.Guest.Agent;

/// <summary>The kernel's calls that the agent uses. Answers are 0 or more, or an error number below 0.</summary>
internal static partial class Host
{
    public const int NoEntry = 2, Busy = 16, NotSupported = 95, TimedOut = 110, NotTyped = 25, InputOutput = 5;
    private const int Interrupted = 4;
    private const int CloseOnExec = 0x80000, NonBlocking = 0x800;
    // ioctl(2): _IOWR('X', 119, int) and the next.
    private const ulong FreezeRequest = 0xC0045877, ThawRequest = 0xC0045878;
    private const int CurrentDirectory = -100, StatxSize = 256, MajorOffset = 136, MinorOffset = 140;
    private const short PollIn = 1;
    private const int LockCurrent = 1, LockFuture = 2, LockOnFault = 4;

    public static int Open(string path, bool write) => Answer(open(path, (write ? 2 : 0) | CloseOnExec | (write ? 0 : NonBlocking)));

    public static void Close(int descriptor) => _ = close(descriptor);

    public static int Read(int descriptor, Span<byte> bytes) => Answer((int)read(descriptor, bytes, bytes.Length));

    public static int Write(int descriptor, ReadOnlySpan<byte> bytes) => Answer((int)write(descriptor, bytes, bytes.Length));

    public static int Freeze(int descriptor) => Answer(ioctl(descriptor, FreezeRequest, 0));

    public static int Thaw(int descriptor) => Answer(ioctl(descriptor, ThawRequest, 0));

    /// <summary>The device that a path is on, as mountinfo writes it, or null.</summary>
    public static string? DeviceOf(string path)
    {
        Span<byte> result = stackalloc byte[StatxSize];
        return statx(CurrentDirectory, path, 0, 0, result) == 0
            ? $"{BinaryPrimitives.ReadUInt32LittleEndian(result[MajorOffset..])}:{BinaryPrimitives.ReadUInt32LittleEndian(result[MinorOffset..])}"
            : null;
    }

    /// <summary>Waits for something to read. Answers the events, 0 if there are none in time.</summary>
    public static int Poll(int descriptor, int milliseconds)
    {
        PollEntry entry = new() { Descriptor = descriptor, Events = PollIn };
        int count = Answer(poll(ref entry, 1, milliseconds));
        return count < 0 ? count == -Interrupted ? 0 : count : count == 0 ? 0 : entry.Returned;
    }

    /// <summary>There is something to read, and nothing is wrong.</summary>
    public static bool IsReadable(int events) => events > 0 && (events & PollIn) != 0;

    /// <summary>What was touched once stays in memory, so that nothing has to come from a disk that may be frozen.</summary>
    public static int LockMemory() => Answer(mlockall(LockCurrent | LockFuture | LockOnFault));

    public static int Socket(int family, int type, int protocol) => Answer(socket(family, type | CloseOnExec, protocol));

    public static int Connect(int descriptor, ReadOnlySpan<byte> address) => Answer(connect(descriptor, address, address.Length));

    public static int Bind(int descriptor, ReadOnlySpan<byte> address) => Answer(bind(descriptor, address, address.Length));

    public static int SetOption(int descriptor, int level, int option, int value) => Answer(setsockopt(descriptor, level, option, ref value, sizeof(int)));

    /// <summary>Sends a message, or not if that would have to wait.</summary>
    public static int SendNow(int descriptor, ReadOnlySpan<byte> bytes) => Answer((int)send(descriptor, bytes, bytes.Length, 0x4040));

    public static string Text(int error) => Marshal.GetPInvokeErrorMessage(Math.Abs(error));

    private static int Answer(int result) => result >= 0 ? result : -Marshal.GetLastPInvokeError();

    [StructLayout(LayoutKind.Sequential)]
    private struct PollEntry
    {
        public int Descriptor;
        public short Events;
        public short Returned;
    }

    [LibraryImport("libc", SetLastError = true, StringMarshalling = StringMarshalling.Utf8)]
    private static partial int open(string path, int flags);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int close(int descriptor);

    [LibraryImport("libc", SetLastError = true)]
    private static partial nint read(int descriptor, Span<byte> buffer, nint length);

    [LibraryImport("libc", SetLastError = true)]
    private static partial nint write(int descriptor, ReadOnlySpan<byte> buffer, nint length);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int ioctl(int descriptor, ulong request, nint argument);

    [LibraryImport("libc", SetLastError = true, StringMarshalling = StringMarshalling.Utf8)]
    private static partial int statx(int directory, string path, int flags, uint mask, Span<byte> result);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int poll(ref PollEntry entries, nuint count, int timeout);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int mlockall(int flags);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int socket(int family, int type, int protocol);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int connect(int descriptor, ReadOnlySpan<byte> address, int length);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int bind(int descriptor, ReadOnlySpan<byte> address, int length);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int setsockopt(int descriptor, int level, int option, ref int value, int length);

    [LibraryImport("libc", SetLastError = true)]
    private static partial nint send(int descriptor, ReadOnlySpan<byte> bytes, nint length, int flags);
}
