namespace Aerostat.Guest.Kernel;

/// <summary>Something that several processors do at a time: see <see cref="Processors.RunOnAll"/>.</summary>
internal abstract class ProcessorWork
{
    /// <summary>One processor's part.</summary>
    /// <param name="part">Which: from 0 to <paramref name="parts"/> - 1.</param>
    /// <param name="parts">How many there are.</param>
    public abstract void Run(uint part, uint parts);
}
