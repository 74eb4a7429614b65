namespace Aerostat.Guest.Kernel;

/// <summary>COM1, a 16550A: output waits for room in its FIFO, input is polled. Several processors may write; what is between <see cref="Enter"/> and <see cref="Exit"/> stays together.</summary>
internal static class Console
{
    private const ushort Port = 0x3F8, LineControl = Port + 3, LineStatus = Port + 5;
    private const byte DataReady = 1, TransmitterEmpty = 0x20, DivisorLatch = 0x80, EightBits = 3;
    private const int FifoSize = 16;

    // How many bytes the FIFO certainly takes, so that not each of them asks.
    private static int room;

    private static SpinLock gate;
    private static int depth;

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

    /// <summary>Keeps the console for this processor; it may do so more than once.</summary>
    public static void Enter()
    {
        if (Panic.IsStopping)
            Panic.StaySilent();
        else if (!gate.IsMine)
            gate.Enter();
        depth++;
    }

    public static void Exit()
    {
        if (--depth == 0 && !Panic.IsStopping)
            gate.Exit();
    }

    public static void Write(byte value)
    {
        Enter();
        Put(value);
        Exit();
    }

    private static void Put(byte value)
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
        Enter();
        if (value == '\n')
            Put((byte)'\r');
        Put((byte)(value < 0x80 ? value : '?'));
        Exit();
    }

    public static void Write(string text)
    {
        Enter();
        for (int i = 0; i < text.Length; i++)
            Write(text[i]);
        Exit();
    }

    public static void Write(ulong value)
    {
        Enter();
        ulong power = 1;
        while (value / power >= 10)
            power *= 10;
        for (; power > 0; power /= 10)
            Put((byte)('0' + (value / power % 10)));
        Exit();
    }

    /// <summary>As many hexadecimal digits as asked for, or as it takes.</summary>
    public static void WriteHex(ulong value, int digits = 1)
    {
        Enter();
        while (digits < 16 && value >> (digits * 4) != 0)
            digits++;
        while (digits-- > 0)
        {
            uint digit = (uint)(value >> (digits * 4)) & 15;
            Put((byte)(digit < 10 ? '0' + digit : 'a' + digit - 10));
        }
        Exit();
    }

    public static void WriteLine(string text)
    {
        Enter();
        Write(text);
        Write('\n');
        Exit();
    }

    /// <summary>The next byte from outside, or -1.</summary>
    public static int Read()
    {
        byte status = Processor.In8(LineStatus);
        return status != 0xFF && (status & DataReady) != 0 ? Processor.In8(Port) : -1;
    }
}
