namespace Aerostat.Machine;

/// <summary>What the machine starts with.</summary>
public abstract record BootOptions;

/// <summary>A kernel: bzImage, ELF with a PVH note, or multiboot 1 ELF, told apart by content.</summary>
/// <param name="Kernel">Path of the kernel.</param>
public sealed record KernelBootOptions(string Kernel) : BootOptions
{
    /// <summary>Path of the initial RAM disk (with multiboot: the module), or null.</summary>
    public string? Initrd { get; init; }

    /// <summary>An initial RAM disk that is already in memory, instead of <see cref="Initrd"/>.</summary>
    public ReadOnlyMemory<byte>? InitrdBytes { get; init; }

    /// <summary>The kernel's command line.</summary>
    public string CommandLine { get; init; } = "";
}

/// <summary>A few bytes of real-mode code, as a boot sector is started: CS 0, IP = <paramref name="Address"/>, SP below it.</summary>
/// <param name="Code">The bytes.</param>
/// <param name="Address">Where they go, below 64 KiB.</param>
public sealed record RealModeBootOptions(ReadOnlyMemory<byte> Code, ushort Address = 0x7C00) : BootOptions;

/// <summary>Nothing that could be booted: a reset ends the run.</summary>
/// <param name="Reason">Why, for people.</param>
public sealed record UnavailableBootOptions(string Reason) : BootOptions;
