using Aerostat.Devices;
using Aerostat.Memory;
using Aerostat.Virtio;
using Aerostat.VMware;

namespace Aerostat.Machine;

/// <summary>How a machine's memory stands between guest and host.</summary>
/// <param name="TotalBytes">What the guest has.</param>
/// <param name="HostBytes">What the host holds for it now, swapped out or not.</param>
/// <param name="Pages">Bytes in each state.</param>
/// <param name="Balloon">The balloon; null: the machine has none.</param>
public sealed record MachineMemory(ulong TotalBytes, ulong HostBytes, PageTotals Pages, BalloonReport? Balloon);

/// <content>Devices that the host talks to: memory and consoles.</content>
public sealed partial class VirtualMachine
{
    /// <summary>
    /// The balloon, of whatever dialect; null: the machine has none. Its members may be called from any thread while the machine is there.
    /// </summary>
    public IBalloon? Balloon => board.Balloon;

    /// <summary>What sets the balloon's target by itself; null: nothing does.</summary>
    public BalloonController? BalloonController { get; private set; }

    private void StartPolicy()
    {
        if (Balloon is { } balloon && Options.Devices.OfType<BalloonOptions>().FirstOrDefault() is { Auto: { } range })
            BalloonController = new BalloonController(balloon, new BalloonPolicy(range.Floor, range.Ceiling), memory.TotalBytes, Journal, clock);
    }

    /// <summary>The virtio balloon, which can do more than others: free page hints. Null: the machine has none.</summary>
    public VirtioBalloon? VirtioBalloon => Balloon as VirtioBalloon;

    /// <summary>VMware's tools in the guest; null: the machine has another personality. Its members may be called from any thread while the machine is there.</summary>
    public GuestTools? GuestTools => board.Vmware?.Tools;

    /// <summary>The virtio consoles, in the order of the options. Their members may be called from any thread while the machine is there.</summary>
    public IReadOnlyList<VirtioConsole> Consoles => [.. board.Virtio.Devices.OfType<VirtioConsole>()];

    /// <summary>How memory stands. Walks the page map: for people and policies, not many times a second.</summary>
    /// <exception cref="ObjectDisposedException">The machine is gone.</exception>
    public MachineMemory GetMemory()
    {
        ObjectDisposedException.ThrowIf(Volatile.Read(ref disposed) != 0, this);
        return new MachineMemory(memory.TotalBytes, memory.AllocatedBytes, memory.GetPageTotals(), Balloon?.GetReport());
    }
}
