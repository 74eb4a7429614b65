using System.Runtime;
using System.Runtime.CompilerServices;

namespace Aerostat.Guest.Kernel;

/// <summary>Single instructions; the start-up code has them as functions.</summary>
internal static unsafe class Processor
{
    [RuntimeImport("*", "In8"), MethodImpl(MethodImplOptions.InternalCall)]
    public static extern byte In8(ushort port);

    [RuntimeImport("*", "In16"), MethodImpl(MethodImplOptions.InternalCall)]
    public static extern ushort In16(ushort port);

    [RuntimeImport("*", "In32"), MethodImpl(MethodImplOptions.InternalCall)]
    public static extern uint In32(ushort port);

    [RuntimeImport("*", "Out8"), MethodImpl(MethodImplOptions.InternalCall)]
    public static extern void Out8(ushort port, byte value);

    [RuntimeImport("*", "Out16"), MethodImpl(MethodImplOptions.InternalCall)]
    public static extern void Out16(ushort port, ushort value);

    [RuntimeImport("*", "Out32"), MethodImpl(MethodImplOptions.InternalCall)]
    public static extern void Out32(ushort port, uint value);

    [RuntimeImport("*", "Halt"), MethodImpl(MethodImplOptions.InternalCall)]
    public static extern void Halt();

    /// <summary>Lets interrupts in and waits for one; none that comes in between is missed.</summary>
    [RuntimeImport("*", "EnableAndHalt"), MethodImpl(MethodImplOptions.InternalCall)]
    public static extern void EnableAndHalt();

    [RuntimeImport("*", "EnableInterrupts"), MethodImpl(MethodImplOptions.InternalCall)]
    public static extern void EnableInterrupts();

    [RuntimeImport("*", "DisableInterrupts"), MethodImpl(MethodImplOptions.InternalCall)]
    public static extern void DisableInterrupts();

    /// <summary>CR2.</summary>
    [RuntimeImport("*", "ReadFaultAddress"), MethodImpl(MethodImplOptions.InternalCall)]
    public static extern ulong ReadFaultAddress();

    /// <summary>CR3.</summary>
    [RuntimeImport("*", "ReadPageTables"), MethodImpl(MethodImplOptions.InternalCall)]
    public static extern ulong ReadPageTables();

    [RuntimeImport("*", "WritePageTables"), MethodImpl(MethodImplOptions.InternalCall)]
    public static extern void WritePageTables(ulong root);

    [RuntimeImport("*", "LoadInterruptTable"), MethodImpl(MethodImplOptions.InternalCall)]
    public static extern void LoadInterruptTable(void* pointer);

    [RuntimeImport("*", "LoadGlobalTable"), MethodImpl(MethodImplOptions.InternalCall)]
    public static extern void LoadGlobalTable(void* pointer);

    [RuntimeImport("*", "LoadTask"), MethodImpl(MethodImplOptions.InternalCall)]
    public static extern void LoadTask(ushort selector);

    [RuntimeImport("*", "ReadFrame"), MethodImpl(MethodImplOptions.InternalCall)]
    public static extern ulong ReadFrame();

    [RuntimeImport("*", "ReadMsr"), MethodImpl(MethodImplOptions.InternalCall)]
    public static extern ulong ReadMsr(uint register);

    [RuntimeImport("*", "WriteMsr"), MethodImpl(MethodImplOptions.InternalCall)]
    public static extern void WriteMsr(uint register, ulong value);

    [RuntimeImport("*", "ReadTimestamp"), MethodImpl(MethodImplOptions.InternalCall)]
    public static extern ulong ReadTimestamp();

    /// <summary>CPUID; <paramref name="values"/> takes EAX, EBX, ECX and EDX.</summary>
    [RuntimeImport("*", "Cpuid"), MethodImpl(MethodImplOptions.InternalCall)]
    public static extern void Cpuid(uint leaf, uint subleaf, uint* values);

    /// <summary>IN from a port with five registers, 8 bytes each: RAX, RBX, RCX, RDX, RSI; the first three come back.</summary>
    [RuntimeImport("*", "HostCall"), MethodImpl(MethodImplOptions.InternalCall)]
    public static extern void HostCall(ulong* registers);

    /// <summary>Calls Hyper-V's page with control, input and output values.</summary>
    [RuntimeImport("*", "Hypercall"), MethodImpl(MethodImplOptions.InternalCall)]
    public static extern ulong Hypercall(ulong page, ulong control, ulong input, ulong output);

    [RuntimeImport("*", "MemoryFence"), MethodImpl(MethodImplOptions.InternalCall)]
    public static extern void MemoryFence();

