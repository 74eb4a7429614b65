using System.ComponentModel;
using System.Runtime.InteropServices;

namespace Aerostat.Platform;

/// <summary>What the runtime does not do with directories: putting one in another's place in one step, and forcing entries to the disk.</summary>
public static unsafe partial class HostDirectory
{
    private const int CurrentDirectory = -100;
    private const uint NoReplace = 1, Exchange = 2;
    private const int ReadOnlyDirectory = 0x10000, CloseOnExec = 0x80000;
    private const int InvalidArgument = 22, AlreadyExists = 17, NotEmpty = 39, NoSuchSystemCall = 38;

    /// <summary>
    /// Gives a directory another name (renameat2(2)). What has that name already gets the old one in the same step, so that there is always
    /// something whole under it.
    /// </summary>
    /// <returns>True: something had that name, and is now at <paramref name="from"/>.</returns>
    /// <exception cref="IOException">The host refuses.</exception>
    public static bool MoveOrExchange(string from, string to)
    {
        if (renameat2(CurrentDirectory, from, CurrentDirectory, to, NoReplace) == 0)
            return false;
        int error = Marshal.GetLastPInvokeError();
        if (error is AlreadyExists or NotEmpty && renameat2(CurrentDirectory, from, CurrentDirectory, to, Exchange) == 0)
            return true;
        if (error is AlreadyExists or NotEmpty)
            error = Marshal.GetLastPInvokeError();
        string why = error is InvalidArgument or NoSuchSystemCall
            ? "the file system cannot exchange two names in one step; give a name that does not exist yet"
            : Marshal.GetPInvokeErrorMessage(error);
        throw new IOException($"could not put {from} in the place of {to}: {why}");
    }

    /// <summary>Forces a directory's entries to the disk (fsync(2)).</summary>
    /// <exception cref="IOException">The host refuses.</exception>
    public static void Synchronize(string path)
    {
        int descriptor = open(path, ReadOnlyDirectory | CloseOnExec);
        int error = descriptor < 0 ? Marshal.GetLastPInvokeError() : 0;
        if (error == 0)
        {
            // Some file systems do not know fsync of a directory, and need none.
            if (fsync(descriptor) != 0 && Marshal.GetLastPInvokeError() is var failed and not InvalidArgument)
                error = failed;
            _ = close(descriptor);
        }
        if (error != 0)
            throw new IOException($"could not write the entries of {path} to the disk: {Marshal.GetPInvokeErrorMessage(error)}", new Win32Exception(error));
    }

    [LibraryImport("libc", SetLastError = true, StringMarshalling = StringMarshalling.Utf8)]
    private static partial int renameat2(int oldDirectory, string oldPath, int newDirectory, string newPath, uint flags);

    [LibraryImport("libc", SetLastError = true, StringMarshalling = StringMarshalling.Utf8)]
    private static partial int open(string path, int flags);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int fsync(int descriptor);

    [LibraryImport("libc")]
    private static partial int close(int descriptor);
}
