using System.Buffers.Binary;

namespace Aerostat.Cli.Tests;

/// <summary>
/// Kernels of a few bytes: multiboot 1 images with address fields, whose code starts in flat 32-bit protected mode at 1 MiB + 32
/// (Multiboot specification 0.6.96, section 3.1).
/// </summary>
internal static class TinyKernel
{
    public const uint Base = 0x100000;
    public const uint Entry = Base + 32;

    /// <summary>mov edx, port; mov eax, value; out dx, al.</summary>
    public static byte[] OutByte(ushort port, byte value) => [0xBA, (byte)port, (byte)(port >> 8), 0, 0, 0xB0, value, 0xEE];

    /// <summary>mov edx, port; mov eax, value; out dx, ax.</summary>
    public static byte[] OutWord(ushort port, ushort value) => [0xBA, (byte)port, (byte)(port >> 8), 0, 0, 0x66, 0xB8, (byte)value, (byte)(value >> 8), 0x66, 0xEF];

    /// <summary>Power off: SLP_TYP 5 with SLP_EN into PM1a control.</summary>
    public static byte[] PowerOff => [.. OutWord(0x604, 0x3400), .. Forever];

    /// <summary>Reset by the ACPI reset register.</summary>
    public static byte[] Reset => [.. OutByte(0xCF9, 0x0E), .. Forever];

    /// <summary>jmp $.</summary>
    public static byte[] Forever => [0xEB, 0xFE];

    /// <summary>cli; hlt; jmp hlt.</summary>
    public static byte[] Halt => [0xFA, 0xF4, 0xEB, 0xFD];

    /// <summary>An empty IDT, then an exception: triple fault.</summary>
    public static byte[] TripleFault => [0x0F, 0x01, 0x1D, .. Bytes(Entry + 9), 0x0F, 0x0B, 0, 0, 0, 0, 0, 0];

    /// <summary>
    /// Counts its starts in CMOS byte 0x50, which survives a reset: resets the first time, powers off the second.
    /// </summary>
    public static byte[] ResetOnce =>
    [
        0xB0, 0x50, 0xE6, 0x70,             // mov al, 0x50; out 0x70, al
        0xE4, 0x71, 0x84, 0xC0,             // in al, 0x71; test al, al
        0x75, 0x12,                         // jnz power off
        0xB0, 0x50, 0xE6, 0x70,             // mov al, 0x50; out 0x70, al
        0xB0, 0x01, 0xE6, 0x71,             // mov al, 1; out 0x71, al
        .. OutByte(0xCF9, 0x0E),            // 8 bytes
        .. Forever,                         // 2 bytes
        .. PowerOff,
    ];

    /// <summary>Sends back what COM1 receives; 'q' powers off.</summary>
    public static byte[] Echo =>
    [
        0xBA, 0xFD, 0x03, 0, 0,             // wait: mov edx, LSR
        0xEC, 0xA8, 0x01,                   // in al, dx; test al, 1
        0x74, 0xF6,                         // jz wait
        0xBA, 0xF8, 0x03, 0, 0,             // mov edx, COM1
        0xEC, 0xEE,                         // in al, dx; out dx, al
        0x3C, (byte)'q',                    // cmp al, 'q'
        0x75, 0xEB,                         // jne wait
        .. PowerOff,
    ];

    /// <summary>The image.</summary>
    public static byte[] Image(params ReadOnlySpan<byte> code)
    {
        const uint Magic = 0x1BADB002, Flags = 1 << 16;
        byte[] image = new byte[32 + code.Length];
        uint[] header = [Magic, Flags, unchecked(0u - Magic - Flags), Base, Base, Base + (uint)image.Length, Base + (uint)image.Length, Entry];
        for (int i = 0; i < header.Length; i++)
            BinaryPrimitives.WriteUInt32LittleEndian(image.AsSpan(i * 4), header[i]);
        code.CopyTo(image.AsSpan(32));
        return image;
    }

    private static byte[] Bytes(uint value) => BitConverter.GetBytes(value);
}
