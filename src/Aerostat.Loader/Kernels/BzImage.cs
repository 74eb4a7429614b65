using System.Buffers.Binary;
using Aerostat.Memory;
using Aerostat.Processors;

namespace Aerostat.Loader;

/// <summary>
/// A compressed Linux kernel, started at its 64-bit entry (Linux Documentation/arch/x86/boot.rst, sections "The Real-Mode Kernel
/// Header" and "64-bit Boot Protocol"). Not done here: the 16-bit and 32-bit entries, EFI hand-over, initrd above 4 GiB.
/// </summary>
internal sealed class BzImage : KernelImage
{
    // Where the loader puts what the kernel is given; all of it is memory the kernel may reuse once it has copied it.
    internal const ulong GdtAddress = 0x500;
    internal const ulong ZeroPageAddress = 0x7000;
    internal const ulong PageTablesAddress = 0x9000;
    internal const ulong CommandLineAddress = 0x20000;

    // The stack that the entry code may use until it has its own, right below the page tables.
    private const ulong StackTop = 0x8FF0;
    private const ulong LowAreaEnd = 0x100000;
    private const ulong IdentityMapEnd = 4UL << 30;
    private const int MinimumVersion = 0x020C;

    // What advice on --memory leaves for a small initrd and the first allocations.
    private const ulong SpareMemory = 16UL << 20;
    private const ushort BootCode = 0x10, BootData = 0x18;

    private readonly Header header;

    public BzImage(BootFile file, ReadOnlySpan<byte> head)
        : base(file) => header = Check(file, head);

    public override string Protocol => "Linux 64-bit";

    public override string Description =>
        $"Linux bzImage, boot protocol {header.Version >> 8}.{header.Version & 0xFF:d2}{(header.Release is { } r ? ", Linux " + r : "")}";

    // boot_flag 0xAA55 at 0x1FE and "HdrS" at 0x202.
    public static bool Matches(ReadOnlySpan<byte> head) => head.Length >= 0x206 && head.Slice(0x202, 4).SequenceEqual("HdrS"u8);

    public override BootResult Load(GuestMemory memory, BootParameters parameters)
    {
        PlacementMap room = new(parameters.MemoryMap);
        byte[] commandLine = EncodeCommandLine(parameters.CommandLine, Math.Min(header.CommandLineSize, 0x10000 - 1), "this kernel");
        if (!room.IsFree(0, CommandLineAddress + (ulong)commandLine.Length))
            throw new BootException($"memory too small: the boot structures of Linux need conventional memory up to 0x{CommandLineAddress + (ulong)commandLine.Length:x}; give the machine at least --memory 64M");
        room.Take(0, LowAreaEnd);

        ulong start = PlaceKernel(memory, room);
        ulong initSize = Math.Max(header.InitSize, header.LoadSize);
        room.Take(start, initSize);
        (ulong initrd, ulong initrdSize) = PlaceInitrd(memory, room, parameters.Initrd, LowAreaEnd, Math.Min(header.InitrdMax + 1, IdentityMapEnd));

        File.CopyTo(memory, start, header.SetupSize, (long)header.LoadSize);
        memory.Write(new(CommandLineAddress), commandLine);
        memory.Write(new(ZeroPageAddress), ZeroPage(parameters, start, initrd, initrdSize));
        WritePageTables(memory);
        DescriptorTableState gdt = WriteGdt(
            memory, GdtAddress, 0, 0, BootState.Descriptor(BootState.Code64), BootState.Descriptor(BootState.Data32), BootState.Descriptor(BootState.Tss32), 0);

        // The 64-bit entry is 0x200 after the load address; RSI holds the zero page, interrupts are off.
        ProcessorState state = BootState.Long(start + 0x200, PageTablesAddress, gdt, BootCode, BootData);
        state.Gpr[4] = StackTop;
        state.Gpr[6] = ZeroPageAddress;
        return new BootResult(state, Protocol, start, start + initSize, initrd, initrdSize, ZeroPageAddress, CommandLineAddress);
    }

