using System.Buffers.Binary;
using System.Text;
using Aerostat.Memory;

namespace Aerostat.Loader;

/// <summary>A kernel that can be started without firmware; its kind is told by its content.</summary>
/// <remarks>
/// The order of the tests: bzImage ("HdrS" at 0x202), ELF with a PVH entry note, multiboot header in the first 8 KiB. An image may
/// be loaded any number of times, which is what a machine reset does.
/// </remarks>
public abstract class KernelImage : IDisposable
{
    private protected KernelImage(BootFile file) => File = file;

    /// <summary>"Linux 64-bit", "PVH" or "multiboot".</summary>
    public abstract string Protocol { get; }

    /// <summary>One line on what the image is, for people.</summary>
    public abstract string Description { get; }

    private protected BootFile File { get; }

    /// <summary>Opens a kernel file. The file stays open until the image is disposed.</summary>
    /// <exception cref="BootException">The file cannot be read or is not a kernel that can be started here.</exception>
    public static KernelImage Open(string path)
    {
        BootFile file = BootFile.Open(path, "kernel");
        try
        {
            return Open(file);
        }
        catch
        {
            file.Dispose();
            throw;
        }
    }

    /// <summary>Opens a kernel that is in memory.</summary>
    /// <exception cref="BootException">Not a kernel that can be started here.</exception>
    public static KernelImage Open(ReadOnlyMemory<byte> bytes) => Open(BootFile.FromMemory(bytes, "image", "kernel"));

    /// <summary>Opens a kernel that comes as a stream, which is read to its end.</summary>
    /// <exception cref="BootException">Not a kernel that can be started here.</exception>
    public static KernelImage Open(Stream stream) => Open(BootFile.FromStream(stream, "image", "kernel"));

    /// <summary>Opens a kernel from a boot file, which the image owns from then on.</summary>
    /// <exception cref="BootException">Not a kernel that can be started here.</exception>
    public static KernelImage Open(BootFile file)
    {
        ArgumentNullException.ThrowIfNull(file);
        byte[] head = file.Read(0, (int)Math.Min(file.Length, MultibootHeader.SearchLength));
        if (BzImage.Matches(head))
            return new BzImage(file, head);
        ElfFile? elf = ElfFile.Matches(head) ? new ElfFile(file) : null;
        if (elf is not null && PvhImage.FindEntry(file, elf) is { } entry)
            return new PvhImage(file, elf, entry);
        if (MultibootHeader.Find(file, head) is { } header)
            return new MultibootImage(file, elf, header);
        throw new BootException(WhyNot(file, head, elf));
    }

    /// <summary>
    /// Writes the kernel, its initrd, its command line and what its protocol passes into guest memory.
    /// </summary>
    /// <returns>Where things are and the state in which vCPU 0 starts.</returns>
    /// <exception cref="BootException">Something does not fit or is broken. Guest memory may have been written to.</exception>
    public abstract BootResult Load(GuestMemory memory, BootParameters parameters);

    /// <inheritdoc/>
    public void Dispose()
    {
        File.Dispose();
        GC.SuppressFinalize(this);
    }

    private static string WhyNot(BootFile file, ReadOnlySpan<byte> head, ElfFile? elf)
    {
        if (elf is not null)
            return $"kernel {file.Name} is an ELF file of class {(elf.Is64 ? 64 : 32)} with neither a PVH note nor a multiboot header in its first 8 KiB; build Linux with CONFIG_PVH=y, or give a bzImage";
        string? packed = head switch
        {
            [0x1F, 0x8B, ..] => "gzip",
            [0xFD, 0x37, 0x7A, 0x58, 0x5A, 0x00, ..] => "xz",
            [0x28, 0xB5, 0x2F, 0xFD, ..] => "zstd",
            [0x42, 0x5A, 0x68, ..] => "bzip2",
            [0x04, 0x22, 0x4D, 0x18, ..] or [0x02, 0x21, 0x4C, 0x18, ..] => "lz4",
            [0x89, 0x4C, 0x5A, 0x4F, ..] => "lzop",
            [0x5D, 0x00, 0x00, ..] => "lzma",
            _ => null,
        };
        if (packed is not null)
            return $"kernel {file.Name} is compressed as a whole ({packed}); unpack it first, or give the bzImage (vmlinuz) that unpacks itself";
        if (head.StartsWith("MZ"u8))
            return $"kernel {file.Name} is an EFI or DOS program without a Linux boot header; give a bzImage for x86-64";
        if (head.StartsWith("070701"u8) || head.StartsWith("070702"u8))
            return $"kernel {file.Name} is a cpio archive; it belongs to --initrd";
        if (head.StartsWith("#!"u8) || head.StartsWith("!<arch>"u8))
            return $"kernel {file.Name} is {(head[0] == '#' ? "a script" : "an archive or package")}, not a kernel; give a bzImage, a PVH ELF or a multiboot ELF";
        return $"kernel {file.Name} is not a kernel: no bzImage, ELF or multiboot signature in {file.Length} bytes; give a bzImage, a PVH ELF or a multiboot ELF";
    }

