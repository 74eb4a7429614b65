namespace Aerostat.Machine;

/// <content>Suspend to RAM (ACPI S3).</content>
public sealed partial class VirtualMachine
{
    // The queue's own. Stays true through a pause while the guest sleeps.
    private bool asleep;

    // The gate is closed already and stays so: no vCPU runs an instruction until the machine wakes.
    private async Task Suspend()
    {
        if (state == MachineState.Ended)
            return;
        asleep = true;
        if (state != MachineState.Running)
            return;
        await Task.WhenAll(vcpus.Select(v => v.PauseAsync())).ConfigureAwait(false);
        board.Virtio.Quiesce();
        board.HyperV?.Quiesce();
        state = MachineState.Suspended;
        Journal.Write("suspended", "was suspended to RAM by its guest");
        // The event that wakes it may have come before.
        await Wake().ConfigureAwait(false);
    }

    // An event ended the sleep: devices and processors start as after power-on, and what firmware would do is done; memory stays.
    private async Task Wake()
    {
        if (state != MachineState.Suspended || board.IsAsleep)
            return;
        asleep = false;
        if (BootImage.Wake(Options, memory) is not { } resume)
        {
            await Reset().ConfigureAwait(false);
            return;
        }
        board.Wake();
        ForgetPast();
        await ResetProcessors(resume, direct: false).ConfigureAwait(false);
        Volatile.Write(ref guestRequested, 0);
        gate.Closed = false;
        board.Virtio.Resume();
        board.HyperV?.Resume();
        state = MachineState.Running;
        Journal.Write("woken", "was woken up");
        await Task.WhenAll(vcpus.Select(v => v.ResumeAsync())).ConfigureAwait(false);
    }
}