    [RuntimeImport("*", "Undefined"), MethodImpl(MethodImplOptions.InternalCall)]
    public static extern void Undefined();

    [RuntimeImport("*", "Pause"), MethodImpl(MethodImplOptions.InternalCall)]
    public static extern void Pause();

    [RuntimeImport("*", "InvalidatePage"), MethodImpl(MethodImplOptions.InternalCall)]
    public static extern void InvalidatePage(ulong address);

    /// <summary>The word that GS points to: see <see cref="Processors.Current"/>.</summary>
    [RuntimeImport("*", "ReadLocal"), MethodImpl(MethodImplOptions.InternalCall)]
    public static extern ulong ReadLocal();

    /// <summary>A word that another processor may be writing.</summary>
    [RuntimeImport("*", "Load32"), MethodImpl(MethodImplOptions.InternalCall)]
    public static extern uint Load(uint* where);

    [RuntimeImport("*", "Load64"), MethodImpl(MethodImplOptions.InternalCall)]
    public static extern ulong Load(ulong* where);

    /// <summary>XCHG: what was there.</summary>
    [RuntimeImport("*", "Exchange32"), MethodImpl(MethodImplOptions.InternalCall)]
    public static extern uint Exchange(uint* where, uint value);

    [RuntimeImport("*", "Exchange64"), MethodImpl(MethodImplOptions.InternalCall)]
    public static extern ulong Exchange(ulong* where, ulong value);

    /// <summary>LOCK XADD: what was there.</summary>
    [RuntimeImport("*", "AddExchange32"), MethodImpl(MethodImplOptions.InternalCall)]
    public static extern uint AddExchange(uint* where, uint value);

    /// <summary>LOCK CMPXCHG: what was there; <paramref name="value"/> is there now if that was <paramref name="expected"/>.</summary>
    [RuntimeImport("*", "CompareExchange32"), MethodImpl(MethodImplOptions.InternalCall)]
    public static extern uint CompareExchange(uint* where, uint value, uint expected);

    [RuntimeImport("*", "FillWords"), MethodImpl(MethodImplOptions.InternalCall)]
    public static extern void FillWords(void* start, ulong value, ulong words);

    [RuntimeImport("*", "InterruptStubs"), MethodImpl(MethodImplOptions.InternalCall)]
    private static extern void InterruptStubs();

    [RuntimeImport("*", "StackGuard"), MethodImpl(MethodImplOptions.InternalCall)]
    private static extern void StackGuard();

    [RuntimeImport("*", "ImageStart"), MethodImpl(MethodImplOptions.InternalCall)]
    private static extern void ImageStartSymbol();

    [RuntimeImport("*", "TextEnd"), MethodImpl(MethodImplOptions.InternalCall)]
    private static extern void TextEndSymbol();

    [RuntimeImport("*", "ImageEnd"), MethodImpl(MethodImplOptions.InternalCall)]
    private static extern void ImageEndSymbol();

    [RuntimeImport("*", "Trampoline"), MethodImpl(MethodImplOptions.InternalCall)]
    private static extern void TrampolineSymbol();

    [RuntimeImport("*", "ApplicationStack"), MethodImpl(MethodImplOptions.InternalCall)]
    private static extern void ApplicationStackSymbol();

    /// <summary>What a further processor begins with, to be copied below 1 MiB: <see cref="TrampolineSize"/> bytes.</summary>
    public static ulong Trampoline => (ulong)(delegate*<void>)&TrampolineSymbol;

    public const int TrampolineSize = 56;

    /// <summary>Where the stack of the processor that is being started is left for it; it takes it away.</summary>
    public static ulong* ApplicationStack => (ulong*)(delegate*<void>)&ApplicationStackSymbol;

    /// <summary>The first of the entries of the 256 vectors, 16 bytes each.</summary>
    public static ulong Entries => (ulong)(delegate*<void>)&InterruptStubs;

    /// <summary>The page below the first stack.</summary>
    public static ulong FirstStackGuard => (ulong)(delegate*<void>)&StackGuard;

    /// <summary>Where the image begins.</summary>
    public static ulong ImageStart => (ulong)(delegate*<void>)&ImageStartSymbol;

    /// <summary>Where its code ends and its data begins.</summary>
    public static ulong TextEnd => (ulong)(delegate*<void>)&TextEndSymbol;

    /// <summary>Where it ends in memory.</summary>
    public static ulong ImageEnd => (ulong)(delegate*<void>)&ImageEndSymbol;
}