    /// <summary>Encodes a command line with its zero byte; null bytes end it as they would in the guest.</summary>
    private protected static byte[] EncodeCommandLine(string text, long limit, string owner)
    {
        byte[] bytes = Encoding.UTF8.GetBytes(text + "\0");
        if (bytes.Length - 1 > limit)
            throw new BootException($"command line too long: {bytes.Length - 1} bytes, and {owner} takes {limit}; shorten --append");
        if (bytes.AsSpan(0, bytes.Length - 1).Contains((byte)0))
            throw new BootException("command line has a NUL character in it; remove it from --append");
        return bytes;
    }

    /// <summary>Copies an initrd to the highest page-aligned place below <paramref name="limit"/>.</summary>
    private protected static (ulong Start, ulong Size) PlaceInitrd(
        GuestMemory memory, PlacementMap room, BootFile? initrd, ulong min, ulong limit, bool lowest = false)
    {
        if (initrd is null || initrd.Length == 0)
            return (0, 0);
        ulong size = (ulong)initrd.Length, pages = (size + GuestAddress.PageSize - 1) & ~(GuestAddress.PageSize - 1UL);
        ulong largest = room.Largest(min, limit);
        ulong? at = lowest
            ? room.TakeLowest(pages, GuestAddress.PageSize, min, limit)
            : room.TakeHighest(pages, GuestAddress.PageSize, min, limit);
        if (at is not { } start)
        {
            ulong needed = memory.TotalBytes + (pages > largest ? pages - largest : GuestAddress.PageSize);
            string advice = memory.Regions[0].End + (needed - memory.TotalBytes) <= Math.Min(limit, GuestMemory.PciHoleStart)
                ? $"use --memory {ByteSize.Megabytes(needed)} or more, or a smaller initrd"
                : $"use a smaller initrd (this kernel takes it below {ByteSize.Format(limit)} only)";
            throw new BootException($"initrd {initrd.Name} does not fit: it has {ByteSize.Format(size)} ({size} bytes), and {ByteSize.Format(largest)} of {ByteSize.Format(memory.TotalBytes)} of memory are free for it; {advice}");
        }
        initrd.CopyTo(memory, start, 0, initrd.Length);
        if (pages > size)
            memory.Write(new(start + size), new byte[(int)(pages - size)]);
        return (start, size);
    }

    /// <summary>Writes zeros to guest memory.</summary>
    private protected static void Zero(GuestMemory memory, ulong address, ulong length)
    {
        byte[] zeros = new byte[(int)Math.Min(length, 1 << 20)];
        while (length > 0)
        {
            int n = (int)Math.Min(length, (ulong)zeros.Length);
            memory.Write(new(address), zeros.AsSpan(0, n));
            address += (ulong)n;
            length -= (ulong)n;
        }
    }

    /// <summary>Writes descriptors as a GDT; index 0 is the null descriptor.</summary>
    private protected static Aerostat.Processors.DescriptorTableState WriteGdt(GuestMemory memory, ulong address, params ReadOnlySpan<ulong> descriptors)
    {
        byte[] table = new byte[descriptors.Length * 8];
        for (int i = 0; i < descriptors.Length; i++)
            BinaryPrimitives.WriteUInt64LittleEndian(table.AsSpan(i * 8), descriptors[i]);
        memory.Write(new(address), table);
        return new(address, (ushort)(table.Length - 1));
    }
}
