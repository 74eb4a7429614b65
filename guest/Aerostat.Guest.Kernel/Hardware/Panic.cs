using System.Diagnostics.CodeAnalysis;

namespace Aerostat.Guest.Kernel;

/// <summary>The end when something is wrong: says what and where, tells the debug-exit port, and stands still.</summary>
internal static unsafe class Panic
{
    /// <summary>What the debug-exit device gets: QEMU and Aerostat end with (code * 2) + 1.</summary>
    private const byte ExitCode = 0x7F;

    private const int MostFrames = 16;
    private static bool stopping;

    /// <summary>Ends the guest with a message and the return addresses that led here.</summary>
    [DoesNotReturn]
    public static void Stop(string message)
    {
        Begin();
        Console.Write("PANIC: ");
        Console.WriteLine(message);
        WriteCallers(Processor.ReadFrame());
        End();
    }

    /// <summary>Ends the guest for an exception that nobody handles.</summary>
    [DoesNotReturn]
    public static void Stop(InterruptFrame* frame)
    {
        Begin();
        Console.Write("PANIC: ");
        Console.Write(NameOf(frame->Vector));
        Console.Write(" (exception ");
        Console.Write(frame->Vector);
        Console.Write(", error code 0x");
        Console.WriteHex(frame->ErrorCode);
        Console.Write(") at rip=0x");
        Console.WriteHex(frame->Rip, 8);
        if (frame->Vector == 14)
        {
            Console.Write(" on address 0x");
            Console.WriteHex(Processor.ReadFaultAddress(), 16);
        }
        Console.Write('\n');
        Register("rax", frame->Rax);
        Register("rbx", frame->Rbx);
        Register("rcx", frame->Rcx);
        Register("rdx", frame->Rdx);
        Console.Write('\n');
        Register("rsi", frame->Rsi);
        Register("rdi", frame->Rdi);
        Register("rbp", frame->Rbp);
        Register("rsp", frame->Rsp);
        Console.Write('\n');
        WriteCallers(frame->Rbp);
        End();
    }

    // A fault while the first one is told of ends without a word.
    private static void Begin()
    {
        Processor.DisableInterrupts();
        if (stopping)
            End();
        stopping = true;
        Console.Write('\n');
    }

    [DoesNotReturn]
    private static void End()
    {
        Power.DebugExit(ExitCode);
        while (true)
            Processor.Halt();
    }

    private static void Register(string name, ulong value)
    {
        Console.Write("  ");
        Console.Write(name);
        Console.Write('=');
        Console.WriteHex(value, 16);
    }

    // Compiled methods keep a chain of frames: [RBP] is the caller's, [RBP + 8] the return address.
    private static void WriteCallers(ulong frame)
    {
        Console.Write("  called from");
        for (int i = 0; i < MostFrames && frame >= Processor.FirstStackGuard && frame <= Processor.ImageEnd - 16 && (frame & 7) == 0; i++)
        {
            ulong* words = (ulong*)frame;
            if (words[1] < Processor.ImageStart || words[1] >= Processor.TextEnd)
                break;
            Console.Write(" 0x");
            Console.WriteHex(words[1]);
            if (words[0] <= frame)
                break;
            frame = words[0];
        }
        Console.Write('\n');
    }

    private static string NameOf(ulong vector) => vector switch
    {
        0 => "divide error",
        1 => "debug",
        2 => "non-maskable interrupt",
        3 => "breakpoint",
        6 => "invalid opcode",
        8 => "double fault",
        12 => "stack fault",
        13 => "general protection",
        14 => "page fault",
        18 => "machine check",
        19 => "floating point",
        _ => "exception",
    };
}
