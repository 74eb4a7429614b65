using Aerostat.Processors;
using Aerostat.State;

namespace Aerostat.Machine;

/// <content>The machine's state, taken and put back.</content>
public sealed partial class VirtualMachine
{
    /// <summary>
    /// Pauses the machine, hands its state over while everything stands still, and lets it go on if it ran. A reset or an end that the guest
    /// has asked for at that moment comes first.
    /// </summary>
    /// <param name="use">Gets the state; copies the memory, for instance. What it throws comes out of the task; the machine goes on.</param>
    /// <exception cref="SavedStateException">A device's state cannot be taken.</exception>
    /// <exception cref="InvalidOperationException">The machine has ended.</exception>
    public Task SaveAsync(Func<MachineSavedState, Task> use)
    {
        ArgumentNullException.ThrowIfNull(use);
        TaskCompletionSource done = new(TaskCreationOptions.RunContinuationsAsynchronously);
        if (!queue.Writer.TryWrite(() => SaveWhenStill(use, done)))
            done.SetException(Ended());
        return done.Task;
    }

    // From the queue. What goes wrong is the caller's, not the machine's.
    private async Task SaveWhenStill(Func<MachineSavedState, Task> use, TaskCompletionSource done)
    {
        bool wasRunning = state is MachineState.Running or MachineState.Suspended;
        try
        {
            if (state == MachineState.Ended)
                throw Ended();
            if (board.Unsavable.Count > 0)
                throw new SavedStateException($"the machine has devices whose state cannot be saved: {string.Join(", ", board.Unsavable)}");
            await Pause().ConfigureAwait(false);
            if (gate.Closed && !asleep)
            {
                // What the guest wants is in the queue, or will be in a moment. Its processors are in the middle of asking for it.
                if (wasRunning)
                    await Run().ConfigureAwait(false);
                if (!queue.Writer.TryWrite(() => SaveWhenStill(use, done)))
                    done.TrySetException(Ended());
                return;
            }
            await use(await CollectState().ConfigureAwait(false)).ConfigureAwait(false);
            if (wasRunning)
                await Run().ConfigureAwait(false);
            done.TrySetResult();
        }
        catch (Exception e)
        {
            if (wasRunning)
                await Run().ConfigureAwait(false);
            done.TrySetException(e);
        }
    }

    private static InvalidOperationException Ended() => new("the machine has ended");

    // The vCPUs come first. Made when a state is taken or put back: most machines run without.
    private List<StateElement> CollectElements()
    {
        List<StateElement> elements = [.. processors.Select(p => StateElement.Of(VcpuElement.NameOf(p.Index), new VcpuElement(p), static () => MachineStates.Default.VcpuSavedState))];
        elements.AddRange(board.Elements);
        if (Options.Personality == KvmPersonality.Name)
            elements.Add(StateElement.Of("kvm-clock", kvmClock, static () => MachineStates.Default.KvmClockSavedState));
        elements.AddRange(personalities.SelectMany(p => p.Elements));
        if (board.HyperV is { } hyperV)
            elements.AddRange(hyperV.Elements);
        return elements;
    }

    // Backwards: a device that catches up with the time may still raise an interrupt, and a local APIC may hand one to its processor.
    private async Task<MachineSavedState> CollectState()
    {
        List<StateElement> elements = CollectElements();
        SavedElement[] saved = new SavedElement[elements.Count];
        int Rank(StateElement element) => element.Shape.Name switch { "vcpu" => 3, "local-apic" => 2, "pic" or "ioapic" => 1, _ => 0 };
        foreach ((int index, StateElement element) in elements.Index().OrderBy(e => Rank(e.Item)))
        {
            if (index < vcpus.Length)
                await vcpus[index].InvokeAsync(() => saved[index] = element.Save()).ConfigureAwait(false);
            else
                saved[index] = element.Save();
        }
        return new MachineSavedState(
            clock.GetTimestamp(), clock.GetUtcNow() - TimeSpan.FromTicks(clock.GetTimestamp() / TimeSpan.NanosecondsPerTick), processors[0].Timestamp.FrequencyHz,
            DescribeCpuid(), asleep, saved);
    }

    private CpuidEntry[] DescribeCpuid() =>
        [.. DescribeCpuid(0).Entries.Select(e => new CpuidEntry(e.Leaf, e.Subleaf, e.Value.Eax, e.Value.Ebx, e.Value.Ecx, e.Value.Edx))];

    // Before there are threads; a machine that this throws out of never runs.
    private void RestoreState(MachineOrigin origin)
    {
        MachineSavedState saved = origin.State;
        CheckProcessor(saved);
        List<StateElement> elements = CollectElements();
        Dictionary<string, SavedElement> byName = [];
        foreach (SavedElement element in saved.Elements)
            if (!byName.TryAdd(element.Name, element))
                throw new SavedStateException($"there are two saved states of '{element.Name}'");
        foreach (StateElement element in elements)
            if (!byName.ContainsKey(element.Name))
                throw new SavedStateException($"the machine has a '{element.Name}', of which there is no saved state");
        if (byName.Keys.Except(elements.Select(e => e.Name)).FirstOrDefault() is { } unknown)
            throw new SavedStateException($"there is a saved state of '{unknown}', which this machine does not have");
        origin.FillMemory(memory);
        foreach (IVirtualProcessor processor in processors)
            processor.Reset();
        foreach (StateElement element in elements)
            element.Restore(byName[element.Name]);
        if (saved.Asleep)
        {
            // As the machine is between falling asleep and waking.
            asleep = true;
            guestRequested = 1;
            gate.Closed = true;
        }
        if (origin.NewIdentity)
            board.GenerationId.Renew();
    }

    // A guest that has found its instructions and clocks once does not look again.
    private void CheckProcessor(MachineSavedState saved)
    {
        if (saved.TscFrequencyHz != processors[0].Timestamp.FrequencyHz)
            throw new SavedStateException($"the guest's time-stamp counter ran at {saved.TscFrequencyHz} Hz; with --accel {accelerator.Name} on this host it runs at {processors[0].Timestamp.FrequencyHz} Hz");
        Dictionary<(uint, uint), CpuidEntry> here = DescribeCpuid().ToDictionary(e => (e.Leaf, e.Subleaf));
        foreach (CpuidEntry entry in saved.Cpuid)
        {
            CpuidEntry now = here.GetValueOrDefault((entry.Leaf, entry.Subleaf), new CpuidEntry(entry.Leaf, entry.Subleaf, 0, 0, 0, 0));
            if (now != entry)
                throw new SavedStateException($"the guest has seen other processor features than --accel {accelerator.Name} offers here: {Difference(entry, now)}");
            here.Remove((entry.Leaf, entry.Subleaf));
        }
        if (here.Count > 0)
            throw new SavedStateException($"the guest has seen other processor features than --accel {accelerator.Name} offers here: CPUID leaf 0x{here.Keys.Min().Item1:x} was not there");
    }

    private static string Difference(CpuidEntry saved, CpuidEntry now)
    {
        (string Register, uint Then, uint Now)[] registers = [("EAX", saved.Eax, now.Eax), ("EBX", saved.Ebx, now.Ebx), ("ECX", saved.Ecx, now.Ecx), ("EDX", saved.Edx, now.Edx)];
        (string register, uint then, uint value) = registers.First(r => r.Then != r.Now);
        string subleaf = saved.Subleaf is 0 or uint.MaxValue ? "" : $", sub-leaf {saved.Subleaf}";
        return $"{register} of CPUID leaf 0x{saved.Leaf:x}{subleaf} was 0x{then:x8} and is 0x{value:x8}";
    }
}
