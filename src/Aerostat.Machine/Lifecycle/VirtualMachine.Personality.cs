using Aerostat.HyperV;
using Aerostat.Processors;

namespace Aerostat.Machine;

/// <content>The hypervisor that the guest sees.</content>
public sealed partial class VirtualMachine
{
    private const int CrashesTold = 4;
    private GuestCrash? guestCrash;
    private long guestCrashes;

    /// <summary>What the guest's kernel last said of a crash of its own, if it has a way to say it; null: nothing.</summary>
    public string? GuestCrash
    {
        get
        {
            GuestCrash? crash = Volatile.Read(ref guestCrash);
            return crash is null ? null : crash.Message is null ? crash.Summary : $"{crash.Summary}\n{crash.Message}";
        }
    }

    private CpuidTable DescribeCpuid(int index) =>
        IPersonality.AddCpuid(Options.Personality, accelerator.Cpuid(index, Options.Cpus), accelerator.PassesHypercalls, Options.Cpus, hypervisor.FlushTranslations is not null);

    private HyperVHost? DescribeHyperVHost() => Options.Personality == HyperVPersonality.Name
        ? new HyperVHost(IsAmd(accelerator.Cpuid(0, Options.Cpus)), hypervisor.FlushTranslations, OnGuestCrash)
        : null;

    // "AuthenticAMD", "HygonGenuine".
    private static bool IsAmd(CpuidTable table) => table.Get(0, 0).Ebx is 0x6874_7541 or 0x6F67_7948;

    // On a vCPU's thread. A guest may say it as often as it likes.
    private void OnGuestCrash(GuestCrash crash)
    {
        Volatile.Write(ref guestCrash, crash);
        long number = Interlocked.Increment(ref guestCrashes);
        if (number <= CrashesTold || long.IsPow2(number))
            Journal.Write("guest-crash", crash.Summary);
    }
}
