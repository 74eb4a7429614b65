using System.Buffers.Binary;
using Aerostat.Guest.Startup;
using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace Aerostat.Cli;

/// <summary>
/// A kernel of our own that measures what leaving the guest costs: a multiboot 1 image (specification 0.6.96, section 3.1) that goes to long mode,
/// repeats each operation until the ACPI PM timer has counted 20 ms, and writes "operation count ticks" in hexadecimal to COM1.
/// </summary>
internal static class ExitKernel
{
    /// <summary>The ACPI PM timer's frequency.</summary>
    public const double TimerHz = 3_579_545;

    /// <summary>What is measured, in the order of the numbers in the output.</summary>
    public static IReadOnlyList<string> Operations { get; } =
    [
        "cpuid", "port in (0x64)", "port out (0x80)", "MMIO read (I/O APIC)", "local APIC read", "PM timer read", "self-IPI", "CR0.WP off and on", "CR3 write", "MSR write (SYSENTER_CS)", "MSR read (APIC_BASE)",
    ];

    private const uint Base = 0x100000, Gdt = Base + 0x100, GdtPointer = Base + 0x140, IdtPointer = Base + 0x200;
    private const uint PageTables = Base + 0x1000, Idt = Base + 0x7000, Handler = Base + 0x8000, Main = Base + 0x8100, Size = 0xA000, Stack = 0x90000;
    private const int Com1 = 0x3F8, PmTimer = 0x608, TargetTicks = 71_591, Rounds = 3, Most = 1 << 28;
    private const byte IpiVector = 0x40, DebugExit = 0xF4;
    private const uint LocalApic = 0xFEE0_0000, IoApic = 0xFEC0_0000;

    /// <summary>The image.</summary>
    public static byte[] Build()
    {
        byte[] image = new byte[Size];
        Span<byte> At(uint address) => image.AsSpan((int)(address - Base));
        uint[] header = [0x1BADB002, 0x10000, unchecked(0u - 0x1BADB002 - 0x10000), Base, Base, Base + Size, Base + Size, Base + 0x20];
        for (int i = 0; i < header.Length; i++)
            BinaryPrimitives.WriteUInt32LittleEndian(image.AsSpan(i * 4), header[i]);
        WriteStub(At(Base + 0x20));
        BinaryPrimitives.WriteUInt64LittleEndian(At(Gdt + 8), 0x00AF_9B00_0000_FFFF);
        BinaryPrimitives.WriteUInt64LittleEndian(At(Gdt + 16), 0x00CF_9300_0000_FFFF);
        WritePointer(At(GdtPointer), 23, Gdt);
        WritePointer(At(IdtPointer), 0xFFF, Idt);
        BinaryPrimitives.WriteUInt64LittleEndian(At(PageTables), PageTables + 0x1003);
        for (uint i = 0; i < 4; i++)
            BinaryPrimitives.WriteUInt64LittleEndian(At(PageTables + 0x1000 + (i * 8)), PageTables + 0x2003 + (i * 0x1000));
        for (uint i = 0; i < 2048; i++)
            BinaryPrimitives.WriteUInt64LittleEndian(At(PageTables + 0x2000 + (i * 8)), ((ulong)i << 21) | 0x83);
        // An interrupt gate.
        BinaryPrimitives.WriteUInt64LittleEndian(At(Idt + (IpiVector * 16u)), (Handler & 0xFFFF) | (8 << 16) | (0x8EUL << 40) | ((ulong)(Handler >> 16) << 48));
        Assemble(Handler, WriteHandler).CopyTo(At(Handler));
        byte[] main = Assemble(Main, WriteMain);
        if (main.Length > Size - (Main - Base))
            throw new InvalidOperationException($"{main.Length} bytes of code do not fit");
        main.CopyTo(At(Main));
        return image;
    }

    private static void WritePointer(Span<byte> at, ushort limit, uint address)
    {
        BinaryPrimitives.WriteUInt16LittleEndian(at, limit);
        BinaryPrimitives.WriteUInt32LittleEndian(at[2..], address);
    }

    private static byte[] Assemble(uint address, Action<Assembler> write)
    {
        Assembler assembler = new(64);
        write(assembler);
        using MemoryStream bytes = new();
        assembler.Assemble(new StreamCodeWriter(bytes), address);
        return bytes.ToArray();
    }

    private static void WriteStub(Span<byte> at)
    {
        Assembler a = new(32);
        a.cli();
        a.mov(eax, PageTables);
        a.mov(cr3, eax);
        LongModeSwitch.Write(a, GdtPointer, Main);
        using MemoryStream bytes = new();
        a.Assemble(new StreamCodeWriter(bytes), Base + 0x20);
        bytes.ToArray().CopyTo(at);
    }

