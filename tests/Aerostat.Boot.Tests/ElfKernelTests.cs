using System.Buffers.Binary;
using System.Text;
using Aerostat.Hosting;
using Aerostat.Machine;
using Iced.Intel;
using Xunit;
using static Iced.Intel.AssemblerRegisters;

namespace Aerostat.Boot.Tests;

/// <summary>
/// Small ELF kernels, made here, entered by the PVH and multiboot 1 protocols on our own processors: each checks the state it is entered in, says
/// on COM1 what its start information holds, and ends by debug-exit.
/// </summary>
public sealed class ElfKernelTests : IDisposable
{
    private const uint Base = 0x200000, Stack = Base + 0x3000, ImageBytes = 0x1000;
    private const byte Good = 0x2A;
    private const ulong MemoryBytes = 64UL << 20;
    private const string CommandLine = "first=1 second=\"two\" last";

    private readonly string path = Path.GetTempFileName();

    public void Dispose() => File.Delete(path);

    /// <summary>Protocol, 64-bit ELF, processor.</summary>
    public static TheoryData<string, bool, string> Kernels
    {
        get
        {
            var data = new TheoryData<string, bool, string>();
            foreach (string accelerator in (string[])["interpreter", "translator"])
            {
                data.Add("pvh", false, accelerator);
                data.Add("pvh", true, accelerator);
                data.Add("multiboot", false, accelerator);
                data.Add("multiboot", true, accelerator);
            }
            return data;
        }
    }

    [Theory]
    [MemberData(nameof(Kernels))]
    public async Task EntersWithWhatTheProtocolPromises(string protocol, bool is64, string accelerator)
    {
        byte[] module = Encoding.ASCII.GetBytes(string.Concat(Enumerable.Range(0, 1000).Select(i => $"{i},")));
        File.WriteAllBytes(path, protocol == "pvh" ? PvhKernel(is64) : MultibootKernel(is64));
        SerialTranscript console = new();
        await using VirtualMachine machine = Machines.Create(new MachineOptions
        {
            MemoryBytes = MemoryBytes,
            Accelerator = accelerator,
            NoReboot = true,
            Serial = console.Append,
            Devices = [new DebugExitOptions()],
            Boot = new KernelBootOptions(path) { CommandLine = CommandLine, InitrdBytes = module },
        });
        await machine.StartAsync();
        MachineExit exit = await machine.WaitForExitAsync(TimeSpan.FromSeconds(60));
        console.Close();
        Assert.True(exit.Kind == MachineExitKind.DebugExit, $"{exit.Kind}: {exit.Report}\n{console.Text}");
        Assert.True(exit.ExitStatus == ((Good << 1) | 1), $"check {exit.ExitStatus >> 1} failed\n{console.Text}");
        string[] parts = console.Text.Split('\n');
        Assert.EndsWith(CommandLine, parts[0], StringComparison.Ordinal);
        Assert.Equal(Encoding.ASCII.GetString(module), parts[1]);
        // All but what a PC keeps below 1 MiB and its ACPI tables is the kernel's.
        Assert.InRange(Convert.ToUInt64(parts[2], 16), MemoryBytes - (2 << 20), MemoryBytes);
        Assert.Equal("end", parts[3]);
    }

    private static byte[] PvhKernel(bool is64)
    {
        byte[] code = Assemble(k =>
        {
            Assembler a = k.Assembler;
            // hvm_start_info: magic, version, flags, nr_modules, modlist, cmdline, rsdp, memmap, memmap_entries (Xen public/arch-x86/hvm/start_info.h).
            k.Check(1, () => a.cmp(__dword_ptr[ebx], 0x336EC578));
            k.Check(2, () => a.cmp(__dword_ptr[ebx + 4], 1));
            k.Check(3, () => a.cmp(__dword_ptr[ebx + 12], 1));
            a.mov(esi, __dword_ptr[ebx + 32]);
            k.Check(4, () => a.cmp(__dword_ptr[esi], 0x20445352)); // "RSD "
            a.mov(esi, __dword_ptr[ebx + 24]);
            k.PrintText();
            a.mov(edi, __dword_ptr[ebx + 16]);
            a.mov(esi, __dword_ptr[edi]);
            a.mov(ecx, __dword_ptr[edi + 8]);
            k.PrintBytes();
            a.mov(esi, __dword_ptr[ebx + 40]);
            a.mov(ecx, __dword_ptr[ebx + 48]);
            a.xor(ebp, ebp);
            Label next = a.CreateLabel(), skip = a.CreateLabel();
            a.Label(ref next);
            a.cmp(__dword_ptr[esi + 16], 1);
            a.jne(skip);
            a.add(ebp, __dword_ptr[esi + 8]);
            a.Label(ref skip);
            a.add(esi, 24);
            a.dec(ecx);
            a.jnz(next);
        });
        byte[] image = Elf(is64, code, entry: is64 ? 0xFFFFFFFF80000000 + Base : Base, virtualBase: is64 ? 0xFFFFFFFF80000000 : 0);
        // A PT_NOTE with XEN_ELFNOTE_PHYS32_ENTRY (18).
        byte[] value = new byte[is64 ? 8 : 4];
        BinaryPrimitives.WriteUInt32LittleEndian(value, Base);
        const int At = 0x200;
        byte[] note = [4, 0, 0, 0, (byte)value.Length, 0, 0, 0, 18, 0, 0, 0, (byte)'X', (byte)'e', (byte)'n', 0, .. value];
        note.CopyTo(image, At);
        Segment(image, is64, 1, type: 4, At, 0, 0, (uint)note.Length, (uint)note.Length);
        return image;
    }

