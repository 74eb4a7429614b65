using System.Buffers.Binary;

namespace Aerostat.Loader.Tests;

/// <summary>PVH.</summary>
public sealed class PvhTests
{
    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void StartInfoHoldsWhatTheInterfaceAsksFor(bool is64)
    {
        using Guest guest = new(64);
        byte[] image = Kernels.Pvh(is64);
        byte[] initrd = [.. Enumerable.Range(0, 300).Select(i => (byte)i)];
        using KernelImage kernel = KernelImage.Open(image);
        BootResult result = kernel.Load(guest.Memory, guest.Parameters("a=b c", initrd, rsdp: 0xE0000));
        ulong info = result.State.Gpr[3];

        Assert.Equal("PVH", kernel.Protocol);
        Assert.Equal(0x1000100UL, result.State.Rip);
        Assert.Equal(0x336EC578u, guest.U32(info));
        Assert.Equal(1u, guest.U32(info + 4));
        Assert.Equal(0u, guest.U32(info + 8));
        Assert.Equal(1u, guest.U32(info + 12));
        ulong module = guest.U64(info + 16);
        Assert.Equal(result.InitrdStart, guest.U64(module));
        Assert.Equal(300UL, guest.U64(module + 8));
        Assert.Equal(initrd, guest.Bytes(result.InitrdStart, 300));
        Assert.Equal("a=b c", guest.Text(guest.U64(info + 24)));
        Assert.Equal(0xE0000UL, guest.U64(info + 32));
        ulong map = guest.U64(info + 40);
        Assert.Equal((uint)guest.Map.Entries.Count, guest.U32(info + 48));
        for (int i = 0; i < guest.Map.Entries.Count; i++)
        {
            ulong at = map + ((ulong)i * 24);
            Assert.Equal(guest.Map.Entries[i], new E820Entry(guest.U64(at), guest.U64(at + 8), (E820Type)guest.U32(at + 16)));
        }
        Assert.Equal(image.AsSpan(0x1000, 0x2000).ToArray(), guest.Bytes(0x1000000, 0x2000));
        Assert.Equal(0UL, result.State.Cr4);
        Assert.Equal(0x67u, result.State.Tr.Limit);
        Assert.Equal(2UL, result.State.Rflags);
    }

    [Fact]
    public void NoModuleMeansNoModuleList()
    {
        using Guest guest = new(64);
        using KernelImage kernel = KernelImage.Open(Kernels.Pvh());
        ulong info = kernel.Load(guest.Memory, guest.Parameters()).InformationAddress;
        Assert.Equal(0u, guest.U32(info + 12));
        Assert.Equal(0UL, guest.U64(info + 16));
    }

    [Fact]
    public void NotesThatAreBrokenAreNotFollowed()
    {
        // Sizes that would wrap, run past the end, or leave the entry out; then there is no PVH note, and no multiboot header either.
        Says("neither", n => Sizes(n, 0xFFFFFFFF, 20));
        Says("neither", n => Sizes(n, 4, 0xFFFFFFFF));
        Says("neither", n => Sizes(n, 0xFFFFFFFC, 0xFFFFFFFC));
        Says("neither", n => Sizes(n, 4, 0x7FFFFFFF));
        Says("neither", n => n[..(n.Length - 8)]);
        Says("neither", n => n[..5]);
        Says("neither", _ => []);
        Says("not 4 or 8", n => Kernels.Note("Xen\0", 18, new byte[6]));
        Says("above 4 GiB", n => Kernels.Note("Xen\0", 18, [0, 0, 0, 1, 1, 0, 0, 0]));
        Says("none of its segments", n => Kernels.Note("Xen\0", 18, [0, 0, 0, 0x10]));

        static byte[] Sizes(byte[] notes, uint name, uint value)
        {
            BinaryPrimitives.WriteUInt32LittleEndian(notes, name);
            BinaryPrimitives.WriteUInt32LittleEndian(notes.AsSpan(4), value);
            return notes;
        }

        static void Says(string what, Func<byte[], byte[]> change) =>
            Assert.Contains(what, Assert.Throws<BootException>(() => KernelImage.Open(Kernels.Pvh(note: change))).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void PvhNoteComesBeforeMultibootHeader()
    {
        byte[] image = Kernels.Pvh();
        Kernels.MultibootHeader(image.AsSpan(0x1800), 3);
        using KernelImage kernel = KernelImage.Open(image);
        Assert.Equal("PVH", kernel.Protocol);
    }

    [Fact]
    public void DamagedProgramHeadersAreSaid()
    {
        Says("truncated or damaged", p => Kernels.Segment(p, true, 0, 1, 0x1000, 0, 0x1000000, 0x4000, 0x8000));
        Says("truncated or damaged", p => Kernels.Segment(p, true, 0, 1, ulong.MaxValue - 10, 0, 0x1000000, 0x2000, 0x8000));
        Says("truncated or damaged", p => Kernels.Segment(p, true, 0, 1, 0x1000, 0, 0x1000000, 0x2000, 0x1000));
        Says("above 4 GiB", p => Kernels.Segment(p, true, 0, 1, 0x1000, 0, 0x1000000, 0x2000, ulong.MaxValue));
        Says("above 4 GiB", p => Kernels.Segment(p, true, 0, 1, 0x1000, 0, ulong.MaxValue, 0x2000, 0x2000));
        Says("another processor", p => p[18] = 183);
        Says("not an executable", p => p[16] = 1);
        Says("big-endian", p => p[5] = 2);
        Says("class 3", p => p[4] = 3);
        Says("program headers", p => p[56] = p[57] = 0xFF);
        Says("program headers", p => p[56] = 0);
        Says("program headers", p => p[39] = 0xFF);

        static void Says(string what, Action<byte[]> change)
        {
            byte[] image = Kernels.Pvh();
            change(image);
            Assert.Contains(what, Assert.Throws<BootException>(() => KernelImage.Open(image)).Message, StringComparison.Ordinal);
        }
    }
}
