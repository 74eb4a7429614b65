using System.Diagnostics.CodeAnalysis;

namespace Aerostat.Guest.Kernel;

/// <summary>The end when something is wrong: says what and where, tells the debug-exit port, and stands still.</summary>
internal static unsafe class Panic
{
    /// <summary>What the debug-exit device gets: QEMU and Aerostat end with (code * 2) + 1.</summary>
    private const byte ExitCode = 0x7F;

    private const int MostFrames = 16;
    private const ulong AnswerWithin = 2_000_000_000;

    // 0, or 1 + the index of the processor that stops the guest; of the one that is to say where it is; how many stand still.
    private static uint stopping;
    private static uint asked;
    private static uint still;

    /// <summary>Whether the guest is ending, so that a non-maskable interrupt means to stand still.</summary>
    public static bool IsStopping
    {
        get
        {
            fixed (uint* at = &stopping)
                return Processor.Load(at) != 0;
        }
    }

    /// <summary>Ends the guest with a message and the return addresses that led here.</summary>
    [DoesNotReturn]
    public static void Stop(string message)
    {
        Begin();
        StopOthers();
        Console.Write("PANIC: ");
        Console.Write(message);
        WriteProcessor();
        Console.Write('\n');
        WriteCallers(Processor.ReadFrame());
        End();
    }

    /// <summary>Ends the guest for an exception that nobody handles.</summary>
    [DoesNotReturn]
    public static void Stop(InterruptFrame* frame)
    {
        Begin();
        StopOthers();
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
        WriteProcessor();
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
        WriteCallers(IsOnStack(frame->Rbp) ? frame->Rbp : FirstFrame());
        End();
    }

    /// <summary>Ends the guest after the caller has said what is wrong: where each processor is follows.</summary>
    [DoesNotReturn]
    public static void EndHere()
    {
        WriteCallers(Processor.ReadFrame());
        for (uint i = 0; i < Processors.Count; i++)
            if (i != Processors.Current->Index)
                AskWhere(i);
        End();
    }

    /// <summary>A processor that was interrupted because the guest ends: says where it is if it is asked, and stands still.</summary>
    [DoesNotReturn]
    public static void StandStill(InterruptFrame* frame)
    {
        fixed (uint* at = &asked)
            if (Processor.Load(at) == Processors.Current->Index + 1)
            {
                Console.Write("  processor ");
                Console.Write((ulong)Processors.Current->Index);
                Console.Write(" is at 0x");
                Console.WriteHex(frame->Rip);
                Console.Write('\n');
                WriteCallers(frame->Rbp);
                Processor.Exchange(at, 0U);
            }
        fixed (uint* at = &still)
            Processor.AddExchange(at, 1);
        Rest();
    }

    /// <summary>The last words begin. A fault while they are spoken ends without a word, and other processors say nothing from here on.</summary>
    public static void Begin()
    {
        Processor.DisableInterrupts();
        uint me = Processors.Current->Index + 1;
        fixed (uint* at = &stopping)
        {
            uint before = Processor.CompareExchange(at, me, 0);
            if (before == me)
                End();
            // Another one ends the guest; it will interrupt this one, or has.
            if (before != 0)
                Rest();
        }
        Console.Write('\n');
    }

    /// <summary>Returns to the one that ends the guest, and to the one that was asked; nobody else writes any more.</summary>
    public static void StaySilent()
    {
        uint me = Processors.Current->Index + 1;
        fixed (uint* ends = &stopping, speaks = &asked)
            if (Processor.Load(ends) != me && Processor.Load(speaks) != me)
                Rest();
    }

    // Nothing of the others comes between the last words and the end.
    private static void StopOthers()
    {
        uint others = Processors.Count - 1;
        for (uint i = 0; i < Processors.Count; i++)
            if (i != Processors.Current->Index)
                LocalApic.SendNonMaskable(Processors.At(i)->ApicId);
        ulong begun = Processor.ReadTimestamp();
        fixed (uint* at = &still)
            while (Processor.Load(at) < others && Processor.ReadTimestamp() - begun < AnswerWithin)
                Processor.Pause();
    }

    // The one asked has the console meanwhile.
    private static void AskWhere(uint index)
    {
        fixed (uint* at = &asked)
        {
            Processor.Exchange(at, index + 1);
            LocalApic.SendNonMaskable(Processors.At(index)->ApicId);
            ulong begun = Processor.ReadTimestamp();
            while (Processor.Load(at) != 0 && Processor.ReadTimestamp() - begun < AnswerWithin)
                Processor.Pause();
        }
    }

    private static void WriteProcessor()
    {
        if (Processors.Count < 2)
            return;
        Console.Write(" on processor ");
        Console.Write((ulong)Processors.Current->Index);
    }

    [DoesNotReturn]
    private static void Rest()
    {
        while (true)
        {
            Processor.DisableInterrupts();
            Processor.Halt();
        }
    }

    [DoesNotReturn]
    private static void End()
    {
        Power.DebugExit(ExitCode);
        Rest();
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
        for (int i = 0; i < MostFrames && IsOnStack(frame); i++)
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

    // Two words on this processor's stack.
    private static bool IsOnStack(ulong frame) =>
        (frame & 7) == 0 && frame >= Processors.Current->StackStart && frame <= Processors.Current->StackEnd - 16;

    // A stack that is overrun by an interrupt's entry has its newest frame below itself: the lowest that looks like one.
    private static ulong FirstFrame()
    {
        const ulong Near = 4096;
        ulong at = Processors.Current->StackStart;
        for (ulong end = at + Near; at < end && IsOnStack(at); at += 8)
        {
            ulong* words = (ulong*)at;
            if (words[0] > at && IsOnStack(words[0]) && words[1] >= Processor.ImageStart && words[1] < Processor.TextEnd)
                return at;
        }
        return 0;
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