    private static byte[] MultibootKernel(bool is64)
    {
        byte[] code = Assemble(k =>
        {
            Assembler a = k.Assembler;
            // Multiboot specification 0.6.96, 3.2 and 3.3.
            k.Check(1, () => a.cmp(eax, 0x2BADB002));
            a.mov(eax, __dword_ptr[ebx]);
            a.and(eax, 0x4D);
            k.Check(2, () => a.cmp(eax, 0x4D)); // memory, command line, modules, memory map
            k.Check(3, () => a.cmp(__dword_ptr[ebx + 20], 1));
            a.mov(esi, __dword_ptr[ebx + 16]);
            k.PrintText();
            a.mov(edi, __dword_ptr[ebx + 24]);
            a.mov(esi, __dword_ptr[edi]);
            a.mov(ecx, __dword_ptr[edi + 4]);
            a.sub(ecx, esi);
            k.PrintBytes();
            a.mov(esi, __dword_ptr[ebx + 48]);
            a.mov(ecx, __dword_ptr[ebx + 44]);
            a.add(ecx, esi);
            a.xor(ebp, ebp);
            Label next = a.CreateLabel(), skip = a.CreateLabel();
            a.Label(ref next);
            a.cmp(__dword_ptr[esi + 20], 1);
            a.jne(skip);
            a.add(ebp, __dword_ptr[esi + 12]);
            a.Label(ref skip);
            a.add(esi, __dword_ptr[esi]);
            a.add(esi, 4);
            a.cmp(esi, ecx);
            a.jb(next);
        });
        byte[] image = Elf(is64, code, entry: Base, virtualBase: 0);
        const uint Magic = 0x1BADB002, Flags = 3;
        uint[] header = [Magic, Flags, unchecked(0u - Magic - Flags)];
        for (int i = 0; i < header.Length; i++)
            BinaryPrimitives.WriteUInt32LittleEndian(image.AsSpan(0x300 + (i * 4)), header[i]);
        return image;
    }

    /// <summary>Checks common to all protocols, then <paramref name="body"/>, which leaves the bytes of memory in EBP.</summary>
    private static byte[] Assemble(Action<Writer> body)
    {
        var a = new Assembler(32);
        var k = new Writer(a);
        a.mov(esp, Stack);
        // Flat 32-bit protected mode without paging; interrupts off.
        a.mov(edi, eax);
        a.mov(eax, cr0);
        a.and(eax, unchecked((int)0x80000001));
        k.Check(10, () => a.cmp(eax, 1));
        a.pushfd();
        a.pop(eax);
        a.and(eax, 0x20300); // VM, IF, TF
        k.Check(11, () => a.cmp(eax, 0));
        a.mov(eax, edi);
        body(k);
        k.PrintHex();
        a.mov(esi, BinaryPrimitives.ReadUInt32LittleEndian("end\0"u8));
        a.push(esi);
        a.mov(esi, esp);
        k.PrintText();
        a.mov(al, Good);
        a.@out(0xF4, al);
        k.Finish();
        using MemoryStream stream = new();
        a.Assemble(new StreamCodeWriter(stream), Base);
        return stream.ToArray();
    }

    private sealed class Writer(Assembler a)
    {
        private Label failed = a.CreateLabel(), putText = a.CreateLabel(), putBytes = a.CreateLabel(), putHex = a.CreateLabel(), put = a.CreateLabel();

