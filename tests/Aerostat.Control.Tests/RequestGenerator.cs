using System.Text;

namespace Aerostat.Control.Tests;

/// <summary>Makes requests that are wrong in many ways, the same ones from the same seed. None of them, understood, would end the machine.</summary>
internal sealed class RequestGenerator(int seed)
{
    private static readonly string[] s_whole =
    [
        "{\"verb\":\"show\"}",
        "{\"id\":1,\"verb\":\"show\",\"arguments\":{}}",
        "{\"id\":2,\"verb\":\"events\",\"arguments\":{\"since\":0,\"follow\":true}}",
        "{\"verb\":\"resume\",\"id\":-5}",
        "{\"verb\":\"stop\",\"arguments\":{\"timeout\":0}}",
        "{\"verb\":\"debug\",\"arguments\":{\"endpoint\":\"x\"}}",
    ];

    private static readonly string[] s_pieces =
    [
        "{", "}", "[", "]", ":", ",", "\"", "\\", "\\u0000", "\\ud800", "null", "true", "1e999", "-0", "99999999999999999999", "0x1", "NaN", "\"verb\"", "\"id\"",
        "\"arguments\"", "\"show\"", "\"events\"", "\"since\"", "\"follow\"", "\u00e9", "\uFEFF", "//", "/*", "\t", "\r", "\0", "'", "{}", "[]", "\"\"",
    ];

    private readonly Random random = new(seed);

    /// <summary>How many answers there can be at most: one a line.</summary>
    public static int LinesIn(byte[] bytes) => bytes.Count(b => b == '\n') + 1;

    /// <summary>What one client sends: a few lines, the last perhaps without an end.</summary>
    public byte[] Next()
    {
        List<byte> all = [];
        int lines = random.Next(1, 8);
        for (int i = 0; i < lines; i++)
        {
            all.AddRange(Line().Where(b => b != '\n'));
            if (i < lines - 1 || random.Next(2) == 0)
                all.Add((byte)'\n');
        }
        return [.. all];
    }

    /// <summary>Cuts bytes into pieces.</summary>
    public IEnumerable<ReadOnlyMemory<byte>> Cut(byte[] bytes)
    {
        for (int at = 0; at < bytes.Length;)
        {
            int count = Math.Min(bytes.Length - at, random.Next(4) == 0 ? random.Next(1, 8) : random.Next(1, 20_000));
            yield return bytes.AsMemory(at, count);
            at += count;
        }
    }

    private byte[] Line()
    {
        byte[] whole = Encoding.UTF8.GetBytes(s_whole[random.Next(s_whole.Length)]);
        switch (random.Next(9))
        {
            case 0:
                return whole;
            case 1:
                // Cut off.
                return whole[..random.Next(whole.Length)];
            case 2:
                // Bytes changed.
                for (int i = random.Next(1, 4); i > 0; i--)
                    whole[random.Next(whole.Length)] = (byte)random.Next(256);
                return whole;
            case 3:
                // Anything.
                byte[] any = new byte[random.Next(400)];
                random.NextBytes(any);
                return any;
            case 4:
                return Encoding.UTF8.GetBytes(string.Concat(Enumerable.Range(0, random.Next(1, 40)).Select(_ => s_pieces[random.Next(s_pieces.Length)])));
            case 5:
                // Deep.
                int depth = random.Next(1, 3000);
                return Encoding.UTF8.GetBytes("{\"verb\":\"show\",\"arguments\":" + string.Concat(Enumerable.Repeat("{\"a\":", depth)) + "1" + new string('}', depth) + "}");
            case 6:
                // Long, at the limit and beyond.
                return Encoding.UTF8.GetBytes("{\"verb\":\"" + new string('x', ControlProtocol.LongestRequest - 11 + random.Next(-2, 3)) + "\"}");
            case 7:
                // Many members.
                return Encoding.UTF8.GetBytes("{" + string.Join(',', Enumerable.Range(0, random.Next(1, 2000)).Select(i => $"\"m{i}\":{i}")) + "}");
            default:
                // A piece put in.
                int at = random.Next(whole.Length);
                return [.. whole[..at], .. Encoding.UTF8.GetBytes(s_pieces[random.Next(s_pieces.Length)]), .. whole[at..]];
        }
    }
}
