using System.Buffers.Binary;
using Aerostat.Devices;
using Aerostat.Interrupts;

namespace Aerostat.Chipset;

/// <summary>
/// The vectors of one function's MSI-X capability with their pending bits: PCI Local Bus specification 3.0, 6.8.2. Table and pending bit
/// array are two regions of one base address register.
/// </summary>
/// <remarks>Lock order: the device's own lock, then this one; messages are sent under it, so that a vector that is masked stays silent.</remarks>
public sealed class MsixTable : IMmioDevice
{
    /// <summary>Offset of the pending bit array in the region; the table is at 0.</summary>
    public const uint PendingOffset = 0x1000;

    /// <summary>Bytes of the region.</summary>
    public const uint RegionSize = 0x2000;

    /// <summary>Most vectors that fit in the region.</summary>
    public const int MaxVectors = 256;

    private const int EntrySize = 16, ControlOffset = 12;

    private readonly Lock _lock = new();
    private readonly IMessageInterrupts _messages;
    private readonly byte[] _table;
    private readonly ulong[] _pending;
    private bool _enabled, _masked, _master;

    /// <summary>Makes a table with every vector masked.</summary>
    /// <param name="vectors">1..256.</param>
    /// <param name="messages">Where messages go.</param>
    internal MsixTable(int vectors, IMessageInterrupts messages)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(vectors, 1);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(vectors, MaxVectors);
        Vectors = vectors;
        _messages = messages;
        _table = new byte[vectors * EntrySize];
        _pending = new ulong[(vectors + 63) / 64];
        Reset();
    }

    /// <summary>How many vectors there are.</summary>
    public int Vectors { get; }

    /// <summary>Whether the function uses MSI-X rather than its interrupt pin.</summary>
    public bool Enabled => Volatile.Read(ref _enabled);

    /// <summary>Sends a vector's message, or notes it as pending while the vector or the function is masked. Others are ignored.</summary>
    public void Raise(int vector)
    {
        if ((uint)vector >= (uint)Vectors)
            return;
        lock (_lock)
        {
            if (!_enabled)
                return;
            _pending[vector >> 6] |= 1UL << (vector & 63);
            Deliver((ulong)vector);
        }
    }

    internal void Reset()
    {
        lock (_lock)
        {
            Array.Clear(_table);
            Array.Clear(_pending);
            for (int i = 0; i < Vectors; i++)
                _table[(i * EntrySize) + ControlOffset] = 1;
            _enabled = _masked = _master = false;
        }
    }

    /// <summary>The function's registers have changed.</summary>
    /// <param name="enabled">MSI-X enable.</param>
    /// <param name="masked">Function mask.</param>
    /// <param name="master">Bus master enable: without it the function may send nothing.</param>
    internal void Configure(bool enabled, bool masked, bool master)
    {
        lock (_lock)
        {
            Volatile.Write(ref _enabled, enabled);
            _masked = masked;
            _master = master;
            for (int i = 0; i < Vectors; i++)
                Deliver((ulong)i);
        }
    }

    /// <inheritdoc/>
    public ulong ReadMmio(ulong offset, int size)
    {
        lock (_lock)
        {
            ulong value = 0;
            for (int i = 0; i < size; i++)
                value |= (ulong)ReadByte(offset + (ulong)i) << (8 * i);
            return value;
        }
    }

    /// <inheritdoc/>
    public void WriteMmio(ulong offset, int size, ulong value)
    {
        lock (_lock)
        {
            for (int i = 0; i < size; i++)
            {
                ulong at = offset + (ulong)i;
                if (at >= (ulong)_table.Length)
                    break;
                byte b = (byte)(value >> (8 * i));
                int field = (int)at & (EntrySize - 1);
                // Of the vector control only the mask is there; the address is a dword's.
                _table[at] = field >= ControlOffset ? (byte)(field == ControlOffset ? b & 1 : 0) : field == 0 ? (byte)(b & ~3) : b;
            }
            // An unaligned write can touch two entries.
            Deliver(offset / EntrySize);
            Deliver((offset + (ulong)size - 1) / EntrySize);
        }
    }

    internal byte[] SaveTable()
    {
        lock (_lock)
            return [.. _table];
    }

    internal ulong[] SavePending()
    {
        lock (_lock)
            return [.. _pending];
    }

    internal void Restore(ReadOnlySpan<byte> table, ReadOnlySpan<ulong> pending)
    {
        lock (_lock)
        {
            table[..Math.Min(table.Length, _table.Length)].CopyTo(_table);
            pending[..Math.Min(pending.Length, _pending.Length)].CopyTo(_pending);
        }
    }

    private byte ReadByte(ulong offset)
    {
        if (offset < (ulong)_table.Length)
            return _table[offset];
        ulong bit = offset - PendingOffset;
        return bit < (ulong)_pending.Length * 8 ? (byte)(_pending[bit >> 3] >> (int)(8 * (bit & 7))) : (byte)0;
    }

    // Lock held.
    private void Deliver(ulong index)
    {
        if (index >= (ulong)Vectors || !_enabled || _masked || !_master)
            return;
        int vector = (int)index;
        ref ulong word = ref _pending[vector >> 6];
        ulong bit = 1UL << (vector & 63);
        ReadOnlySpan<byte> entry = _table.AsSpan(vector * EntrySize, EntrySize);
        if ((word & bit) == 0 || (entry[ControlOffset] & 1) != 0)
            return;
        word &= ~bit;
        _messages.Send(BinaryPrimitives.ReadUInt64LittleEndian(entry), BinaryPrimitives.ReadUInt32LittleEndian(entry[8..]));
    }
}
