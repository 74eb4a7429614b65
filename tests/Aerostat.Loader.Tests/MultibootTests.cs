namespace Aerostat.Loader.Tests;

/// <summary>Multiboot 1.</summary>
public sealed class MultibootTests
{
    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void ElfIsLoadedAndToldWhatItAsksFor(bool is64)
    {
        using Guest guest = new(128);
        byte[] image = Kernels.MultibootElf(is64);
        byte[] module = [.. Enumerable.Range(0, 4100).Select(i => (byte)(i * 13))];
        guest.Memory.Write(new(0x402000), new byte[] { 1, 2, 3 }); // stale bytes where the zeroed data goes
        using KernelImage kernel = KernelImage.Open(image);
        BootResult result = kernel.Load(guest.Memory, guest.Parameters("one two", module));
        ulong info = result.State.Gpr[3];

        Assert.Equal("multiboot", kernel.Protocol);
        Assert.Equal(0x2BADB002UL, result.State.Gpr[0]);
        Assert.Equal(0x400000UL, result.State.Rip);
        Assert.Equal(0UL, result.State.Efer);
        Assert.Equal(1UL, result.State.Cr0 & 0x80000001);
        Assert.Equal(0xC09Bu, result.State.Segments[1].Attributes);
        Assert.Equal(image.AsSpan(0x1000, 0x2000).ToArray(), guest.Bytes(0x400000, 0x2000));
        Assert.All(guest.Bytes(0x402000, 0x3000), b => Assert.Equal(0, b));

        Assert.Equal(0x24Du, guest.U32(info));
        Assert.Equal(639u, guest.U32(info + 4));
        Assert.Equal((128u << 10) - 1024 - 128, guest.U32(info + 8));
        Assert.Equal("image one two", guest.Text(guest.U32(info + 16)));
        Assert.Equal(1u, guest.U32(info + 20));
        uint modules = guest.U32(info + 24);
        Assert.Equal(result.InitrdStart, guest.U32(modules));
        Assert.Equal(result.InitrdStart + 4100, guest.U32(modules + 4));
        Assert.Equal("initrd.img", guest.Text(guest.U32(modules + 8)));
        Assert.Equal(module, guest.Bytes(result.InitrdStart, module.Length));
        Assert.Equal(result.KernelEnd, result.InitrdStart);
        Assert.Equal("Aerostat", guest.Text(guest.U32(info + 64)));

        List<E820Entry> seen = [];
        uint map = guest.U32(info + 48), end = map + guest.U32(info + 44);
        for (; map < end; map += guest.U32(map) + 4)
            seen.Add(new E820Entry(guest.U64(map + 4), guest.U64(map + 12), (E820Type)guest.U32(map + 20)));
        Assert.Equal(guest.Map.Entries, seen);
    }

    [Fact]
    public void InformationKeepsOffWhatStartUpCodeUses()
    {
        // A kernel low in memory, one at 4 MiB; nothing of ours in the first page, in the image or at 32 to 34 MiB.
        foreach (uint address in (uint[])[0x8000, 0x400000])
        {
            using Guest guest = new(128);
            using KernelImage kernel = KernelImage.Open(Kernels.MultibootElf(false, address));
            BootResult result = kernel.Load(guest.Memory, guest.Parameters(initrd: new byte[100]));
            foreach (ulong at in (ulong[])[result.InformationAddress, result.CommandLineAddress, guest.U32(result.InformationAddress + 48)])
            {
                Assert.InRange(at, 0x1000UL, E820Map.ConventionalEnd);
                Assert.False(at >= result.KernelStart && at < result.KernelEnd);
            }
            Assert.True(result.InitrdStart >= 0x100000 && result.InitrdStart >= result.KernelEnd);
        }
    }

    [Fact]
    public void KernelThatFillsConventionalMemoryGetsItsInformationAbove()
    {
        using Guest guest = new(64);
        using KernelImage kernel = KernelImage.Open(Kernels.MultibootElf(false, 0x1000, bss: (uint)E820Map.ConventionalEnd - 0x3000));
        BootResult result = kernel.Load(guest.Memory, guest.Parameters());
        Assert.True(result.InformationAddress >= 0x100000);
        Assert.Equal(0x24Du, guest.U32(result.InformationAddress));
    }

