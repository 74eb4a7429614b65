namespace Aerostat.Guest.Drivers;

/// <summary>The page frames that a balloon holds, newest first. They cannot be noted in the pages themselves, which the host has.</summary>
public sealed class PageLedger(ulong mostPages)
{
    private const int ChunkSize = 16384;

    private readonly uint[]?[] chunks = new uint[]?[(int)((mostPages + ChunkSize - 1) / ChunkSize) + 1];

    public uint Count { get; private set; }

    /// <summary>Notes a frame; false: there are as many as memory has.</summary>
    public bool Push(uint frame)
    {
        int chunk = (int)(Count / ChunkSize);
        if (chunk >= chunks.Length)
            return false;
        uint[]? entries = chunks[chunk];
        if (entries is null)
            chunks[chunk] = entries = new uint[ChunkSize];
        entries[Count % ChunkSize] = frame;
        Count++;
        return true;
    }

    /// <summary>Takes the newest frame; only while <see cref="Count"/> is not 0.</summary>
    public uint Pop()
    {
        Count--;
        uint[]? entries = chunks[Count / ChunkSize];
        return entries is null ? 0 : entries[Count % ChunkSize];
    }
}
