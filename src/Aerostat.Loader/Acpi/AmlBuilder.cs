using System.Buffers.Binary;
using System.Text;

namespace Aerostat.Loader;

/// <summary>
/// Writes ACPI Machine Language (ACPI 6.5 chapter 20). Each call appends one term; blocks take an action that fills them. The
/// methods carry the names of the ASL operators. Only constants and the few operators that a machine's description needs are here.
/// </summary>
/// <example>
/// <code>
/// b.Device("COM1", d => d
///     .Name("_HID", v => v.EisaId("PNP0501"))
///     .Name("_CRS", v => v.ResourceTemplate(r => r.IO(0x3F8, 8).Irq(4))));
/// </code>
/// </example>
public sealed class AmlBuilder
{
    private const byte ZeroOp = 0x00, OneOp = 0x01, NameOp = 0x08, ScopeOp = 0x10, BufferOp = 0x11, PackageOp = 0x12, MethodOp = 0x14;
    private const byte ExtPrefix = 0x5B, OnesOp = 0xFF, IfOp = 0xA0, ElseOp = 0xA1, ReturnOp = 0xA4;

    private readonly List<byte> code = [];

    /// <summary>Bytes written so far.</summary>
    public int Length => code.Count;

    /// <summary>The bytes written so far.</summary>
    public byte[] ToArray() => [.. code];

    /// <summary>Scope (name) { ... }</summary>
    public AmlBuilder Scope(string name, Action<AmlBuilder> body) => Block([ScopeOp], b => b.NameString(name).Append(body));

    /// <summary>Device (name) { ... }</summary>
    public AmlBuilder Device(string name, Action<AmlBuilder> body) => Block([ExtPrefix, 0x82], b => b.NameString(name).Append(body));

