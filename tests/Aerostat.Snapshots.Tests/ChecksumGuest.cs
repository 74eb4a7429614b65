using System.Buffers.Binary;
using System.Numerics;
using Aerostat.Hosting;
using Aerostat.Machine;
using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace Aerostat.Snapshots.Tests;

/// <summary>
/// A guest of 64-bit code that computes a checksum over a pseudo-random walk through 4 MiB, with a timer interrupt of 1000 Hz going on and
/// part of the sum in an XMM register, waits for three more ticks, writes the sum to COM1 and powers off. Whatever is lost of it changes the
/// sum, or hangs it.
/// </summary>
internal static class ChecksumGuest
{
    /// <summary>So many that a processor is busy for a second or so.</summary>
    public static int IterationsFor(string first, string second) => (first, second) is ("interpreter", "interpreter") ? 3_000_000 : first == second ? 60_000_000 : 15_000_000;

    private const uint Base = 0x100000, Entry = Base + 32;
    private const ulong Multiplier = 6364136223846793005, Increment = 1442695040888963407, Seed = 0x1234_5678_9ABC_DEF1;
    private const uint Pml4 = 0x200000, Pdpt = 0x201000, Directory = 0x202000, Idt = 0x203000, Gdt = 0x204000, Ticks = 0x1000;
    private const uint Buffer = 0x400000, OffsetMask = 0x3FFFF8;

    /// <summary>What it writes, computed here.</summary>
    public static ulong Expected(int iterations)
    {
        ulong[] buffer = new ulong[(OffsetMask + 8) / 8];
        ulong state = Seed, sum = 0, wide = 0;
        for (int i = 0; i < iterations; i++)
        {
            state = (state * Multiplier) + Increment;
            ref ulong word = ref buffer[(state >> 29 & OffsetMask) / 8];
            word ^= state;
            sum = BitOperations.RotateLeft(sum + word, 7);
            wide += state;
        }
        return sum ^ wide;
    }

    /// <summary>A machine that runs it.</summary>
    public static MachineOptions Options(string accelerator, SerialOutput? serial, string kernel, ulong memory = 32UL << 20, int cpus = 1) => new()
    {
        MemoryBytes = memory,
        Cpus = cpus,
        Accelerator = accelerator,
        NoReboot = true,
        Serial = serial,
        Boot = new KernelBootOptions(kernel),
    };

    /// <summary>Writes its image to a file.</summary>
    public static string WriteTo(string folder, int iterations)
    {
        string path = Path.Combine(folder, $"checksum-{iterations}.img");
        File.WriteAllBytes(path, Image(iterations));
        return path;
    }

    private static byte[] Image(int iterations)
    {
        byte[] start = AssembleStart(out uint longMode);
        byte[] code = AssembleMain(longMode, iterations);
        byte[] image = new byte[(int)(longMode - Base) + code.Length];
        const uint Magic = 0x1BADB002, Flags = 1 << 16;
        uint[] header = [Magic, Flags, unchecked(0u - Magic - Flags), Base, Base, Base + (uint)image.Length, Base + (uint)image.Length, Entry];
        for (int i = 0; i < header.Length; i++)
            BinaryPrimitives.WriteUInt32LittleEndian(image.AsSpan(i * 4), header[i]);
        start.CopyTo(image.AsSpan(32));
        code.CopyTo(image.AsSpan((int)(longMode - Base)));
        return image;
    }

    // Protected mode: page tables for the first GiB, then long mode.
    private static byte[] AssembleStart(out uint longMode)
    {
        longMode = Base + 0x400;
        Assembler a = new(32);
        a.cli();
        a.mov(__dword_ptr[Pml4], (int)(Pdpt | 3));
        a.mov(__dword_ptr[Pdpt], (int)(Directory | 3));
        a.mov(ecx, 0);
        a.mov(eax, 0x83);
        Label fill = a.CreateLabel();
        a.Label(ref fill);
        a.mov(__dword_ptr[(ecx * 8) + (int)Directory], eax);
        a.add(eax, 0x200000);
        a.inc(ecx);
        a.cmp(ecx, 512);
        a.jne(fill);
        a.mov(__dword_ptr[Gdt + 8], 0x0000FFFF);
        a.mov(__dword_ptr[Gdt + 12], 0x00AF9B00);
        a.mov(__dword_ptr[Gdt + 16], 0x0000FFFF);
        a.mov(__dword_ptr[Gdt + 20], 0x00CF9300);
        a.mov(__word_ptr[Gdt + 32], (short)23);
        a.mov(__dword_ptr[Gdt + 34], (int)Gdt);
        a.lgdt(__[Gdt + 32]);
        a.mov(eax, Pml4);
        a.mov(cr3, eax);
        a.mov(eax, cr4);
        a.or(eax, 0x620);
        a.mov(cr4, eax);
        a.mov(ecx, 0xC0000080);
        a.rdmsr();
        a.or(eax, 0x100);
        a.wrmsr();
        a.mov(eax, cr0);
        a.and(eax, ~4);
        a.or(eax, unchecked((int)0x80000002));
        a.mov(cr0, eax);
        byte[] body = Bytes(a, Entry);
        // ljmp 8:longMode
        byte[] jump = [0xEA, .. BitConverter.GetBytes(longMode), 8, 0];
        return [.. body, .. jump];
    }

