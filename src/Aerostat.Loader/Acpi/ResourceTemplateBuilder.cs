using System.Buffers.Binary;

namespace Aerostat.Loader;

/// <summary>Writes resource descriptors (ACPI 6.5 section 6.4) for <see cref="AmlBuilder.ResourceTemplate"/>.</summary>
public sealed class ResourceTemplateBuilder
{
    private const byte WordSpace = 0x88, DWordSpace = 0x87, QWordSpace = 0x8A;
    private const byte MemoryType = 0, IoType = 1, BusType = 2;

    // General flags of an address space: producer, positive decode, minimum and maximum fixed.
    private const byte FixedProducer = 0x0C;

    // Memory: read-write and cacheable or not; I/O: the entire range.
    private const byte ReadWrite = 1, Cacheable = 2, EntireRange = 3;

    private readonly List<byte> bytes = [];

    /// <summary>IO (Decode16, start, start, 1, length)</summary>
    public ResourceTemplateBuilder IO(ushort start, byte length)
    {
        bytes.AddRange([0x47, 1, (byte)start, (byte)(start >> 8), (byte)start, (byte)(start >> 8), 1, length]);
        return this;
    }

    /// <summary>IRQNoFlags () { number }: an ISA interrupt, edge, active high.</summary>
    public ResourceTemplateBuilder Irq(int number)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(number);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(number, 15);
        int mask = 1 << number;
        bytes.AddRange([0x22, (byte)mask, (byte)(mask >> 8)]);
        return this;
    }

    /// <summary>Interrupt (ResourceConsumer, trigger, polarity, sharing) { gsi }</summary>
    public ResourceTemplateBuilder Interrupt(uint gsi, bool level, bool activeLow, bool shared)
    {
        bytes.AddRange([0x89, 6, 0, (byte)(1 | (level ? 0 : 2) | (activeLow ? 4 : 0) | (shared ? 8 : 0)), 1]);
        return Add32(gsi);
    }

    /// <summary>Memory32Fixed (ReadWrite or ReadOnly, start, length)</summary>
    public ResourceTemplateBuilder Memory32Fixed(uint start, uint length, bool writable = true)
    {
        bytes.AddRange([0x86, 9, 0, (byte)(writable ? 1 : 0)]);
        return Add32(start).Add32(length);
    }

    /// <summary>WordBusNumber: bus numbers a bridge produces.</summary>
    public ResourceTemplateBuilder WordBusNumber(ushort first, ushort last) => Space16(BusType, 0, first, last);

    /// <summary>WordIO: I/O ports a bridge produces.</summary>
    public ResourceTemplateBuilder WordIO(ushort first, ushort last) => Space16(IoType, EntireRange, first, last);

    /// <summary>DWordMemory: a 32-bit memory window a bridge produces, read-write.</summary>
    public ResourceTemplateBuilder DWordMemory(uint first, uint last, bool cacheable = false)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(last, first);
        bytes.AddRange([DWordSpace, 23, 0, MemoryType, FixedProducer, (byte)(ReadWrite | (cacheable ? Cacheable : 0))]);
        return Add32(0).Add32(first).Add32(last).Add32(0).Add32(last - first + 1);
    }

    /// <summary>QWordMemory: a 64-bit memory window a bridge produces, read-write.</summary>
    public ResourceTemplateBuilder QWordMemory(ulong first, ulong last, bool cacheable = false)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(last, first);
        bytes.AddRange([QWordSpace, 43, 0, MemoryType, FixedProducer, (byte)(ReadWrite | (cacheable ? Cacheable : 0))]);
        return Add64(0).Add64(first).Add64(last).Add64(0).Add64(last - first + 1);
    }

    /// <summary>The descriptors with their end tag, whose checksum 0 means "not checked" (section 6.4.2.9).</summary>
    internal byte[] ToArray() => [.. bytes, 0x79, 0];

    private ResourceTemplateBuilder Space16(byte type, byte typeFlags, ushort first, ushort last)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(last, first);
        int length = last - first + 1;
        ArgumentOutOfRangeException.ThrowIfGreaterThan(length, ushort.MaxValue);
        bytes.AddRange([WordSpace, 13, 0, type, FixedProducer, typeFlags]);
        return Add16(0).Add16(first).Add16(last).Add16(0).Add16((ushort)length);
    }

    private ResourceTemplateBuilder Add16(ushort value)
    {
        bytes.AddRange([(byte)value, (byte)(value >> 8)]);
        return this;
    }

    private ResourceTemplateBuilder Add32(uint value)
    {
        Span<byte> b = stackalloc byte[4];
        BinaryPrimitives.WriteUInt32LittleEndian(b, value);
        bytes.AddRange(b);
        return this;
    }

    private ResourceTemplateBuilder Add64(ulong value) => Add32((uint)value).Add32((uint)(value >> 32));
}
