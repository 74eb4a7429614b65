using Aerostat.Machine;

namespace Aerostat.Hosting;

/// <summary>Makes machines for programs: options in, a machine ready to start out.</summary>
public static class Machines
{
    /// <summary>Builds the machine that the options describe and loads what it boots.</summary>
    /// <exception cref="ConfigurationException">The options cannot be met.</exception>
    /// <exception cref="Loader.BootException">What is to be booted cannot be.</exception>
    /// <exception cref="HostException">The host cannot give what the machine needs.</exception>
    public static VirtualMachine Create(MachineOptions options)
    {
        ArgumentNullException.ThrowIfNull(options);
        options.Validate();
        return new VirtualMachine(options, Accelerators.Create(options.Accelerator, options.CpuModel, options.Personality, options.TranslationRecord));
    }
}