    private static byte[] AssembleMain(uint at, int iterations)
    {
        Assembler a = new(64);
        Label handler = a.CreateLabel(), main = a.CreateLabel(), loop = a.CreateLabel(), wait = a.CreateLabel(), print = a.CreateLabel(), end = a.CreateLabel();
        a.jmp(main);
        a.Label(ref handler);
        a.push(rax);
        a.inc(__qword_ptr[(ulong)Ticks]);
        a.mov(al, 0x20);
        a.@out(0x20, al);
        a.pop(rax);
        a.iretq();

        a.Label(ref main);
        a.mov(eax, 16);
        a.mov(ds, eax);
        a.mov(es, eax);
        a.mov(ss, eax);
        a.mov(esp, 0x1F0000);
        // The gate of vector 32.
        a.lea(rax, __[handler]);
        a.mov(edi, Idt + (32 * 16));
        a.mov(__word_ptr[rdi], ax);
        a.mov(__dword_ptr[rdi + 2], 0x8E000008);
        a.shr(rax, 16);
        a.mov(__word_ptr[rdi + 6], ax);
        a.mov(edi, Idt - 16);
        a.mov(__word_ptr[rdi], (short)0xFFF);
        a.mov(__qword_ptr[rdi + 2], (int)Idt);
        a.lidt(__[rdi]);
        foreach ((byte port, byte value) in ((byte, byte)[])[(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x21, 0xFE), (0xA1, 0xFF), (0x43, 0x34), (0x40, 0xA9), (0x40, 0x04)])
        {
            a.mov(al, value);
            a.@out(port, al);
        }
        a.sti();
        a.mov(rbx, Seed);
        a.mov(r8, Multiplier);
        a.mov(r9, Increment);
        a.mov(ecx, iterations);
        a.mov(edi, Buffer);
        a.xor(eax, eax);
        a.pxor(xmm0, xmm0);
        a.Label(ref loop);
        a.imul(rbx, r8);
        a.add(rbx, r9);
        a.mov(rdx, rbx);
        a.shr(rdx, 29);
        a.and(edx, (int)OffsetMask);
        a.xor(__[rdi + rdx], rbx);
        a.add(rax, __[rdi + rdx]);
        a.rol(rax, 7);
        a.movq(xmm1, rbx);
        a.paddq(xmm0, xmm1);
        a.dec(rcx);
        a.jne(loop);
        a.movq(rdx, xmm0);
        a.xor(rax, rdx);
        a.mov(rsi, __qword_ptr[(ulong)Ticks]);
        a.add(rsi, 3);
        a.Label(ref wait);
        a.hlt();
        a.cmp(__qword_ptr[(ulong)Ticks], rsi);
        a.jb(wait);
        a.mov(ecx, 8);
        a.mov(edx, 0x3F8);
        a.Label(ref print);
        a.@out(dx, al);
        a.shr(rax, 8);
        a.dec(ecx);
        a.jne(print);
        a.mov(edx, 0x604);
        a.mov(eax, 0x3400);
        a.@out(dx, ax);
        a.Label(ref end);
        a.hlt();
        a.jmp(end);
        return Bytes(a, at);
    }

    private static byte[] Bytes(Assembler a, ulong at)
    {
        using MemoryStream stream = new();
        a.Assemble(new StreamCodeWriter(stream), at);
        return stream.ToArray();
    }
}

/// <summary>What a guest has written to COM1, over all the machines it ran on.</summary>
internal sealed class Output
{
    private readonly List<byte> bytes = [];

    public void Append(ReadOnlySpan<byte> data)
    {
        lock (bytes)
            bytes.AddRange(data);
    }

    public byte[] Bytes
    {
        get
        {
            lock (bytes)
                return [.. bytes];
        }
    }
}

/// <summary>A directory for one test.</summary>
internal sealed class TestFolder : IDisposable
{
    public string Path { get; } = Directory.CreateTempSubdirectory("aerostat-snapshots-").FullName;

    public string this[string name] => System.IO.Path.Combine(Path, name);

    public void Dispose() => Directory.Delete(Path, recursive: true);
}
