namespace Aerostat.Machine;

/// <summary>Whether guest memory is to be in huge pages (of 2 MiB) of the host's, where the host has them (transparent_hugepage: always or madvise).</summary>
public enum HugePageUse
{
    /// <summary>As <see cref="On"/>.</summary>
    Auto,
    /// <summary>Yes: fewer faults, and a balloon that takes much at once is faster; a page that the guest touches takes its neighbours along.</summary>
    On,
    /// <summary>No: the host holds what the guest has touched, to the page.</summary>
    Off,
}
