using System.Runtime.InteropServices;
using Microsoft.Win32.SafeHandles;

namespace Aerostat.Platform;

/// <summary>What a path leads to.</summary>
public enum HostFileKind
{
    /// <summary>Nothing, or something this user may not look at.</summary>
    None,
    /// <summary>A file with contents of its own.</summary>
    Regular,
    /// <summary>A directory.</summary>
    Directory,
    /// <summary>A device, pipe or socket: it can neither be replaced nor read at an offset, and opening it may wait.</summary>
    Special,
}

/// <summary>By what a file is known again, and a change of it is seen: every write moves the times, and another file has another number.</summary>
/// <param name="Inode">Number of the file in its file system.</param>
/// <param name="Length">Bytes.</param>
/// <param name="Modified">Last change of the contents, nanoseconds since 1970.</param>
/// <param name="Changed">Last change of the contents or of what the file system says of it; cannot be set back.</param>
public readonly record struct FileIdentity(ulong Inode, ulong Length, long Modified, long Changed);

/// <summary>What the runtime does not do with paths and descriptors.</summary>
public static unsafe partial class HostFile
{
    // struct statx (statx(2)), the same on every architecture: stx_mode is the 16 bits at 28 of 256 bytes.
    private const int StatxSize = 256, ModeOffset = 28;
    private const int CurrentDirectory = -100;
    private const uint WantType = 1;
    private const int TypeMask = 0xF000, DirectoryType = 0x4000, RegularType = 0x8000;
    private const int WriteAccess = 2;
    private const int Interrupted = 4, TryAgain = 11, BrokenPipe = 32;
    private const short PollOut = 4;
    // fallocate(2): FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE; ENOSYS.
    private const int PunchHoleKeepSize = 3, NoSuchCall = 38;
    // SYNC_FILE_RANGE_WRITE.
    private const uint StartWrite = 2;
    private const int LastStandard = 2, BadDescriptor = 9, GetDescriptorFlags = 1, ClosedOnExec = 1;

    /// <summary>What is at <paramref name="path"/>, links followed.</summary>
    public static HostFileKind KindOf(string path)
    {
        byte* result = stackalloc byte[StatxSize];
        // SAFETY: the kernel writes at most the size of struct statx.
        if (path.Contains('\0', StringComparison.Ordinal) || statx(CurrentDirectory, path, 0, WantType, result) != 0)
            return HostFileKind.None;
        return (*(ushort*)(result + ModeOffset) & TypeMask) switch
        {
            RegularType => HostFileKind.Regular,
            DirectoryType => HostFileKind.Directory,
            _ => HostFileKind.Special,
        };
    }

    /// <summary>By what the file at <paramref name="path"/> is known again, links followed; null: there is none.</summary>
    public static FileIdentity? IdentityOf(string path)
    {
        const int Inode = 32, Length = 40, Changed = 96, Modified = 112;
        const uint WantAll = 0x7FF;
        byte* result = stackalloc byte[StatxSize];
        // SAFETY: the kernel writes at most the size of struct statx.
        if (path.Contains('\0', StringComparison.Ordinal) || statx(CurrentDirectory, path, 0, WantAll, result) != 0)
            return null;
        return new FileIdentity(*(ulong*)(result + Inode), *(ulong*)(result + Length), Time(result + Modified), Time(result + Changed));

        // struct statx_timestamp: 64-bit seconds, 32-bit nanoseconds.
        static long Time(byte* at) => (*(long*)at * 1_000_000_000) + *(uint*)(at + 8);
    }

    /// <summary>Whether this user may write to what is at <paramref name="path"/>.</summary>
    public static bool IsWritable(string path) => access(path, WriteAccess) == 0;

    /// <summary>
    /// Whether a descriptor may be used. That is in question for standard input, output and error alone: where one of them was closed
    /// when the program started, its number is by now a file of the runtime's own, which must not be touched. Such files are closed on
    /// exec (fcntl(2), FD_CLOEXEC), and what came through exec is not.
    /// </summary>
    public static bool IsUsable(int descriptor) =>
        descriptor > LastStandard || (fcntl(descriptor, GetDescriptorFlags) is >= 0 and var flags && (flags & ClosedOnExec) == 0);

