using Aerostat.Devices;
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

    /// <summary>What the guest's own drivers and daemons do for the host; null: the machine has another personality. Any thread.</summary>
    public HyperVComponents? IntegrationComponents => board.HyperV?.Components;

    /// <summary>What freezes the guest's file systems; null: the machine's personality has no way to. Any thread.</summary>
    public IVolumeFreezer? Freezer => (IVolumeFreezer?)IntegrationComponents?.Volumes ?? board.Vmware?.Freezer;

    /// <summary>
    /// Freezes the guest's file systems, has something done while nothing changes on its disks, and thaws them, whatever happens meanwhile. Only when
    /// the answer says so were they frozen all the time.
    /// </summary>
    /// <param name="options">How long to wait.</param>
    /// <param name="whileFrozen">Notes the state of the disks; the shorter the better.</param>
    /// <exception cref="FreezeException">The guest cannot, or does not, freeze or thaw.</exception>
    /// <exception cref="InvalidOperationException">The machine has another personality, or does not run.</exception>
    public async Task<FreezeResult> FreezeAsync(FreezeOptions options, Func<Task> whileFrozen)
    {
        ArgumentNullException.ThrowIfNull(options);
        ArgumentNullException.ThrowIfNull(whileFrozen);
        IVolumeFreezer volumes = Freezer ?? throw new InvalidOperationException("only guests with --personality hyperv or vmware can be asked to freeze their file systems");
        if (state != MachineState.Running)
            throw new InvalidOperationException("the machine does not run, and its guest can do nothing");
        await UnlessOverAsync(volumes.FreezeAsync(options)).ConfigureAwait(false);
        try
        {
            await whileFrozen().ConfigureAwait(false);
        }
        catch
        {
            // The watchdog sees to it if even this fails.
            await UnlessOverAsync(volumes.ThawAsync()).ContinueWith(static t => t.Exception, TaskScheduler.Default).ConfigureAwait(false);
            throw;
        }
        Task<FreezeResult> thaw = volumes.ThawAsync();
        await UnlessOverAsync(thaw).ConfigureAwait(false);
        return await thaw.ConfigureAwait(false);
    }

    // The time of a machine that is over stands still, and with it every deadline.
    private async Task UnlessOverAsync(Task asked)
    {
        if (await Task.WhenAny(asked, Exit).ConfigureAwait(false) != asked && !asked.IsCompleted)
        {
            _ = asked.ContinueWith(static t => t.Exception, CancellationToken.None, TaskContinuationOptions.ExecuteSynchronously, TaskScheduler.Default);
            throw new FreezeException("the machine has ended before its guest answered");
        }
        await asked.ConfigureAwait(false);
    }

    private CpuidTable DescribeCpuid(int index) =>
        IPersonality.AddCpuid(Options.Personality, accelerator.Cpuid(index, Options.Cpus), Options.Cpus, hypervisor);

    private HyperVHost? DescribeHyperVHost() => Options.Personality == HyperVPersonality.Name
        ? new HyperVHost(IsAmd(accelerator.Cpuid(0, Options.Cpus)), hypervisor, OnGuestCrash, new JournaledLog(Journal, Options.DeviceLog), Journal.Write, e => Fail("the VMBus failed", e, null))
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
