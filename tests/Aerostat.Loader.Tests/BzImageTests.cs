using Aerostat.X86;

namespace Aerostat.Loader.Tests;

/// <summary>The Linux 64-bit boot protocol.</summary>
public sealed class BzImageTests
{
    [Fact]
    public void ZeroPageHoldsWhatTheProtocolAsksFor()
    {
        using Guest guest = new(256);
        byte[] initrd = [.. Enumerable.Range(0, 5000).Select(i => (byte)i)];
        byte[] image = Kernels.BzImage();
        using KernelImage kernel = KernelImage.Open(image);
        BootResult result = kernel.Load(guest.Memory, guest.Parameters("root=/dev/ram0", initrd, rsdp: 0xE0000));
        ulong zp = result.InformationAddress;

        Assert.Equal("Linux 64-bit", kernel.Protocol);
        Assert.Contains("6.1.0-test", kernel.Description, StringComparison.Ordinal);
        Assert.Equal(0x1000000UL, result.KernelStart);
        Assert.Equal(image.AsSpan(5 * 512).ToArray(), guest.Bytes(0x1000000, image.Length - (5 * 512)));
        Assert.Equal(0xE0000UL, guest.U64(zp + 0x70));
        Assert.Equal(0, guest.U8(zp + 0x1EF));
        Assert.Equal(4, guest.U8(zp + 0x1F1));
        Assert.Equal(0x53726448u, guest.U32(zp + 0x202));
        Assert.Equal(0x20F, guest.U16(zp + 0x206));
        Assert.Equal(0xFF, guest.U8(zp + 0x210));
        Assert.Equal(1, guest.U8(zp + 0x211) & 0x81);
        Assert.Equal(0x1000000u, guest.U32(zp + 0x214));
        Assert.Equal(result.InitrdStart, guest.U32(zp + 0x218));
        Assert.Equal(5000u, guest.U32(zp + 0x21C));
        Assert.Equal("root=/dev/ram0", guest.Text(guest.U32(zp + 0x228)));
        Assert.Equal(initrd, guest.Bytes(result.InitrdStart, 5000));
        Assert.Equal(0UL, result.InitrdStart & 4095);
        Assert.Equal(guest.Map.Entries.Count, guest.U8(zp + 0x1E8));
        for (int i = 0; i < guest.Map.Entries.Count; i++)
        {
            ulong at = zp + 0x2D0 + ((ulong)i * 20);
            Assert.Equal(guest.Map.Entries[i], new E820Entry(guest.U64(at), guest.U64(at + 8), (E820Type)guest.U32(at + 16)));
        }
    }

    [Fact]
    public void ProcessorStartsInLongModeWithIdentityMapAndBootSegments()
    {
        using Guest guest = new(64);
        using KernelImage kernel = KernelImage.Open(Kernels.BzImage());
        BootResult result = kernel.Load(guest.Memory, guest.Parameters());
        Processors.ProcessorState s = result.State;

        Assert.Equal(result.KernelStart + 0x200, s.Rip);
        Assert.Equal(result.InformationAddress, s.Gpr[6]);
        Assert.Equal(2UL, s.Rflags);
        Assert.Equal(Efer.Lme | Efer.Lma, s.Efer);
        Assert.Equal(Cr0.Pe | Cr0.Pg, s.Cr0 & (Cr0.Pe | Cr0.Pg));
        Assert.Equal(Cr4.Pae, s.Cr4);
        Assert.Equal(0x10, s.Segments[1].Selector);
        foreach (int i in (int[])[0, 2, 3])
            Assert.Equal(0x18, s.Segments[i].Selector);
        // The GDT in memory says the same as the hidden parts: code64 and data.
        Assert.Equal(0x00AF9B000000FFFFUL, guest.U64(s.Gdtr.Base + 0x10));
        Assert.Equal(0x00CF93000000FFFFUL, guest.U64(s.Gdtr.Base + 0x18));
        foreach (ulong address in (ulong[])[0, 0x1FFFFF, 0x1000000, 0xBFFFFFFF, 0xFEE00000, 0xFFFFFFFF])
            Assert.Equal(address, Walk(guest, s.Cr3, address));
        Assert.Equal(0UL, guest.U64(s.Cr3 + 8) & 1);
    }

    [Theory]
    [InlineData(0)]
    [InlineData(1)]
    public void InitrdThatFitsExactlyIsPlacedAndOnePageMoreIsNot(int extraPages)
    {
        using Guest guest = new(64);
        // Below: the kernel's work space ends at 16 MiB + InitSize; above: the ACPI area starts.
        ulong free = E820Map.AcpiAreaBase(guest.Memory) - (0x1000000 + Kernels.InitSize);
        byte[] initrd = new byte[(int)free + (extraPages * 4096)];
        using KernelImage kernel = KernelImage.Open(Kernels.BzImage());
        if (extraPages == 0)
        {
            BootResult result = kernel.Load(guest.Memory, guest.Parameters(initrd: initrd));
            Assert.Equal(result.KernelEnd, result.InitrdStart);
        }
        else
        {
            BootException e = Assert.Throws<BootException>(() => kernel.Load(guest.Memory, guest.Parameters(initrd: initrd)));
            Assert.Contains("does not fit", e.Message, StringComparison.Ordinal);
            Assert.Contains("--memory 65M", e.Message, StringComparison.Ordinal);
            Assert.DoesNotContain('\n', e.Message);
        }
    }

