using System.Globalization;
using System.Text;

namespace Aerostat.Guest.Startup;

/// <summary>
/// The linker script: a multiboot 1 header with address fields (specification 0.6.96, section 3.1.3: so loaders that refuse 64-bit ELF take the file as a
/// flat image), the table of <see cref="ImageLayout"/>, the start-up code, the PVH note (Xen's public/elfnote.h, type 18), and what the compiler made.
/// File offsets grow with addresses, as the address fields demand.
/// </summary>
internal static class LinkerScript
{
    private const uint Magic = 0x1BADB002;

    // Memory information is wanted, and the address fields are there.
    private const uint Flags = 0x10002;

    public static string Write(StartupCode code)
    {
        StringBuilder text = new();
        void Line(FormattableString s) => text.Append(s.ToString(CultureInfo.InvariantCulture)).Append('\n');
        Line($"OUTPUT_FORMAT(elf64-x86-64)");
        Line($"ENTRY(StartMultiboot)");
        Line($"PHDRS {{ text PT_LOAD FLAGS(5); data PT_LOAD FLAGS(6); note PT_NOTE FLAGS(4); }}");
        foreach ((string name, uint address) in code.Symbols)
            Line($"{name} = 0x{address:x};");
        Line($"SECTIONS");
        Line($"{{");
        Line($"  . = 0x{ImageLayout.Base:x};");
        Line($"  ImageStart = .;");
        Line($"  .start : {{");
        Line($"    LONG(0x{Magic:x}) LONG(0x{Flags:x}) LONG(0x{unchecked(0u - Magic - Flags):x})");
        Line($"    LONG(ImageStart) LONG(ImageStart) LONG(DataEnd) LONG(ImageEnd) LONG(StartMultiboot)");
        Line($"    . = 0x{ImageLayout.Table - ImageLayout.Base:x};");
        Line($"    QUAD(KernelMain) QUAD(KernelInterrupt) QUAD(StackEnd) QUAD(FirstPageTables) QUAD(KernelApplicationMain) QUAD(ApplicationStack)");
        Line($"    . = 0x{ImageLayout.Code - ImageLayout.Base:x};");
        Line($"    *start.bin(.data)");
        Line($"  }} :text");
        Line($"  .note : ALIGN(4) {{ LONG(4) LONG(4) LONG(18) LONG(0x006e6558) LONG(StartPvh) }} :text :note");
        Line($"  .text : {{ *(.text .text.* __managedcode) }} :text");
        Line($"  . = ALIGN(4096); TextEnd = .;");
        // The compiler's read-only data has pointers that it lists as data to relocate: linked at a fixed address, nothing is left to relocate.
        Line($"  .rodata : {{ *(.rodata .rodata.* .dotnet_eh_table .eh_frame) }} :data");
        Line($"  .modules : {{ ModulesStart = .; KEEP(*(__modules)) ModulesEnd = .; }} :data");
        Line($"  .data : {{ *(.data .data.* .dotnet* hydrated) }} :data");
        Line($"  DataEnd = .;");
        Line($"  .bss : {{ *(.bss .bss.* COMMON) . = ALIGN(64); ApplicationStack = .; . += 64; . = ALIGN(4096); FirstPageTables = .; . += 0x6000; StackGuard = .; . += 0x10000; StackEnd = .; }} :data");
        Line($"  ImageEnd = .;");
        Line($"  /DISCARD/ : {{ *(.tdata .tbss .comment .note.GNU-stack .debug* .gcc_except_table) }}");
        Line($"}}");
        return text.ToString();
    }
}
