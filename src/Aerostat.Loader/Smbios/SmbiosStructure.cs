using System.Buffers.Binary;
using System.Text;

namespace Aerostat.Loader;

/// <summary>One SMBIOS structure in the making: formatted part, then its strings (SMBIOS 3.6 section 6.1).</summary>
internal sealed class SmbiosStructure
{
    private const int LongestText = 64;

    private readonly List<byte> formatted = [];
    private readonly List<string> texts = [];

    public SmbiosStructure(byte type, ushort handle)
    {
        Type = type;
        Byte(type).Byte(0).Word(handle);
    }

    public byte Type { get; }

    public SmbiosStructure Byte(byte value)
    {
        formatted.Add(value);
        return this;
    }

    public SmbiosStructure Word(ushort value) => Byte((byte)value).Byte((byte)(value >> 8));

    public SmbiosStructure Dword(uint value) => Word((ushort)value).Word((ushort)(value >> 16));

    public SmbiosStructure Qword(ulong value) => Dword((uint)value).Dword((uint)(value >> 32));

    public SmbiosStructure Raw(ReadOnlySpan<byte> bytes)
    {
        formatted.AddRange(bytes);
        return this;
    }

    /// <summary>A string number; an empty text is "no string".</summary>
    public SmbiosStructure Text(string text)
    {
        string clean = Printable(text, LongestText);
        if (clean.Length == 0)
            return Byte(0);
        texts.Add(clean);
        return Byte((byte)texts.Count);
    }

    /// <summary>A string that has no field of its own (types 11 and 12).</summary>
    public SmbiosStructure TextOnly(string text)
    {
        string clean = Printable(text, 255);
        texts.Add(clean.Length == 0 ? " " : clean);
        return this;
    }

    private static string Printable(string text, int longest) => string.Create(Math.Min(text.Length, longest), text, static (clean, from) =>
    {
        for (int i = 0; i < clean.Length; i++)
            clean[i] = from[i] is >= ' ' and <= '~' ? from[i] : '?';
    });

    public byte[] Finish()
    {
        byte[] head = [.. formatted];
        head[1] = checked((byte)head.Length);
        if (texts.Count == 0)
            return [.. head, 0, 0];
        List<byte> all = [.. head];
        foreach (string text in texts)
        {
            all.AddRange(Encoding.ASCII.GetBytes(text));
            all.Add(0);
        }
        all.Add(0);
        return [.. all];
    }

    /// <summary>Handle of a finished structure.</summary>
    public static ushort HandleOf(ReadOnlySpan<byte> structure) => BinaryPrimitives.ReadUInt16LittleEndian(structure[2..]);
}
