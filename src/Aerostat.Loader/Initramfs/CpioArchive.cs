using System.Globalization;
using System.Text;

namespace Aerostat.Loader;

/// <summary>
/// Writes a cpio archive of the "newc" kind, which Linux takes as an initramfs (Linux Documentation/driver-api/early-userspace/
/// buffer-format.rst). Owners are root, times are zero and inode numbers count up, so that the same input gives the same bytes.
/// </summary>
public sealed class CpioArchive
{
    private const int HeaderSize = 110;
    private const int BlockSize = 512;
    private const int LongestName = 4095;
    private const uint DirectoryType = 0x4000, FileType = 0x8000, SymlinkType = 0xA000, CharacterType = 0x2000, BlockType = 0x6000;

    private readonly Stream output;
    private readonly HashSet<string> names = new(StringComparer.Ordinal);
    private long written;
    private uint nextInode = 1;
    private bool finished;

    /// <summary>Starts an archive. The stream is written from where it stands and is not closed; <see cref="Finish"/> ends the archive.</summary>
    public CpioArchive(Stream output)
    {
        ArgumentNullException.ThrowIfNull(output);
        this.output = output;
    }

    /// <summary>Adds a directory; one that is already there is left as it is. Missing parents are added with mode 755 (octal).</summary>
    /// <param name="path">Path with or without a leading slash.</param>
    /// <param name="mode">Permission bits.</param>
    public void AddDirectory(string path, int mode = 0x1ED)
    {
        string name = Normalize(path);
        if (name.Length == 0 || names.Contains(name + "/"))
            return;
        AddParents(name);
        Claim(name);
        names.Add(name + "/");
        WriteHeader(name, DirectoryType | (uint)mode, links: 2, size: 0, 0, 0);
    }

    /// <summary>Adds a regular file.</summary>
    /// <param name="path">Path with or without a leading slash.</param>
    /// <param name="content">What is in it.</param>
    /// <param name="mode">Permission bits.</param>
    public void AddFile(string path, ReadOnlySpan<byte> content, int mode = 0x1A4)
    {
        BeginFile(path, content.Length, mode);
        Put(content);
        Align(4);
    }

    /// <summary>Adds a regular file whose content is the rest of a stream with a known length.</summary>
    /// <param name="path">Path with or without a leading slash.</param>
    /// <param name="content">A stream that can tell its length.</param>
    /// <param name="mode">Permission bits.</param>
    /// <exception cref="BootException">The stream has more or fewer bytes than it said.</exception>
    public void AddFile(string path, Stream content, int mode = 0x1A4)
    {
        ArgumentNullException.ThrowIfNull(content);
        long size = content.Length - content.Position;
        string name = BeginFile(path, size, mode);
        byte[] piece = new byte[64 * 1024];
        long copied = 0;
        for (int n; copied < size && (n = content.Read(piece, 0, (int)Math.Min(piece.Length, size - copied))) > 0; copied += n)
            Put(piece.AsSpan(0, n));
        if (copied != size)
            throw new BootException($"{name} became shorter while it was put in the initramfs; start again when it is complete");
        Align(4);
    }

    /// <summary>Adds a symbolic link.</summary>
    public void AddSymlink(string path, string target)
    {
        string name = Normalize(path);
        byte[] bytes = Encoding.UTF8.GetBytes(target);
        AddParents(name);
        Claim(name);
        WriteHeader(name, SymlinkType | 0x1FF, 1, (uint)bytes.Length, 0, 0);
        Put(bytes);
        Align(4);
    }

    /// <summary>
    /// Adds all that is in a folder of the host: directories, regular files (hard links become copies) and symbolic links, in the order of
    /// their names. Sockets, pipes and device nodes are left out.
    /// </summary>
    /// <param name="folder">A folder of the host; it becomes the root.</param>
    /// <exception cref="BootException">Something in it cannot be read.</exception>
    public void AddTree(string folder)
    {
        ArgumentNullException.ThrowIfNull(folder);
        try
        {
            AddTree(new DirectoryInfo(folder), "");
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            throw new BootException($"could not read {folder} for the initramfs: {BootFile.OneLine(e)}; check the path and who may read it", e);
        }
    }