    /// <summary>
    /// Writes everything to a descriptor. Answers why that failed, or null: also when nobody reads any more, which is nobody's error.
    /// </summary>
    public static string? Write(int descriptor, ReadOnlySpan<byte> bytes)
    {
        if (!IsUsable(descriptor))
            return NotOpen;
        while (!bytes.IsEmpty)
        {
            nint count;
            // SAFETY: the kernel reads no more than the length given.
            fixed (byte* p = bytes)
                count = write(descriptor, p, (nuint)bytes.Length);
            if (count >= 0)
            {
                bytes = bytes[(int)count..];
                continue;
            }
            switch (Marshal.GetLastPInvokeError())
            {
                case Interrupted:
                    break;
                case TryAgain:
                    // Whoever shares the descriptor has made it non-blocking.
                    PollDescriptor wait = new() { Descriptor = descriptor, Events = PollOut };
                    _ = poll(&wait, 1, -1);
                    break;
                case BrokenPipe:
                    return null;
                case var error:
                    return Marshal.GetPInvokeErrorMessage(error);
            }
        }
        return null;
    }

    /// <summary>Makes a range within a file read as zeros and take no space, where the file system can; elsewhere zeros are written.</summary>
    /// <exception cref="IOException">The host refuses.</exception>
    public static void Clear(SafeFileHandle file, long offset, long length)
    {
        ArgumentNullException.ThrowIfNull(file);
        bool added = false;
        try
        {
            file.DangerousAddRef(ref added);
            while (fallocate((int)file.DangerousGetHandle(), PunchHoleKeepSize, (nint)offset, (nint)length) != 0)
            {
                int error = Marshal.GetLastPInvokeError();
                if (error == Interrupted)
                    continue;
                if (error is not (DiskFile.NotSupported or NoSuchCall))
                    throw new IOException($"a range of a file cannot be cleared: {Marshal.GetPInvokeErrorMessage(error)}");
                byte[] zeros = new byte[(int)Math.Min(length, 1 << 20)];
                for (long done = 0; done < length; done += zeros.Length)
                    RandomAccess.Write(file, zeros.AsSpan(0, (int)Math.Min(zeros.Length, length - done)), offset + done);
                return;
            }
        }
        finally
        {
            if (added)
                file.DangerousRelease();
        }
    }

    /// <summary>
    /// Has the host begin to write a range of a file to its disk (sync_file_range(2)) without waiting for the end, so that a later flush finds little to do. No
    /// promise of anything: a host that cannot does nothing.
    /// </summary>
    public static void BeginWriteback(SafeFileHandle file, long offset, long length)
    {
        ArgumentNullException.ThrowIfNull(file);
        _ = sync_file_range(file, (nint)offset, (nint)length, StartWrite);
    }

    /// <summary>What is wrong with a descriptor that is not usable.</summary>
    internal static string NotOpen => Marshal.GetPInvokeErrorMessage(BadDescriptor);

    [StructLayout(LayoutKind.Sequential)]
    private struct PollDescriptor
    {
        public int Descriptor;
        public short Events;
        public short Returned;
    }

    [LibraryImport("libc", SetLastError = true)]
    private static partial nint write(int descriptor, void* buffer, nuint count);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int fallocate(int descriptor, int mode, nint offset, nint length);

    [LibraryImport("libc")]
    private static partial int sync_file_range(SafeFileHandle descriptor, nint offset, nint length, uint flags);

    [LibraryImport("libc")]
    private static partial int fcntl(int descriptor, int command);

    [LibraryImport("libc")]
    private static partial int poll(PollDescriptor* descriptors, nuint count, int timeout);

    [LibraryImport("libc", StringMarshalling = StringMarshalling.Utf8)]
    private static partial int statx(int directory, string path, int flags, uint mask, byte* result);

    [LibraryImport("libc", StringMarshalling = StringMarshalling.Utf8)]
    private static partial int access(string path, int mode);
}
