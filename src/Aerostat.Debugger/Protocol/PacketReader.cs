namespace Aerostat.Debugger;

/// <summary>What a debugger has sent.</summary>
internal enum GdbInputKind
{
    /// <summary>A packet whose checksum is right.</summary>
    Packet,
    /// <summary>A packet whose checksum is wrong.</summary>
    Corrupt,
    /// <summary>A packet longer than was agreed.</summary>
    TooLong,
    /// <summary>Ctrl-C, outside packets.</summary>
    Interrupt,
    /// <summary>The last packet did not arrive whole: send it again.</summary>
    Nack,
}

/// <summary>One thing a debugger has sent.</summary>
/// <param name="Kind">What.</param>
/// <param name="Body">With a packet: its bytes, escapes undone.</param>
internal readonly record struct GdbInput(GdbInputKind Kind, byte[] Body);

/// <summary>
/// Cuts a byte stream into packets of GDB's remote serial protocol (GDB manual, appendix "Remote Protocol", Overview): <c>$body#cc</c>, where
/// <c>}</c> escapes the byte after it. Never keeps more than the longest packet, whatever it is fed.
/// </summary>
/// <param name="checksums">Whether checksums count; a debugger that has asked for no acknowledgements need not send right ones.</param>
internal sealed class PacketReader(bool checksums = true)
{
    /// <summary>Longest packet body, in bytes as sent.</summary>
    public const int MostBytes = 0x4000;

    private enum State
    {
        Outside,
        Body,
        Escaped,
        FirstDigit,
        SecondDigit,
    }

    private readonly byte[] body = new byte[MostBytes];
    private State state;
    private int length, raw;
    private byte sum;
    private int given;
    private bool tooLong;

    /// <summary>Whether checksums count.</summary>
    public bool Checksums { get; set; } = checksums;

    /// <summary>Bytes kept of a packet that is not complete.</summary>
    public int Kept => length;

    /// <summary>Takes one byte; true: something is complete.</summary>
    public bool Take(byte value, out GdbInput input)
    {
        input = default;
        switch (state)
        {
            case State.Outside:
                if (value == '$')
                    Begin();
                else if (value is 3 or (byte)'-')
                    input = new GdbInput(value == 3 ? GdbInputKind.Interrupt : GdbInputKind.Nack, []);
                return value is 3 or (byte)'-';
            case State.Body when value == '#':
                state = State.FirstDigit;
                return false;
            case State.Body when value == '$':
                // The end of the one before was lost.
                Begin();
                return false;
            case State.Body when value == '}':
                sum += value;
                raw++;
                state = State.Escaped;
                return false;
            case State.Body or State.Escaped:
                sum += value;
                Keep(state == State.Escaped ? (byte)(value ^ 0x20) : value);
                state = State.Body;
                return false;
            case State.FirstDigit:
                given = Hex.Digit(value);
                state = State.SecondDigit;
                return false;
            default:
                int low = Hex.Digit(value);
                bool right = !Checksums || (given >= 0 && low >= 0 && (given << 4 | low) == sum);
                input = tooLong ? new GdbInput(GdbInputKind.TooLong, [])
                    : right ? new GdbInput(GdbInputKind.Packet, body[..length])
                    : new GdbInput(GdbInputKind.Corrupt, []);
                state = State.Outside;
                length = 0;
                return true;
        }
    }

    private void Begin()
    {
        state = State.Body;
        length = raw = 0;
        sum = 0;
        tooLong = false;
    }

    private void Keep(byte value)
    {
        if (++raw > MostBytes || length == MostBytes)
            tooLong = true;
        else
            body[length++] = value;
    }
}