    // The kernel moves itself to its preferred address when it is loaded below, so only that address and those above it are
    // worth trying (boot.rst, field init_size).
    private ulong PlaceKernel(GuestMemory memory, PlacementMap room)
    {
        ulong size = Math.Max(header.InitSize, header.LoadSize), preferred = Math.Max(header.PreferredAddress, LowAreaEnd);
        if (preferred == header.PreferredAddress && room.IsFree(preferred, size) && preferred + size <= IdentityMapEnd)
            return preferred;
        if (header.Relocatable && room.TakeLowest(size, header.Alignment, preferred, IdentityMapEnd) is { } place)
            return place;
        ulong needed = preferred > IdentityMapEnd ? ulong.MaxValue : preferred + size + E820Map.AcpiAreaSize;
        throw new BootException(needed < GuestMemory.PciHoleStart
            ? $"memory too small: kernel {File.Name} unpacks itself to 0x{preferred:x}..0x{preferred + size:x}, and the machine has {ByteSize.Format(memory.TotalBytes)}; use --memory {ByteSize.Megabytes(needed + SpareMemory)} or more"
            : $"kernel {File.Name} asks for {ByteSize.Format(size)} at 0x{header.PreferredAddress:x}, which no machine here has below 3 GiB; its header is damaged: get a complete copy");
    }

    // struct boot_params, Linux Documentation/arch/x86/zero-page.rst; numbers are offsets in that page.
    private byte[] ZeroPage(BootParameters parameters, ulong start, ulong initrd, ulong initrdSize)
    {
        byte[] page = new byte[GuestAddress.PageSize];
        Span<byte> p = page;
        header.Setup.CopyTo(p[0x1F1..]);
        p[0x1EF] = 0; // sentinel: a loader that cleared the page leaves 0
        BinaryPrimitives.WriteUInt64LittleEndian(p[0x70..], parameters.RsdpAddress);
        BinaryPrimitives.WriteUInt16LittleEndian(p[0x1FA..], 0xFFFF); // vid_mode: normal
        p[0x210] = 0xFF; // type_of_loader: no number assigned
        p[0x211] = (byte)((header.LoadFlags & ~0x80) | 0x01); // LOADED_HIGH; no heap for setup code, which does not run
        BinaryPrimitives.WriteUInt32LittleEndian(p[0x214..], (uint)start); // code32_start
        BinaryPrimitives.WriteUInt32LittleEndian(p[0x218..], (uint)initrd);
        BinaryPrimitives.WriteUInt32LittleEndian(p[0x21C..], (uint)initrdSize);
        BinaryPrimitives.WriteUInt32LittleEndian(p[0x228..], (uint)CommandLineAddress);
        BinaryPrimitives.WriteUInt64LittleEndian(p[0x250..], 0); // setup_data: none
        IReadOnlyList<E820Entry> map = parameters.MemoryMap.Entries;
        p[0x1E8] = (byte)map.Count;
        for (int i = 0; i < map.Count; i++)
        {
            Span<byte> entry = p[(0x2D0 + (i * 20))..];
            BinaryPrimitives.WriteUInt64LittleEndian(entry, map[i].Base);
            BinaryPrimitives.WriteUInt64LittleEndian(entry[8..], map[i].Size);
            BinaryPrimitives.WriteUInt32LittleEndian(entry[16..], (uint)map[i].Type);
        }
        return page;
    }

    // Identity map of the first 4 GiB in 2 MiB pages: one PML4, one PDPT, four page directories.
    private static void WritePageTables(GuestMemory memory)
    {
        const ulong presentWritable = X86.PageTableEntry.P | X86.PageTableEntry.W;
        byte[] tables = new byte[6 * GuestAddress.PageSize];
        BinaryPrimitives.WriteUInt64LittleEndian(tables, (PageTablesAddress + 0x1000) | presentWritable);
        for (int i = 0; i < 4; i++)
            BinaryPrimitives.WriteUInt64LittleEndian(tables.AsSpan(0x1000 + (i * 8)), (PageTablesAddress + 0x2000 + ((ulong)i << 12)) | presentWritable);
        for (int i = 0; i < 4 * 512; i++)
            BinaryPrimitives.WriteUInt64LittleEndian(tables.AsSpan(0x2000 + (i * 8)), ((ulong)i << 21) | presentWritable | X86.PageTableEntry.Ps);
        memory.Write(new(PageTablesAddress), tables);
    }