    private void AddTree(DirectoryInfo folder, string prefix)
    {
        foreach (FileSystemInfo entry in folder.EnumerateFileSystemInfos().OrderBy(e => e.Name, StringComparer.Ordinal))
        {
            string path = prefix + entry.Name;
            if (entry.LinkTarget is { } target)
            {
                AddSymlink(path, target);
            }
            else if (entry is DirectoryInfo directory)
            {
                AddDirectory(path, (int)entry.UnixFileMode);
                AddTree(directory, path + "/");
            }
            else if ((entry.Attributes & FileAttributes.Device) == 0)
            {
                using FileStream content = new(entry.FullName, FileMode.Open, FileAccess.Read, FileShare.ReadWrite | FileShare.Delete);
                if (content.CanSeek)
                    AddFile(path, content, (int)entry.UnixFileMode);
            }
        }
    }

    /// <summary>Adds a character device node.</summary>
    public void AddCharacterDevice(string path, int major, int minor, int mode = 0x180) => AddNode(path, CharacterType, major, minor, mode);

    /// <summary>Adds a block device node.</summary>
    public void AddBlockDevice(string path, int major, int minor, int mode = 0x180) => AddNode(path, BlockType, major, minor, mode);

    /// <summary>Writes the trailer and pads to 512 bytes. Nothing can be added after it.</summary>
    public void Finish()
    {
        if (finished)
            return;
        nextInode = 0;
        WriteHeader("TRAILER!!!", 0, 1, 0, 0, 0);
        Align(BlockSize);
        output.Flush();
        finished = true;
    }

    private void AddNode(string path, uint type, int major, int minor, int mode)
    {
        string name = Normalize(path);
        AddParents(name);
        Claim(name);
        WriteHeader(name, type | (uint)mode, 1, 0, (uint)major, (uint)minor);
    }

    private string BeginFile(string path, long size, int mode)
    {
        string name = Normalize(path);
        if (size > uint.MaxValue)
            throw new BootException($"{name} is too large for an initramfs: {size} bytes, and 4 GiB is the limit; leave it out");
        AddParents(name);
        Claim(name);
        WriteHeader(name, FileType | (uint)mode, 1, (uint)size, 0, 0);
        return name;
    }

    private void AddParents(string name)
    {
        int slash = name.LastIndexOf('/');
        if (slash > 0)
            AddDirectory(name[..slash]);
    }

    private void Claim(string name)
    {
        ObjectDisposedException.ThrowIf(finished, this);
        if (name.Length == 0 || !names.Add(name))
            throw new BootException($"'/{name}' is in the initramfs twice; leave one out");
    }

    private static string Normalize(string path)
    {
        ArgumentNullException.ThrowIfNull(path);
        string[] parts = path.Split('/', StringSplitOptions.RemoveEmptyEntries);
        string name = string.Join('/', parts);
        if (parts.Any(p => p is "." or "..") || name.Contains('\0') || Encoding.UTF8.GetByteCount(name) > LongestName)
            throw new BootException($"'{path}' is not a path for an initramfs; use one without . and .. of at most {LongestName} bytes");
        return name;
    }

    private void WriteHeader(string name, uint mode, uint links, uint size, uint major, uint minor)
    {
        byte[] nameBytes = Encoding.UTF8.GetBytes(name + "\0");
        // magic, ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
        uint[] fields = [nextInode++, mode, 0, 0, links, 0, size, 0, 0, major, minor, (uint)nameBytes.Length, 0];
        StringBuilder header = new("070701", HeaderSize);
        foreach (uint field in fields)
            header.Append(field.ToString("X8", CultureInfo.InvariantCulture));
        Put(Encoding.ASCII.GetBytes(header.ToString()));
        Put(nameBytes);
        Align(4);
    }

    private void Put(ReadOnlySpan<byte> bytes)
    {
        output.Write(bytes);
        written += bytes.Length;
    }

    private void Align(int boundary)
    {
        Span<byte> zeros = stackalloc byte[BlockSize];
        zeros.Clear();
        Put(zeros[..(int)((boundary - (written % boundary)) % boundary)]);
    }
}
