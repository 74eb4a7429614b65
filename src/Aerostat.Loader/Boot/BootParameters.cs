using Aerostat.Processors;

namespace Aerostat.Loader;

/// <summary>What a kernel is started with.</summary>
public sealed class BootParameters
{
    /// <summary>The memory map. Everything the loader places goes into its usable ranges.</summary>
    public required E820Map MemoryMap { get; init; }

    /// <summary>Command line, ASCII or UTF-8, without the program name.</summary>
    public string CommandLine { get; init; } = "";

    /// <summary>Initial RAM disk (with multiboot: the one module), or none. The caller disposes it.</summary>
    public BootFile? Initrd { get; init; }

    /// <summary>Where the RSDP is (<see cref="AcpiTables.Write"/>); 0: no ACPI.</summary>
    public ulong RsdpAddress { get; init; }
}

/// <summary>Where a kernel was put and how the boot processor starts it.</summary>
/// <param name="State">State of vCPU 0. The other vCPUs wait for a start-up IPI.</param>
/// <param name="Protocol">"Linux 64-bit", "PVH" or "multiboot".</param>
/// <param name="KernelStart">First address the kernel occupies.</param>
/// <param name="KernelEnd">First address after it, zeroed data and the decompressor's work space included.</param>
/// <param name="InitrdStart">Where the initrd is; 0 without one.</param>
/// <param name="InitrdSize">Bytes of it.</param>
/// <param name="InformationAddress">boot_params, hvm_start_info or multiboot information.</param>
/// <param name="CommandLineAddress">The command line, zero-terminated.</param>
public sealed record BootResult(
    ProcessorState State,
    string Protocol,
    ulong KernelStart,
    ulong KernelEnd,
    ulong InitrdStart,
    ulong InitrdSize,
    ulong InformationAddress,
    ulong CommandLineAddress);
