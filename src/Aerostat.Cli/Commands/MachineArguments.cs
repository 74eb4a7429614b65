using System.CommandLine;
using System.Globalization;
using Aerostat.Debugger;
using Aerostat.Machine;
using Aerostat.Platform;

namespace Aerostat.Cli;

/// <summary>Options that several verbs share, and the reading of their values.</summary>
internal static class MachineArguments
{
    private const int LongestName = 64;

    public static Option<string> Memory() =>
        new("--memory") { HelpName = "SIZE", Description = "Guest memory, such as 512M or 2G", DefaultValueFactory = _ => "512M" };

    public static Option<string> HugePages() =>
        new("--huge-pages") { HelpName = "auto|on|off", Description = "Whether the host is asked for pages of 2 MiB for guest memory", DefaultValueFactory = _ => "auto" };

    public static HugePageUse ParseHugePages(string text) => text switch
    {
        "auto" => HugePageUse.Auto,
        "on" => HugePageUse.On,
        "off" => HugePageUse.Off,
        _ => throw new ConfigurationException($"--huge-pages: there is no '{text}'; write auto, on or off"),
    };

    public static Option<string> Cpus() =>
        new("--cpus") { HelpName = "N", Description = $"Number of processors, 1 to {MachineOptions.MaxCpus}", DefaultValueFactory = _ => "1" };

    public static Option<string> Accelerator() =>
        new("--accel") { HelpName = "NAME", Description = "What runs the guest's code: auto, kvm, translator, interpreter", DefaultValueFactory = _ => "auto" };

    /// <summary>A guest's memory. Who writes 512 seldom wants 512 bytes.</summary>
    public static ulong ParseMemory(string text)
    {
        const string What = "--memory";
        ulong bytes = MemorySize.Parse(text, What);
        if (bytes is > 0 and < MachineOptions.MinMemory && text.All(char.IsAsciiDigit) && bytes <= MachineOptions.MaxMemory >> 20)
            throw new ConfigurationException($"{What}: a bare number counts bytes, and {text} bytes are too little for a machine; {bytes}M was probably meant");
        return bytes;
    }

    public static int ParseCpus(string text) =>
        int.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out int count)
            ? count
            : throw new ConfigurationException($"--cpus: '{text}' is not a number; write 1 to {MachineOptions.MaxCpus}");

    /// <summary>A balloon that nothing more is said of: a guest of Hyper-V has a driver for that one's.</summary>
    public static BalloonOptions DefaultBalloon(string personality) =>
        new() { Driver = personality == HyperV.HyperVCpuid.PersonalityName ? BalloonDriver.HyperV : BalloonDriver.Virtio };

    /// <summary>Where a disk is that nothing is said of: a guest of Hyper-V has a driver for that one's controller, and needs no other.</summary>
    public static DiskBus DefaultBus(string personality) => personality == HyperV.HyperVCpuid.PersonalityName ? DiskBus.Scsi : DiskBus.Virtio;

    public static DebugEndpoint ParseDebugEndpoint(string text)
    {
        try
        {
            return DebugEndpoint.Parse(text);
        }
        catch (FormatException e)
        {
            throw new ConfigurationException($"--gdb: {e.Message}");
        }
    }

    public static TimeSpan ParseTimeout(string text) =>
        double.TryParse(text, NumberStyles.AllowDecimalPoint, CultureInfo.InvariantCulture, out double seconds) && seconds > 0 && seconds <= 1e6
            ? TimeSpan.FromSeconds(seconds)
            : throw new ConfigurationException($"--timeout: '{text}' is not a number of seconds above 0 and up to 1000000; write for instance 60");

    public static string ParseName(string text) =>
        text.Length is > 0 and <= LongestName && text.All(c => char.IsAsciiLetterOrDigit(c) || c is '-' or '_' or '.') && text[0] != '.'
            ? text
            : throw new ConfigurationException($"--name: '{text}' is not a name; use up to {LongestName} letters, digits, '-', '_' and '.'");

    /// <summary>Guest memory costs nothing until the guest uses it; a guest larger than its host may still end badly.</summary>
    public static void WarnAboutMemory(ulong bytes, TextWriter error, string verb)
    {
        HostMemory host = HostMemory.Read();
        if (host.UsableBytes != 0 && bytes > host.UsableBytes + host.SwapFreeBytes)
            error.WriteLine($"{verb}: warning: guest memory of {MemorySize.Format(bytes)} is more than the {host.UsableBytes >> 20}M this host has free; the host may kill this process when the guest uses it");
    }
}
