using Aerostat.Memory;

namespace Aerostat.HyperV;

/// <summary>
/// A page of the hypervisor's that lies over one of the guest's (TLFS, 5.2.1): what the guest had there comes back when the page is moved or
/// taken away. Where there is no memory there is no page either. The owner locks.
/// </summary>
internal sealed class OverlayPage(GuestMemory memory)
{
    private const int Size = GuestAddress.PageSize;
    private const ulong EnableBit = 1;

    private ulong address;
    private byte[]? covered;

    /// <summary>Where the page is, or null.</summary>
    public GuestAddress? Address => covered is null ? null : new GuestAddress(address);

    /// <summary>The page's bytes; false: there is none.</summary>
    public bool TryGet(int offset, int length, out Span<byte> span)
    {
        span = default;
        return covered is not null && memory.TryGetSpan(new GuestAddress(address + (ulong)offset), length, out span);
    }

    /// <summary>Tells memory of a change made through <see cref="TryGet"/>.</summary>
    public void Written(int offset, int length) => memory.NotifyHostWrite(address + (ulong)offset, (ulong)length);

    /// <summary>Follows a register with a page number in bits 63..12 and bit 0 to enable. True: the page is there and new, and is to be filled.</summary>
    public bool Follow(ulong register, ReadOnlySpan<byte> contents)
    {
        bool wanted = (register & EnableBit) != 0;
        ulong at = register & ~(ulong)(Size - 1);
        if (wanted && covered is not null && at == address)
            return false;
        Remove();
        byte[] before = new byte[Size];
        if (!wanted || !memory.TryRead(new GuestAddress(at), before))
            return false;
        address = at;
        covered = before;
        Fill(contents);
        return true;
    }

    /// <summary>Replaces what the guest sees there; nothing where there is no page.</summary>
    public void Fill(ReadOnlySpan<byte> contents)
    {
        if (covered is null)
            return;
        byte[] page = new byte[Size];
        contents.CopyTo(page);
        memory.TryWrite(new GuestAddress(address), page);
    }

    /// <summary>Gives the guest its page back.</summary>
    public void Remove()
    {
        if (covered is null)
            return;
        memory.TryWrite(new GuestAddress(address), covered);
        covered = null;
    }

    /// <summary>Forgets the page: the memory is new.</summary>
    public void Forget() => covered = null;

    /// <summary>What lies under the page; null: there is none.</summary>
    public byte[]? Save() => covered;

    /// <summary>Puts the page back over what it covered; its contents are in guest memory.</summary>
    public void Restore(ulong register, byte[]? below)
    {
        if (below is not null && below.Length != Size)
            throw new ArgumentException($"a page has {Size} bytes");
        address = register & ~(ulong)(Size - 1);
        covered = below is not null && memory.Contains(address, Size) ? below : null;
    }
}
