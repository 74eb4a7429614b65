using System.ComponentModel;
using System.Runtime.InteropServices;

namespace Aerostat.Platform;

/// <summary>An anonymous memory file (memfd_create(2)): guest RAM that can be shared, discarded and counted.</summary>
public sealed partial class MemoryFile : IDisposable
{
    private const uint CloseOnExec = 1;

    /// <summary>Makes a sparse file of <paramref name="bytes"/>.</summary>
    public MemoryFile(string name, ulong bytes)
    {
        Descriptor = memfd_create(name, CloseOnExec);
        if (Descriptor < 0)
            throw new Win32Exception(Marshal.GetLastPInvokeError(), "memfd_create failed");
        if (ftruncate(Descriptor, (nint)bytes) != 0)
        {
            int error = Marshal.GetLastPInvokeError();
            _ = close(Descriptor);
            throw new Win32Exception(error, $"the host cannot make a memory file of {bytes >> 20} MiB");
        }
    }

    /// <summary>File descriptor.</summary>
    public int Descriptor { get; }

    /// <inheritdoc/>
    public void Dispose() => _ = close(Descriptor);

    [LibraryImport("libc", SetLastError = true, StringMarshalling = StringMarshalling.Utf8)]
    private static partial int memfd_create(string name, uint flags);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int ftruncate(int fd, nint length);

    [LibraryImport("libc")]
    private static partial int close(int fd);
}