    private static Header Check(BootFile file, ReadOnlySpan<byte> head)
    {
        if (head.Length < 0x270)
            throw new BootException($"kernel {file.Name} is truncated: {file.Length} bytes do not even hold the setup header; get a complete copy");
        if (BinaryPrimitives.ReadUInt16LittleEndian(head[0x1FE..]) != 0xAA55)
            throw new BootException($"kernel {file.Name} is damaged: it has the Linux header but not the boot flag 0xAA55; get a complete copy");
        int version = BinaryPrimitives.ReadUInt16LittleEndian(head[0x206..]);
        byte loadFlags = head[0x211];
        if ((loadFlags & 1) == 0)
            throw new BootException($"kernel {file.Name} is a zImage that must load below 1 MiB, which is not supported; give a bzImage for x86-64 (Linux 3.8 or newer)");
        if (version < MinimumVersion)
            throw new BootException($"kernel {file.Name} has boot protocol {version >> 8}.{version & 0xFF:d2}, and 2.12 is the oldest with a 64-bit entry; give an x86-64 kernel of Linux 3.8 or newer");
        if ((BinaryPrimitives.ReadUInt16LittleEndian(head[0x236..]) & 1) == 0)
            throw new BootException($"kernel {file.Name} is a 32-bit kernel without the 64-bit entry; give an x86-64 kernel");

        int setupSectors = head[0x1F1] == 0 ? 4 : head[0x1F1];
        long setupSize = (setupSectors + 1) * 512L;
        long size = BinaryPrimitives.ReadUInt32LittleEndian(head[0x1F4..]) * 16L;
        // The last paragraph may be partial; what follows the image (a signature) is not loaded.
        if (size == 0 || file.Length - setupSize <= size - 16)
            throw new BootException($"kernel {file.Name} is truncated: it has {file.Length} bytes of {setupSize + size}; get a complete copy");
        long load = Math.Min(size, file.Length - setupSize);
        if (load <= 0x200)
            throw new BootException($"kernel {file.Name} is damaged: {load} bytes of code end before the 64-bit entry; get a complete copy");
        uint payloadOffset = BinaryPrimitives.ReadUInt32LittleEndian(head[0x248..]), payloadLength = BinaryPrimitives.ReadUInt32LittleEndian(head[0x24C..]);
        if ((long)payloadOffset + payloadLength > load)
            throw new BootException($"kernel {file.Name} is damaged: its payload ends at {(long)payloadOffset + payloadLength} of {load} bytes; get a complete copy");
        uint alignment = BinaryPrimitives.ReadUInt32LittleEndian(head[0x230..]);
        bool relocatable = head[0x234] != 0;
        if (relocatable && (alignment < GuestAddress.PageSize || (alignment & (alignment - 1)) != 0))
            throw new BootException($"kernel {file.Name} is damaged: its alignment 0x{alignment:x} is not a power of two of at least a page; get a complete copy");

        // The header ends where the jump over it lands.
        int end = Math.Clamp(0x202 + head[0x201], 0x268, 0x290);
        if (end > head.Length)
            throw new BootException($"kernel {file.Name} is truncated inside its setup header; get a complete copy");
        return new Header(
            head[0x1F1..end].ToArray(),
            version,
            loadFlags,
            setupSize,
            (ulong)load,
            relocatable,
            alignment,
            BinaryPrimitives.ReadUInt32LittleEndian(head[0x22C..]),
            BinaryPrimitives.ReadUInt32LittleEndian(head[0x238..]) is var limit && limit == 0 ? 255 : limit,
            BinaryPrimitives.ReadUInt64LittleEndian(head[0x258..]),
            BinaryPrimitives.ReadUInt32LittleEndian(head[0x260..]),
            ReadRelease(file, head, setupSize));
    }

    // kernel_version at 0x20E points, less 0x200, to a text in the setup code.
    private static string? ReadRelease(BootFile file, ReadOnlySpan<byte> head, long setupSize)
    {
        int at = BinaryPrimitives.ReadUInt16LittleEndian(head[0x20E..]) + 0x200;
        if (at == 0x200 || at >= setupSize)
            return null;
        ReadOnlySpan<byte> text = file.Read(at, (int)Math.Min(80, setupSize - at));
        int n = text.IndexOfAnyExceptInRange((byte)0x21, (byte)0x7E);
        return n > 0 ? System.Text.Encoding.ASCII.GetString(text[..n]) : null;
    }

    private sealed record Header(
        byte[] Setup,
        int Version,
        byte LoadFlags,
        long SetupSize,
        ulong LoadSize,
        bool Relocatable,
        uint Alignment,
        ulong InitrdMax,
        uint CommandLineSize,
        ulong PreferredAddress,
        uint InitSize,
        string? Release);
}