    [Fact]
    public void AddressFieldsSayHowToLoad()
    {
        using Guest guest = new(64);
        byte[] image = Kernels.MultibootFlat();
        using KernelImage kernel = KernelImage.Open(image);
        BootResult result = kernel.Load(guest.Memory, guest.Parameters(""));
        Assert.Equal(0x200080UL, result.State.Rip);
        Assert.Equal(image.AsSpan(0x20, 0x1000).ToArray(), guest.Bytes(0x200000, 0x1000));
        Assert.All(guest.Bytes(0x201000, 0x4000), b => Assert.Equal(0, b));
        Assert.Equal((0x200000UL, 0x205000UL), (result.KernelStart, result.KernelEnd));
        Assert.Equal("image", guest.Text(result.CommandLineAddress));
        Assert.Equal(0u, guest.U32(result.InformationAddress + 20));
    }

    [Fact]
    public void VirtualEntryIsTranslated()
    {
        using Guest guest = new(64);
        using KernelImage kernel = KernelImage.Open(Kernels.MultibootElf(true, 0x200000, entry: 0xFFFFFFFF80200040, virtualOffset: 0xFFFFFFFF80000000));
        Assert.Equal(0x200040UL, kernel.Load(guest.Memory, guest.Parameters()).State.Rip);
    }

    [Fact]
    public void LoadingTwiceGivesTheSame()
    {
        using Guest guest = new(64);
        using KernelImage kernel = KernelImage.Open(Kernels.MultibootElf(true));
        BootParameters parameters = guest.Parameters(initrd: new byte[5000]);
        BootResult first = kernel.Load(guest.Memory, parameters);
        byte[] seen = guest.Bytes(0x400000, 0x10000);
        guest.Memory.Write(new(0x400000), new byte[0x8000]);
        Assert.Equal(first with { State = null! }, kernel.Load(guest.Memory, parameters) with { State = null! });
        Assert.Equal(seen, guest.Bytes(0x400000, 0x10000));
    }

    [Fact]
    public void WhatCannotBeMetIsSaid()
    {
        Says("video mode", Changed(p => Kernels.MultibootHeader(p.AsSpan(0x1100), 7)));
        Says("0x20", Changed(p => Kernels.MultibootHeader(p.AsSpan(0x1100), 0x20)));
        Says("neither", Changed(p => p[0x1100] = 0));
        Says("neither", Changed(p =>
        {
            p[0x1100] = 0;
            Kernels.MultibootHeader(p.AsSpan(0x2000), 3); // one byte past the first 8 KiB
        }));
        Says("entry", Kernels.MultibootElf(false, entry: 0x300000));
        Says("above 4 GiB", Kernels.MultibootElf(false, 0xFFFFF000));
        byte[] flat = new byte[9000];
        Kernels.MultibootHeader(flat.AsSpan(16), 3);
        Says("not ELF", flat);

        static byte[] Changed(Action<byte[]> change)
        {
            byte[] image = Kernels.MultibootElf(true);
            change(image);
            return image;
        }

        static void Says(string what, byte[] image) =>
            Assert.Contains(what, Assert.Throws<BootException>(() => KernelImage.Open(image)).Message, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData(0x9F000u, "no usable memory")] // over the EBDA
    [InlineData(0xA0000u, "no usable memory")]
    [InlineData(0xC0000000u, "no usable memory")]
    [InlineData(0x10000000u, "memory too small")]
    public void SegmentOutsideUsableMemoryIsSaid(uint address, string what)
    {
        using Guest guest = new(64);
        using KernelImage kernel = KernelImage.Open(Kernels.MultibootElf(true, address));
        Assert.Contains(what, Assert.Throws<BootException>(() => kernel.Load(guest.Memory, guest.Parameters())).Message, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData(0)]
    [InlineData(1)]
    public void ModuleThatFitsExactlyIsPlacedAndOneByteMoreIsNot(int extra)
    {
        using Guest guest = new(16);
        using KernelImage kernel = KernelImage.Open(Kernels.MultibootElf(true));
        byte[] module = new byte[(int)E820Map.AcpiAreaBase(guest.Memory) - 0x405000 + extra];
        if (extra == 0)
            Assert.Equal(0x405000UL, kernel.Load(guest.Memory, guest.Parameters(initrd: module)).InitrdStart);
        else
            Assert.Contains("--memory 17M", Assert.Throws<BootException>(() => kernel.Load(guest.Memory, guest.Parameters(initrd: module))).Message, StringComparison.Ordinal);
    }
}