    private static void WriteHandler(Assembler a)
    {
        a.inc(r11);
        a.push(rax);
        a.mov(eax, LocalApic);
        a.mov(__dword_ptr[rax + 0xB0], 0);
        a.pop(rax);
        a.iretq();
    }

    private static void WriteMain(Assembler a)
    {
        Label print = a.CreateLabel(), put = a.CreateLabel();
        a.mov(eax, 0x10);
        a.mov(ss, eax);
        a.mov(ds, eax);
        a.mov(es, eax);
        a.mov(esp, Stack);
        a.mov(eax, IdtPointer);
        a.lidt(__[rax]);
        a.mov(al, 0xFF);
        a.@out(0x21, al);
        a.@out(0xA1, al);
        a.mov(eax, LocalApic);
        a.mov(__dword_ptr[rax + 0xF0], 0x1FF);
        a.sti();
        for (int i = 0; i < Operations.Count; i++)
            Measure(a, i, print);
        a.xor(eax, eax);
        a.@out(DebugExit, al);
        Label end = a.CreateLabel();
        a.Label(ref end);
        a.hlt();
        a.jmp(end);

        // Eight digits of R8D and a space.
        Label digit = a.CreateLabel(), isDigit = a.CreateLabel();
        a.Label(ref print);
        a.mov(r9d, 8);
        a.Label(ref digit);
        a.rol(r8d, 4);
        a.mov(ebx, r8d);
        a.and(ebx, 15);
        a.add(ebx, '0');
        a.cmp(ebx, '9');
        a.jbe(isDigit);
        a.add(ebx, 'a' - '9' - 1);
        a.Label(ref isDigit);
        a.call(put);
        a.dec(r9d);
        a.jnz(digit);
        a.mov(ebx, ' ');
        // BL to COM1, when there is room.
        a.Label(ref put);
        a.mov(edx, Com1 + 5);
        a.@in(al, dx);
        a.test(al, 0x20);
        a.je(put);
        a.mov(edx, Com1);
        a.mov(eax, ebx);
        a.@out(dx, al);
        a.ret();
    }

    private static void Measure(Assembler a, int operation, Label print)
    {
        Label again = a.CreateLabel(), loop = a.CreateLabel(), done = a.CreateLabel(), anew = a.CreateLabel();
        // The first rounds make everybody's code warm.
        a.mov(r10d, Rounds);
        a.Label(ref anew);
        a.mov(r15d, 256);
        a.Label(ref again);
        a.mov(edx, PmTimer);
        a.@in(eax, dx);
        a.mov(r14d, eax);
        a.mov(r13d, r15d);
        a.Label(ref loop);
        Write(a, operation);
        a.dec(r13d);
        a.jnz(loop);
        a.mov(edx, PmTimer);
        a.@in(eax, dx);
        a.sub(eax, r14d);
        a.and(eax, 0xFF_FFFF);
        a.cmp(eax, TargetTicks);
        a.jae(done);
        a.cmp(r15d, Most);
        a.jae(done);
        a.shl(r15d, 2);
        a.jmp(again);
        a.Label(ref done);
        a.dec(r10d);
        a.jnz(anew);
        a.mov(r12d, eax);
        a.mov(r8d, operation);
        a.call(print);
        a.mov(r8d, r15d);
        a.call(print);
        a.mov(r8d, r12d);
        a.call(print);
    }

    private static void Write(Assembler a, int operation)
    {
        switch (operation)
        {
            case 0:
                a.xor(eax, eax);
                a.xor(ecx, ecx);
                a.cpuid();
                break;
            case 1:
                a.@in(al, 0x64);
                break;
            case 2:
                a.@out(0x80, al);
                break;
            case 3:
                a.mov(ebx, IoApic);
                a.mov(eax, __dword_ptr[rbx]);
                break;
            case 4:
                a.mov(ebx, LocalApic);
                a.mov(eax, __dword_ptr[rbx + 0x20]);
                break;
            case 5:
                a.mov(edx, PmTimer);
                a.@in(eax, dx);
                break;
            case 6:
                Label wait = a.CreateLabel();
                a.mov(rcx, r11);
                a.mov(ebx, LocalApic);
                // Shorthand "self", fixed, edge.
                a.mov(__dword_ptr[rbx + 0x300], 0x4_4000 | IpiVector);
                a.Label(ref wait);
                a.cmp(rcx, r11);
                a.je(wait);
                break;
            case 7:
                a.mov(rax, cr0);
                a.btr(rax, 16);
                a.mov(cr0, rax);
                a.bts(rax, 16);
                a.mov(cr0, rax);
                break;
            case 8:
                a.mov(rax, cr3);
                a.mov(cr3, rax);
                break;
            case 9:
                a.mov(ecx, 0x174);
                a.xor(eax, eax);
                a.xor(edx, edx);
                a.wrmsr();
                break;
            default:
                a.mov(ecx, 0x1B);
                a.rdmsr();
                break;
        }
    }
}
