namespace Aerostat.Guest.Kernel;

/// <summary>COM1, a 16550A: output waits for room in its FIFO, input is polled.</summary>
internal static class Console
{
    private const ushort Port = 0x3F8, LineControl = Port + 3, LineStatus = Port + 5;
    private const byte DataReady = 1, TransmitterEmpty = 0x20, DivisorLatch = 0x80, EightBits = 3;
    private const int FifoSize = 16;

    // How many bytes the FIFO certainly takes, so that not each of them asks.
    private static int room;

    /// <summary>115200 baud, 8 bits, FIFOs on.</summary>
    public static void Initialize()
    {
        Processor.Out8(Port + 1, 0);
        Processor.Out8(LineControl, DivisorLatch | EightBits);
        Processor.Out8(Port, 1);
        Processor.Out8(Port + 1, 0);
        Processor.Out8(LineControl, EightBits);
        Processor.Out8(Port + 2, 7);
        Processor.Out8(Port + 4, 0x0B);
    }

    /// <summary>Lets the port interrupt when something came.</summary>
    public static void EnableInput() => Processor.Out8(Port + 1, 1);

    public static void Write(byte value)
    {
        if (room == 0)
        {
            // A port without a device reads as all ones, which says "empty": nothing hangs.
            while ((Processor.In8(LineStatus) & TransmitterEmpty) == 0)
            {
            }
            room = FifoSize;
        }
        room--;
        Processor.Out8(Port, value);
    }

    public static void Write(char value)
    {
        if (value == '\n')
            Write((byte)'\r');
        Write((byte)(value < 0x80 ? value : '?'));
    }

    public static void Write(string text)
    {
        for (int i = 0; i < text.Length; i++)
            Write(text[i]);
    }

    public static void Write(ulong value)
    {
        ulong power = 1;
        while (value / power >= 10)
            power *= 10;
        for (; power > 0; power /= 10)
            Write((char)('0' + (value / power % 10)));
    }

    /// <summary>As many hexadecimal digits as asked for, or as it takes.</summary>
    public static void WriteHex(ulong value, int digits = 1)
    {
        while (digits < 16 && value >> (digits * 4) != 0)
            digits++;
        while (digits-- > 0)
        {
            uint digit = (uint)(value >> (digits * 4)) & 15;
            Write((char)(digit < 10 ? '0' + digit : 'a' + digit - 10));
        }
    }

    public static void WriteLine(string text)
    {
        Write(text);
        Write('\n');
    }

    /// <summary>The next byte from outside, or -1.</summary>
    public static int Read()
    {
        byte status = Processor.In8(LineStatus);
        return status != 0xFF && (status & DataReady) != 0 ? Processor.In8(Port) : -1;
    }
}
