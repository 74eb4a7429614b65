using System.Runtime;
using System.Runtime.CompilerServices;
using Aerostat.Guest.Drivers;

namespace Aerostat.Guest.Kernel;

/// <summary>The program of the standard image: finds devices, and takes commands from the console.</summary>
internal sealed unsafe class Shell
{
    private const int LineSize = 128;
    private const string Prompt = "> ";

    private readonly byte[] line = new byte[LineSize];
    private readonly Devices devices;
    private readonly StorageCommands storage;
    private ulong heldPages;
    // The first page of a chain: each begins with the address of the next.
    private ulong held;
    private int length;

    private Shell(Devices devices)
    {
        this.devices = devices;
        storage = new StorageCommands(devices.Storage, devices.Snapshots);
    }

    [RuntimeExport("GuestMain")]
    private static void Main()
    {
        if (BootInformation.HasOption("fault", out ulong kind))
            Faults.Make(kind);
        if (BootInformation.HasOption("exit", out ulong code))
            Power.DebugExit((byte)code);
        if (BootInformation.HasOption("off", out _))
            return;
        Devices devices = new(new KernelPlatform());
        devices.Find();
        new Shell(devices).Run();
    }

    private void Run()
    {
        Console.EnableInput();
        Console.Write(Prompt);
        while (true)
        {
            bool more = devices.Service();
            for (int c = Console.Read(); c >= 0; c = Console.Read())
            {
                if (c is not ('\r' or '\n'))
                {
                    if (length < LineSize)
                    {
                        line[length++] = (byte)c;
                        Console.Write((byte)c);
                    }
                    continue;
                }
                Console.Write('\n');
                if (!Execute())
                    return;
                length = 0;
                Console.Write(Prompt);
            }
            if (!more)
                Kernel.WaitForInterrupt();
        }
    }

    // False: the guest is to end.
    private bool Execute()
    {
        if (length == 0)
            return true;
        if (Is("off", out _))
            return false;
        if (Is("help", out _))
        {
            Console.WriteLine("balloon  mem  alloc MiB  free  check  poison  cpus  churn N  irqs  time  exit N  fault N  off");
            Console.WriteLine(StorageCommands.Help);
        }
        else if (Is("balloon", out _))
            ShowBalloons();
        else if (Is("mem", out _))
            ShowMemory();
        else if (Is("alloc", out ulong mebibytes))
            Hold(mebibytes << 8);
        else if (Is("free", out _))
            Free();
        else if (Is("check", out _))
            Check();
        else if (Is("poison", out _))
            ProcessorCommands.CheckFree();
        else if (Is("cpus", out _))
            ProcessorCommands.Show();
        else if (Is("churn", out ulong rounds))
            ProcessorCommands.Churn(rounds);
        else if (Is("irqs", out _))
            ShowInterrupts();
        else if (Is("time", out _))
            Figure("ms", Clock.Nanoseconds / 1_000_000, last: true);
        else if (Is("exit", out ulong code))
            Power.DebugExit((byte)code);
        else if (Is("fault", out ulong kind))
            Faults.Make(kind);
        else if (!storage.TryExecute(line, length))
            Console.WriteLine("no such command; 'help' lists them");
        return true;
    }

    private bool Is(string command, out ulong number)
    {
        number = 0;
        if (length < command.Length || (length > command.Length && line[command.Length] != ' '))
            return false;
        for (int i = 0; i < command.Length; i++)
            if (line[i] != command[i])
                return false;
        for (int i = command.Length + 1; i < length && line[i] is >= (byte)'0' and <= (byte)'9'; i++)
            number = (number * 10) + line[i] - '0';
        return true;
    }

    private void ShowBalloons()
    {
        for (int i = 0; i < devices.BalloonCount; i++)
        {
            BalloonDriver? balloon = devices.Balloon(i);
            if (balloon is null)
                continue;
            Console.Write("balloon: ");
            Console.Write(balloon.Transport);
            Console.Write(balloon.IsRunning ? " " : " (given up) ");
            Figure("pages", balloon.Pages);
            Figure("target", balloon.Target);
            Figure("refused", balloon.Refused);
            Figure("answers", balloon.Answers);
            Figure("oom", balloon.OomDeflated);
            Figure("resets", balloon.Resets);
            if (balloon.HintState is { } hints)
            {
                Figure("hint-runs", hints.Runs);
                Figure("hint-aborts", hints.Aborted);
                Figure("hinted-mib", hints.HintedBytes >> 20);
                Figure("hints-held", hints.Held);
            }
            if (balloon.ReportingState is { } reporting)
                Figure("reported-mib", reporting.ReportedBytes >> 20);
            Figure("settled", balloon.IsSettled ? 1u : 0u, last: true);
        }
        if (devices.BalloonCount == 0)
            Console.WriteLine("balloon: no device");
    }

    private static void ShowInterrupts()
    {
        Figure("timer", InterruptTable.CountOf(LocalApic.TimerVector));
        Figure("console", InterruptTable.CountOf(LocalApic.ConsoleVector));
        Figure("devices", InterruptTable.CountOf(LocalApic.DeviceVector), last: true);
    }

    private void ShowMemory()
    {
        Figure("total-pages", PageAllocator.TotalPages);
        Figure("free-pages", PageAllocator.FreePages);
        Figure("held-pages", heldPages);
        Figure("object-bytes", Heap.UsedBytes);
        Figure("pci-functions", devices.PciFunctions);
        for (int order = 0; order <= PageAllocator.MaxOrder; order++)
        {
            Console.Write((ulong)PageAllocator.FreeBlocks(order));
            Console.Write(order == PageAllocator.MaxOrder ? '\n' : '/');
        }
    }

    // As a program would: when there are no pages, the balloons are asked first. What is taken is written to.
    private void Hold(ulong pages)
    {
        ulong got = 0;
        while (got < pages)
        {
            ulong page = PageAllocator.Allocate(0);
            if (page == 0)
            {
                if (!devices.ReleaseForOom())
                    break;
                continue;
            }
            Processor.FillWords((void*)page, page, PageAllocator.PageSize / 8);
            *(ulong*)page = held;
            held = page;
            got++;
        }
        heldPages += got;
        Figure("got-pages", got);
        Figure("held-pages", heldPages, last: true);
    }

    private void Free()
    {
        while (held != 0)
        {
            ulong page = held;
            held = *(ulong*)page;
            PageAllocator.Free(page, 0);
        }
        heldPages = 0;
        Figure("held-pages", heldPages, last: true);
    }

    // Every word of what is held is what was written: nobody took or changed it.
    private void Check()
    {
        ulong wrong = ProcessorCommands.CountWrong(held);
        Figure("checked-pages", heldPages);
        Figure("wrong-words", wrong, last: true);
    }

    /// <summary>A figure of a command's answer.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    public static void Figure(string name, ulong value, bool last = false)
    {
        Console.Write(name);
        Console.Write('=');
        Console.Write(value);
        Console.Write(last ? '\n' : ' ');
    }
}
