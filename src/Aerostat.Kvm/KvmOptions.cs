namespace Aerostat.Kvm;

/// <summary>Who keeps the local APICs of a machine on KVM.</summary>
public enum KvmLocalApicMode
{
    /// <summary>The kernel where it can, the machine elsewhere.</summary>
    Automatic,
    /// <summary>The machine: vectors are injected one at a time.</summary>
    Machine,
    /// <summary>The kernel ("split" interrupt controllers): the machine keeps the 8259 pair and the I/O APIC.</summary>
    Kernel,
}

/// <summary>How KVM tells which pages the guest has written.</summary>
public enum KvmDirtyTracking
{
    /// <summary>The ring for big machines where there is one, else the bitmaps.</summary>
    Automatic,
    /// <summary>A bitmap for each memory slot.</summary>
    Bitmap,
    /// <summary>A ring for each vCPU.</summary>
    Ring,
}

/// <summary>Which of KVM's helps a machine uses. What a host does not offer is an error only when it was asked for by name.</summary>
public sealed record KvmOptions
{
    /// <summary>For processors without a machine around them: nothing but the processors.</summary>
    public static KvmOptions Bare { get; } = new() { LocalApics = KvmLocalApicMode.Machine, GathersWrites = false, EventDescriptors = false };

    /// <summary>Who keeps the local APICs.</summary>
    public KvmLocalApicMode LocalApics { get; init; }

    /// <summary>How written pages are told.</summary>
    public KvmDirtyTracking DirtyTracking { get; init; }

    /// <summary>Whether writes without consequence of their own are gathered in the kernel.</summary>
    public bool GathersWrites { get; init; } = true;

    /// <summary>Whether messages and doorbells that come often go by event descriptors.</summary>
    public bool EventDescriptors { get; init; } = true;
}