        public Assembler Assembler => a;

        /// <summary>Ends with this number unless the comparison finds equal. Changes no register.</summary>
        public void Check(int number, Action compare)
        {
            Label good = a.CreateLabel();
            compare();
            a.je(good);
            a.mov(eax, number);
            a.jmp(failed);
            a.Label(ref good);
        }

        /// <summary>The text at ESI, and a line end.</summary>
        public void PrintText() => a.call(putText);

        /// <summary>ECX bytes at ESI, and a line end.</summary>
        public void PrintBytes() => a.call(putBytes);

        /// <summary>EBP in hexadecimal, and a line end.</summary>
        public void PrintHex() => a.call(putHex);

        public void Finish()
        {
            Label wait = a.CreateLabel(), digit = a.CreateLabel(), letter = a.CreateLabel(), line = a.CreateLabel();
            a.Label(ref failed);
            a.@out(0xF4, al);
            a.hlt();

            a.Label(ref putText);
            a.lodsb();
            a.test(al, al);
            a.je(line);
            a.call(put);
            a.jmp(putText);

            a.Label(ref putBytes);
            a.lodsb();
            a.call(put);
            a.dec(ecx);
            a.jnz(putBytes);
            a.jmp(line);

            a.Label(ref putHex);
            a.mov(ecx, 8);
            a.Label(ref digit);
            a.rol(ebp, 4);
            a.mov(eax, ebp);
            a.and(eax, 15);
            a.add(al, 0x30);
            a.cmp(al, 0x39);
            a.jbe(letter);
            a.add(al, 7);
            a.Label(ref letter);
            a.call(put);
            a.dec(ecx);
            a.jnz(digit);

            a.Label(ref line);
            a.mov(al, 10);

            // One byte to COM1, when it has room.
            a.Label(ref put);
            a.mov(ah, al);
            a.mov(edx, 0x3FD);
            a.Label(ref wait);
            a.@in(al, dx);
            a.test(al, 0x20);
            a.je(wait);
            a.mov(edx, 0x3F8);
            a.mov(al, ah);
            a.@out(dx, al);
            a.ret();
        }
    }

    private static byte[] Elf(bool is64, byte[] code, ulong entry, ulong virtualBase)
    {
        byte[] image = new byte[0x1000 + ImageBytes];
        Span<byte> p = image;
        ((ReadOnlySpan<byte>)[0x7F, (byte)'E', (byte)'L', (byte)'F', (byte)(is64 ? 2 : 1), 1, 1]).CopyTo(p);
        BinaryPrimitives.WriteUInt16LittleEndian(p[16..], 2);
        BinaryPrimitives.WriteUInt16LittleEndian(p[18..], (ushort)(is64 ? 62 : 3));
        p[20] = 1;
        if (is64)
        {
            BinaryPrimitives.WriteUInt64LittleEndian(p[24..], entry);
            p[32] = 64;
        }
        else
        {
            BinaryPrimitives.WriteUInt32LittleEndian(p[24..], (uint)entry);
            p[28] = 64;
        }
        p[is64 ? 52 : 40] = (byte)(is64 ? 64 : 52);
        p[is64 ? 54 : 42] = (byte)(is64 ? 56 : 32);
        p[is64 ? 56 : 44] = 2;
        Segment(image, is64, 0, type: 1, 0x1000, virtualBase + Base, Base, ImageBytes, 0x4000);
        code.CopyTo(image, 0x1000);
        return image;
    }

    private static void Segment(byte[] image, bool is64, int index, uint type, uint offset, ulong virtualAddress, uint physical, uint fileBytes, uint memoryBytes)
    {
        Span<byte> p = image.AsSpan(64 + (index * (is64 ? 56 : 32)));
        BinaryPrimitives.WriteUInt32LittleEndian(p, type);
        if (is64)
        {
            p[4] = 7;
            ulong[] fields = [offset, virtualAddress, physical, fileBytes, memoryBytes, 4];
            for (int i = 0; i < fields.Length; i++)
                BinaryPrimitives.WriteUInt64LittleEndian(p[(8 + (i * 8))..], fields[i]);
            return;
        }
        uint[] narrow = [offset, (uint)virtualAddress, physical, fileBytes, memoryBytes, 7, 4];
        for (int i = 0; i < narrow.Length; i++)
            BinaryPrimitives.WriteUInt32LittleEndian(p[(4 + (i * 4))..], narrow[i]);
    }
}
