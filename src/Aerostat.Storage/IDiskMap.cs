namespace Aerostat.Storage;

/// <summary>A disk that knows which of it was never written. It may be asked while the disk is used; the answer is of some moment during the call.</summary>
public interface IDiskMap
{
    /// <summary>
    /// The next run from <paramref name="offset"/> on that may hold something; all before it reads as zeros. Both are the disk's length when there is none.
    /// </summary>
    (ulong Start, ulong End) NextData(ulong offset);
}