    /// <summary>Method (name, arguments) { ... }</summary>
    /// <param name="name">Name.</param>
    /// <param name="arguments">0 to 7.</param>
    /// <param name="body">Statements.</param>
    /// <param name="serialized">Only one thread at a time may run it; needed when it creates objects.</param>
    public AmlBuilder Method(string name, int arguments, Action<AmlBuilder> body, bool serialized = false)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(arguments);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(arguments, 7);
        return Block([MethodOp], b => b.NameString(name).Byte((byte)(arguments | (serialized ? 8 : 0))).Append(body));
    }

    /// <summary>Name (name, value), where the action writes exactly one value.</summary>
    public AmlBuilder Name(string name, Action<AmlBuilder> value) => Byte(NameOp).NameString(name).Append(value);

    /// <summary>Name (name, integer)</summary>
    public AmlBuilder Name(string name, ulong value) => Byte(NameOp).NameString(name).Integer(value);

    /// <summary>Name (name, "text")</summary>
    public AmlBuilder Name(string name, string text) => Byte(NameOp).NameString(name).String(text);

    /// <summary>An integer constant in its shortest form.</summary>
    public AmlBuilder Integer(ulong value)
    {
        Span<byte> bytes = stackalloc byte[9];
        BinaryPrimitives.WriteUInt64LittleEndian(bytes[1..], value);
        switch (value)
        {
            case 0:
                return Byte(ZeroOp);
            case 1:
                return Byte(OneOp);
            case ulong.MaxValue:
                return Byte(OnesOp);
            case <= byte.MaxValue:
                bytes[0] = 0x0A;
                return Bytes(bytes[..2]);
            case <= ushort.MaxValue:
                bytes[0] = 0x0B;
                return Bytes(bytes[..3]);
            case <= uint.MaxValue:
                bytes[0] = 0x0C;
                return Bytes(bytes[..5]);
            default:
                bytes[0] = 0x0E;
                return Bytes(bytes);
        }
    }

    /// <summary>A string constant of ASCII characters 1 to 127.</summary>
    /// <exception cref="ArgumentException">Another character.</exception>
    public AmlBuilder String(string text)
    {
        ArgumentNullException.ThrowIfNull(text);
        if (text.Any(c => c is '\0' or > '\x7F'))
            throw new ArgumentException("AML strings are ASCII without NUL", nameof(text));
        return Byte(0x0D).Bytes(Encoding.ASCII.GetBytes(text)).Byte(0);
    }

    /// <summary>Buffer () { bytes }</summary>
    public AmlBuilder Buffer(ReadOnlySpan<byte> bytes)
    {
        byte[] content = bytes.ToArray();
        return Block([BufferOp], b => b.Integer((ulong)content.Length).Bytes(content));
    }

    /// <summary>Package () { ... }; each action writes exactly one element.</summary>
    public AmlBuilder Package(params IReadOnlyCollection<Action<AmlBuilder>> elements)
    {
        ArgumentNullException.ThrowIfNull(elements);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(elements.Count, 255);
        return Block([PackageOp], b =>
        {
            b.Byte((byte)elements.Count);
            foreach (Action<AmlBuilder> element in elements)
                element(b);
        });
    }

    /// <summary>Package () { integers }</summary>
    public AmlBuilder Package(params ReadOnlySpan<ulong> integers)
    {
        var elements = new Action<AmlBuilder>[integers.Length];
        for (int i = 0; i < elements.Length; i++)
        {
            ulong value = integers[i];
            elements[i] = b => b.Integer(value);
        }
        return Package(elements);
    }

    /// <summary>EISAID ("PNP0501"): three letters and four hexadecimal digits packed in 32 bits.</summary>
    /// <exception cref="ArgumentException">Not of that form.</exception>
    public AmlBuilder EisaId(string id)
    {
        ArgumentNullException.ThrowIfNull(id);
        if (id.Length != 7 || !id.AsSpan(0, 3).ToArray().All(char.IsAsciiLetterUpper) || !id.AsSpan(3).ToArray().All(char.IsAsciiHexDigit))
            throw new ArgumentException($"'{id}' is not three capital letters and four hexadecimal digits", nameof(id));
        int letters = ((id[0] - '@') << 10) | ((id[1] - '@') << 5) | (id[2] - '@');
        int digits = Convert.ToInt32(id[3..], 16);
        uint packed = ((uint)letters << 16) | (uint)digits;
        return Integer(BinaryPrimitives.ReverseEndianness(packed));
    }

    /// <summary>ToUUID ("aabbccdd-eeff-gghh-iijj-kkllmmnnoopp"): a 16-byte buffer in the mixed order of ACPI 6.5 section 19.6.142.</summary>
    public AmlBuilder Uuid(Guid id) => Buffer(id.ToByteArray());

    /// <summary>ResourceTemplate () { ... }</summary>
    public AmlBuilder ResourceTemplate(Action<ResourceTemplateBuilder> body)
    {
        ArgumentNullException.ThrowIfNull(body);
        ResourceTemplateBuilder template = new();
        body(template);
        return Buffer(template.ToArray());
    }

    /// <summary>A reference to a named object, or the start of a method call whose arguments follow.</summary>
    public AmlBuilder Reference(string name) => NameString(name);

    /// <summary>Arg0 to Arg6.</summary>
    public AmlBuilder Arg(int number) => Byte((byte)(0x68 + Math.Clamp(number, 0, 6)));

    /// <summary>Local0 to Local7.</summary>
    public AmlBuilder Local(int number) => Byte((byte)(0x60 + Math.Clamp(number, 0, 7)));

    /// <summary>Return (value)</summary>
    public AmlBuilder Return(Action<AmlBuilder> value) => Byte(ReturnOp).Append(value);

    /// <summary>Store (value, target)</summary>
    public AmlBuilder Store(Action<AmlBuilder> value, Action<AmlBuilder> target) => Byte(0x70).Append(value).Append(target);

    /// <summary>Notify (device, value)</summary>
    public AmlBuilder Notify(string device, ulong value) => Byte(0x86).NameString(device).Integer(value);

    /// <summary>If (predicate) { ... }</summary>
    public AmlBuilder If(Action<AmlBuilder> predicate, Action<AmlBuilder> body) => Block([IfOp], b => b.Append(predicate).Append(body));

    /// <summary>Else { ... }, right after <see cref="If"/>.</summary>
    public AmlBuilder Else(Action<AmlBuilder> body) => Block([ElseOp], body);

    /// <summary>LEqual (a, b)</summary>
    public AmlBuilder Equal(Action<AmlBuilder> a, Action<AmlBuilder> b) => Byte(0x93).Append(a).Append(b);

    /// <summary>And (a, b, target); the target may be nothing.</summary>
    public AmlBuilder And(Action<AmlBuilder> a, Action<AmlBuilder> b, Action<AmlBuilder>? target = null) => Operator(0x7B, a, b, target);

    /// <summary>Or (a, b, target); the target may be nothing.</summary>
    public AmlBuilder Or(Action<AmlBuilder> a, Action<AmlBuilder> b, Action<AmlBuilder>? target = null) => Operator(0x7D, a, b, target);

    /// <summary>CreateDWordField (buffer, byte index, name)</summary>
    public AmlBuilder CreateDWordField(Action<AmlBuilder> buffer, ulong index, string name) => Byte(0x8A).Append(buffer).Integer(index).NameString(name);

    /// <summary>OperationRegion (name, space, offset, length)</summary>
    /// <param name="name">Name.</param>
    /// <param name="space">0 memory, 1 I/O, 2 PCI configuration.</param>
    /// <param name="offset">First address.</param>
    /// <param name="length">Bytes.</param>
    public AmlBuilder OperationRegion(string name, byte space, ulong offset, ulong length) =>
        Byte(ExtPrefix).Byte(0x80).NameString(name).Byte(space).Integer(offset).Integer(length);

    /// <summary>Field (region, access, NoLock, Preserve) with fields one after the other; a null name skips bits.</summary>
    /// <param name="region">Name of the operation region.</param>
    /// <param name="accessBytes">1, 2, 4 or 8; 0: any.</param>
    /// <param name="fields">Names and widths in bits.</param>
    public AmlBuilder Field(string region, int accessBytes, params (string? Name, uint Bits)[] fields)
    {
        ArgumentNullException.ThrowIfNull(fields);
        byte access = accessBytes switch { 0 => 0, 1 => 1, 2 => 2, 4 => 3, 8 => 4, _ => throw new ArgumentOutOfRangeException(nameof(accessBytes)) };
        return Block([ExtPrefix, 0x81], b =>
        {
            b.NameString(region).Byte(access);
            foreach ((string? name, uint bits) in fields)
            {
                if (name is null)
                    b.Byte(0);
                else
                    b.Segment(name);
                b.Bytes(FieldLength(bits));
            }
        });
    }

    /// <summary>Appends whatever the action writes.</summary>
    public AmlBuilder Append(Action<AmlBuilder> action)
    {
        ArgumentNullException.ThrowIfNull(action);
        action(this);
        return this;
    }

    private AmlBuilder Operator(byte op, Action<AmlBuilder> a, Action<AmlBuilder> b, Action<AmlBuilder>? target)
    {
        Byte(op).Append(a).Append(b);
        return target is null ? Byte(0) : Append(target);
    }

    private AmlBuilder Byte(byte value)
    {
        code.Add(value);
        return this;
    }

    private AmlBuilder Bytes(ReadOnlySpan<byte> bytes)
    {
        code.AddRange(bytes);
        return this;
    }

    private AmlBuilder Block(ReadOnlySpan<byte> op, Action<AmlBuilder> body)
    {
        ArgumentNullException.ThrowIfNull(body);
        AmlBuilder inner = new();
        body(inner);
        Bytes(op).Bytes(PackageLength(inner.Length));
        code.AddRange(inner.code);
        return this;
    }

    // PkgLength counts its own bytes (section 20.2.4): one byte below 0x40, else a nibble and one to three bytes.
    private static byte[] PackageLength(int body)
    {
        if (body + 1 < 0x40)
            return [(byte)(body + 1)];
        int bytes = body + 2 < 1 << 12 ? 2 : body + 3 < 1 << 20 ? 3 : 4;
        ArgumentOutOfRangeException.ThrowIfGreaterThanOrEqual(body, (1 << 28) - 4);
        return Spread(body + bytes, bytes);
    }

    // The width of a field is written like a PkgLength, without itself.
    private static byte[] FieldLength(uint bits) => bits < 0x40 ? [(byte)bits] : Spread((int)bits, bits < 1 << 12 ? 2 : bits < 1 << 20 ? 3 : 4);

    private static byte[] Spread(int value, int bytes)
    {
        byte[] result = new byte[bytes];
        result[0] = (byte)(((bytes - 1) << 6) | (value & 0xF));
        for (int i = 1; i < bytes; i++)
            result[i] = (byte)(value >> (4 + ((i - 1) * 8)));
        return result;
    }

    private AmlBuilder NameString(string name)
    {
        ArgumentNullException.ThrowIfNull(name);
        int at = 0;
        if (name.StartsWith('\\'))
        {
            Byte((byte)'\\');
            at = 1;
        }
        else
        {
            for (; at < name.Length && name[at] == '^'; at++)
                Byte((byte)'^');
        }
        if (at == name.Length)
            return Byte(0);
        string[] segments = name[at..].Split('.');
        if (segments.Length == 2)
            Byte(0x2E);
        else if (segments.Length > 2)
            Byte(0x2F).Byte((byte)segments.Length);
        foreach (string segment in segments)
            Segment(segment);
        return this;
    }

    private AmlBuilder Segment(string segment)
    {
        if (segment.Length is 0 or > 4 || !(char.IsAsciiLetterUpper(segment[0]) || segment[0] == '_') || !segment.All(c => char.IsAsciiLetterUpper(c) || char.IsAsciiDigit(c) || c == '_'))
            throw new ArgumentException($"'{segment}' is not an ACPI name of up to four of A-Z, 0-9 and _", nameof(segment));
        return Bytes(Encoding.ASCII.GetBytes(segment.PadRight(4, '_')));
    }
}
