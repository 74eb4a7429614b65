using System.Runtime;
using System.Runtime.CompilerServices;

namespace Aerostat.Guest.Kernel;

/// <summary>The machine's processors: starts them, and has them do work (Intel SDM vol. 3, section 9.4: INIT and SIPI through the local APIC).</summary>
internal static unsafe class Processors
{
    public const int Most = 256;

    private const uint GsBase = 0xC000_0101;
    private const int StackOrder = 4, DataOrder = 2;
    private const ulong TrampolinePage = 0x8000;
    private const ulong AfterInit = 10_000_000, Again = 20_000_000, Patience = 2_000_000_000;

    private static Table all;
    private static ProcessorData first;

    private struct Table
    {
        public fixed ulong Data[Most];
    }

    /// <summary>Those that run.</summary>
    public static uint Count { get; private set; }

    /// <summary>What this processor has of its own.</summary>
    public static ProcessorData* Current => (ProcessorData*)Processor.ReadLocal();

    public static ProcessorData* At(uint index) => index < Count ? (ProcessorData*)all.Data[index] : null;

    /// <summary>Makes the processor that we run on the first one. Locks work from here on.</summary>
    public static void Initialize()
    {
        fixed (ProcessorData* data = &first)
        {
            data->StackStart = Processor.FirstStackGuard + PageAllocator.PageSize;
            data->StackEnd = Processor.ImageEnd;
            data->Ready = 1;
            Adopt(data);
        }
    }

    /// <summary>Starts the others, one after the other; what does not start is told of and left out.</summary>
    public static void StartOthers(AcpiTables acpi, uint most)
    {
        first.ApicId = LocalApic.Id;
        if (acpi.Processors < 2 || most < 2)
            return;
        if (!BootInformation.IsUsable(TrampolinePage))
        {
            Console.WriteLine("processors: no page to start them from; one is used");
            return;
        }
        Internal.Runtime.CompilerHelpers.Bulk.Move((void*)TrampolinePage, (void*)Processor.Trampoline, Processor.TrampolineSize);
        for (int i = 0; i < acpi.Processors; i++)
            if (acpi.ProcessorId(i) != first.ApicId)
                LocalApic.SendInit(acpi.ProcessorId(i));
        WaitFor(null, AfterInit);
        for (int i = 0; i < acpi.Processors && Count < most && Count < Most; i++)
            if (acpi.ProcessorId(i) != first.ApicId)
                Start(acpi.ProcessorId(i));
        Console.Write("processors: ");
        Console.Write((ulong)Count);
        Console.WriteLine(LocalApic.IsX2 ? " run, x2APIC" : " run");
    }

    /// <summary>Has every processor do its part, and waits until all are done. For the first one to call.</summary>
    public static void RunOnAll(ProcessorWork work)
    {
        for (uint i = 1; i < Count; i++)
        {
            ProcessorData* data = At(i);
            data->Begun = 0;
            Processor.Exchange(&data->Work, Unsafe.As<ProcessorWork, ulong>(ref work));
            LocalApic.SendInterrupt(data->ApicId, LocalApic.WorkVector);
        }
        work.Run(0, Count);
        for (uint i = 1; i < Count; i++)
        {
            ProcessorData* data = At(i);
            ulong begun = Processor.ReadTimestamp();
            while (Processor.Load(&data->Work) != 0)
            {
                Processor.Pause();
                if (data->Begun == 0 && Processor.ReadTimestamp() - begun > SpinLock.Limit)
                    Panic.Stop("a processor does not take its work");
            }
        }
    }

    [RuntimeExport("KernelApplicationMain")]
    private static void ApplicationMain(ProcessorData* data)
    {
        Adopt(data);
        LocalApic.Enable();
        data->Ready = 1;
        while (true)
        {
            Processor.DisableInterrupts();
            ulong work = Processor.Load(&data->Work);
            if (work == 0)
            {
                Processor.EnableAndHalt();
                continue;
            }
            Processor.EnableInterrupts();
            data->Begun = 1;
            Unsafe.As<ulong, ProcessorWork>(ref work).Run(data->Index, Count);
            data->Done++;
            Processor.Exchange(&data->Work, 0UL);
        }
    }

    private static void Adopt(ProcessorData* data)
    {
        data->Self = data;
        Processor.WriteMsr(GsBase, (ulong)data);
        if (data->Index == 0)
            all.Data[Count++] = (ulong)data;
        InterruptTable.Load(data);
    }

    private static void Start(uint apicId)
    {
        ulong memory = PageAllocator.Allocate(DataOrder), stack = PageAllocator.Allocate(StackOrder);
        if (memory == 0 || stack == 0)
        {
            Console.WriteLine("processors: no memory for another one");
            return;
        }
        Processor.FillWords((void*)memory, 0, (ulong)PageAllocator.PageSize / 8 << DataOrder);
        ProcessorData* data = (ProcessorData*)memory;
        data->Index = Count;
        data->ApicId = apicId;
        data->StackStart = stack + PageAllocator.PageSize;
        data->StackEnd = stack + ((ulong)PageAllocator.PageSize << StackOrder);
        PageTables.MakeAbsent(stack);
        ulong* top = (ulong*)(data->StackEnd - 8);
        *top = memory;
        all.Data[Count] = memory;
        Processor.Exchange(Processor.ApplicationStack, (ulong)top);
        LocalApic.SendStartup(apicId, (byte)(TrampolinePage >> 12));
        if (!WaitFor(data, Again))
        {
            LocalApic.SendStartup(apicId, (byte)(TrampolinePage >> 12));
            WaitFor(data, Patience);
        }
        // One that has its stack is on its way.
        if (data->Ready == 0 && Processor.Exchange(Processor.ApplicationStack, 0UL) == 0 && !WaitFor(data, Patience))
            Panic.Stop("a processor was lost while it started");
        if (data->Ready != 0)
        {
            Count++;
            return;
        }
        Console.Write("processors: the one with APIC id ");
        Console.Write((ulong)apicId);
        Console.WriteLine(" does not start");
    }

    // Until a processor is ready, and not for ever.
    private static bool WaitFor(ProcessorData* data, ulong nanoseconds)
    {
        ulong begun = Clock.Nanoseconds;
        while (data is null || data->Ready == 0)
        {
            if (Clock.Nanoseconds - begun > nanoseconds)
                return false;
            Processor.Pause();
        }
        return true;
    }
}