    [Fact]
    public void InitrdStaysBelowItsLimit()
    {
        using Guest guest = new(256);
        byte[] initrd = new byte[4097];
        using KernelImage kernel = KernelImage.Open(Kernels.BzImage(p => Kernels.Put(p, 0x22C, 0x4001FFF)));
        BootResult result = kernel.Load(guest.Memory, guest.Parameters(initrd: initrd));
        Assert.Equal(0x4000000UL, result.InitrdStart);

        using KernelImage tight = KernelImage.Open(Kernels.BzImage(p => Kernels.Put(p, 0x22C, 0x101FFE)));
        BootException e = Assert.Throws<BootException>(() => tight.Load(guest.Memory, guest.Parameters(initrd: initrd)));
        Assert.Contains("smaller initrd", e.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void InitrdStaysBelowThePciHoleOfALargeMachine()
    {
        using Guest guest = new(5120);
        using KernelImage kernel = KernelImage.Open(Kernels.BzImage(p => Kernels.Put(p, 0x22C, 0xFFFFFFFF)));
        BootResult result = kernel.Load(guest.Memory, guest.Parameters(initrd: new byte[4096]));
        Assert.Equal(E820Map.AcpiAreaBase(guest.Memory) - 4096, result.InitrdStart);
        Assert.Equal(E820Type.Usable, guest.Map.Entries[^1].Type);
        Assert.Equal(new E820Entry(4UL << 30, 2UL << 30, E820Type.Usable), guest.Map.Entries[^1]);
    }

    [Fact]
    public void RelocatableKernelGoesAboveItsPreferredAddressWhenThatIsTaken()
    {
        using Guest guest = new(64);
        E820Map map = new E820Map().Add(0, 0x9FC00, E820Type.Usable).Add(0x100000, 0x1F00000, E820Type.Usable).Add(0x2100000, 0x1F00000, E820Type.Usable);
        BootParameters parameters = new() { MemoryMap = map };
        // 16 MiB + 2 MiB fits; with 17 MiB of work space only the second range is long enough.
        using KernelImage wide = KernelImage.Open(Kernels.BzImage(p => Kernels.Put(p, 0x260, 17 << 20)));
        Assert.Equal(0x2200000UL, wide.Load(guest.Memory, parameters).KernelStart);
        using KernelImage still = KernelImage.Open(Kernels.BzImage(p =>
        {
            Kernels.Put(p, 0x260, 17 << 20);
            p[0x234] = 0;
        }));
        Assert.Throws<BootException>(() => still.Load(guest.Memory, parameters));
    }

    [Theory]
    [InlineData(2047, true)]
    [InlineData(2048, false)]
    public void CommandLineIsLimitedByTheKernel(int length, bool fits)
    {
        using Guest guest = new(64);
        using KernelImage kernel = KernelImage.Open(Kernels.BzImage());
        string text = new('x', length);
        if (fits)
            Assert.Equal(text, guest.Text(kernel.Load(guest.Memory, guest.Parameters(text)).CommandLineAddress));
        else
            Assert.Contains("2047", Assert.Throws<BootException>(() => kernel.Load(guest.Memory, guest.Parameters(text))).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void HeadersThatCannotBeStartedSayWhy()
    {
        Says("2.11", p => p[0x206] = 0x0B);
        Says("32-bit", p => p[0x236] = 0);
        Says("zImage", p => p[0x211] = 0);
        Says("boot flag", p => p[0x1FE] = 0);
        Says("alignment", p => Kernels.Put(p, 0x230, 0x300000));
        Says("truncated", p => Kernels.Put(p, 0x1F4, 0x1002));
        Says("payload", p => Kernels.Put(p, 0x24C, 0xFFFFFFFF));

        static void Says(string what, Action<byte[]> change)
        {
            BootException e = Assert.Throws<BootException>(() => KernelImage.Open(Kernels.BzImage(change)));
            Assert.Contains(what, e.Message, StringComparison.Ordinal);
        }
    }

    [Fact]
    public void TooLittleMemorySaysHowMuch()
    {
        using Guest guest = new(17);
        using KernelImage kernel = KernelImage.Open(Kernels.BzImage());
        BootException e = Assert.Throws<BootException>(() => kernel.Load(guest.Memory, guest.Parameters()));
        Assert.Contains("memory too small", e.Message, StringComparison.Ordinal);
        Assert.Contains("--memory 35M", e.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void RealKernelAndItsInitrdLoad()
    {
        string package = Tools.DebianKernelPackage();
        string path = Directory.EnumerateFiles(Path.Combine(package, "boot"), "vmlinuz-*").First();
        using Guest guest = new(512);
        using KernelImage kernel = KernelImage.Open(path);
        BootResult result = kernel.Load(guest.Memory, guest.Parameters(initrd: new byte[1 << 20]));
        Assert.Contains(Path.GetFileName(path)["vmlinuz-".Length..], kernel.Description, StringComparison.Ordinal);
        Assert.True(result.KernelEnd <= result.InitrdStart);
        // What is at the load address is what follows the setup sectors in the file.
        byte[] file = File.ReadAllBytes(path);
        int setup = (file[0x1F1] + 1) * 512;
        Assert.Equal(file.AsSpan(setup, 1 << 20).ToArray(), guest.Bytes(result.KernelStart, 1 << 20));
    }

    private static ulong Walk(Guest guest, ulong cr3, ulong address)
    {
        ulong pml4e = guest.U64(cr3 + ((address >> 39) * 8));
        ulong pdpte = guest.U64((pml4e & ~0xFFFUL) + (((address >> 30) & 511) * 8));
        ulong pde = guest.U64((pdpte & ~0xFFFUL) + (((address >> 21) & 511) * 8));
        Assert.Equal(PageTableEntry.P | PageTableEntry.W | PageTableEntry.Ps, pde & 0xFFF);
        return (pde & ~0x1FFFFFUL) | (address & 0x1FFFFF);
    }
}
