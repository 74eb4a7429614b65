using System.Runtime.InteropServices;
using Aerostat.Processors;

namespace Aerostat.Kvm;

/// <content>
/// The table of exits, indexed by KVM's exit reason. An entry either serves the exit with the help of the exit handler, and the guest goes
/// on, or makes of it what Run returns.
/// </content>
internal sealed unsafe partial class KvmProcessor
{
    private delegate bool ExitServer(KvmProcessor processor, IExitHandler handler, out ProcessorExit exit);

    private static readonly (string Name, ExitServer Serve)?[] s_exits = CreateTable();

    private readonly long[] exitCounts = new long[64];
    // A vector was handed over and the guest has not been entered since.
    private bool injected;

    private static (string Name, ExitServer Serve)?[] CreateTable()
    {
        (string Name, ExitServer Serve)?[] table = new (string, ExitServer)?[32];
        table[(int)KvmExit.Unknown] = ("unknown", Unknown);
        table[(int)KvmExit.Io] = ("io", Io);
        table[(int)KvmExit.Mmio] = ("mmio", Mmio);
        table[(int)KvmExit.Debug] = ("debug", Debug);
        table[(int)KvmExit.Halt] = ("halt", Halt);
        table[(int)KvmExit.InterruptWindowOpen] = ("interrupt-window", Nothing);
        table[(int)KvmExit.Shutdown] = ("shutdown", Shutdown);
        table[(int)KvmExit.FailEntry] = ("failed-entry", FailedEntry);
        table[(int)KvmExit.Interrupted] = ("interrupted", Nothing);
        table[(int)KvmExit.SetTpr] = ("set-tpr", Nothing);
        table[(int)KvmExit.InternalError] = ("internal-error", InternalError);
        table[(int)KvmExit.EndOfInterrupt] = ("end-of-interrupt", EndOfInterrupt);
        table[(int)KvmExit.DirtyRingFull] = ("dirty-ring-full", DirtyRingFull);
        table[(int)KvmExit.ReadMsr] = ("msr-read", ReadMsr);
        table[(int)KvmExit.WriteMsr] = ("msr-write", WriteMsr);
        return table;
    }

    private static string ExitName(int reason) => reason < s_exits.Length && s_exits[reason] is { } entry ? entry.Name : $"exit-{reason}";

    private bool Dispatch(IExitHandler handler, out ProcessorExit exit)
    {
        uint reason = run->ExitReason;
        exitCounts[Math.Min(reason, (uint)exitCounts.Length - 1)]++;
        incomplete = false;
        injected = false;
        if (reason < (uint)s_exits.Length && s_exits[reason] is { } entry)
            return entry.Serve(this, handler, out exit);
        exit = new ProcessorExit(ExitReason.Unknown, reason);
        return true;
    }

    /// <summary>Serves an exit as if KVM_RUN had come back with it, for reasons that no guest can be made to have. The vCPU is not in the guest.</summary>
    internal bool Serve(uint reason, ulong hardwareReason, IExitHandler handler, out ProcessorExit exit)
    {
        run->ExitReason = reason;
        run->HardwareReason = hardwareReason;
        return Dispatch(handler, out exit);
    }

    private static bool Nothing(KvmProcessor processor, IExitHandler handler, out ProcessorExit exit)
    {
        exit = default;
        return false;
    }

    // String instructions come with several items at once.
    private static bool Io(KvmProcessor processor, IExitHandler handler, out ProcessorExit exit)
    {
        KvmRun* run = processor.run;
        processor.incomplete = true;
        exit = default;
        int size = run->IoSize;
        ushort port = run->IoPort;
        ulong bytes = (ulong)size * run->IoCount;
        if (size is not (1 or 2 or 4) || run->IoDataOffset > processor.runBytes || bytes > processor.runBytes - run->IoDataOffset)
        {
            exit = new ProcessorExit(ExitReason.InternalError, run->ExitReason);
            return true;
        }
        // SAFETY: just checked to be inside the shared pages.
        byte* data = (byte*)run + run->IoDataOffset;
        if (size == 4 && run->IoCount == 1)
        {
            if (run->IoIsOut == 0 ? handler.IsBackdoor(port) && processor.CallBackdoor(handler, port, (uint*)data) : port == KvmHypervisor.HypercallPortNumber && processor.Hypercall(handler))
                return false;
        }
        for (byte* end = data + bytes; data != end; data += size)
        {
            if (run->IoIsOut != 0)
                handler.WritePort(port, size, size switch { 1 => *data, 2 => *(ushort*)data, _ => *(uint*)data });
            else
            {
                uint value = handler.ReadPort(port, size);
                switch (size)
                {
                    case 1:
                        *data = (byte)value;
                        break;
                    case 2:
                        *(ushort*)data = (ushort)value;
                        break;
                    default:
                        *(uint*)data = value;
                        break;
                }
            }
        }
        return false;
    }

    /// <summary>
    /// IN from a port where the machine answers in registers. The kernel puts the four bytes into RAX when the guest is entered next; the others are
    /// changed here. Code that may not use the port gets here only where the kernel lets it (module parameter enable_vmware_backdoor).
    /// </summary>
    private bool CallBackdoor(IExitHandler handler, ushort port, uint* data)
    {
        if (!ReadRegisters(out KvmRegisters r, out KvmSpecialRegisters special))
            return false;
        Span<ulong> registers = General(r);
        if (!handler.CallBackdoor(port, special.Ss.Dpl, registers))
            return false;
        *data = (uint)registers[0];
        (r.Rcx, r.Rdx, r.Rbx, r.Rbp, r.Rsi, r.Rdi) = (registers[1], registers[2], registers[3], registers[5], registers[6], registers[7]);
        KvmException.Check(KvmCalls.Control(fd, KvmIoctl.SetRegisters, &r), "its registers");
        return true;
    }

    /// <summary>
    /// OUT to the port that stands for an instruction that calls the hypervisor. Other than with IN the kernel writes no register when it goes on, so all of RAX is
    /// the result's. It has yet to step over the instruction, and does so when the guest is entered next.
    /// </summary>
    private bool Hypercall(IExitHandler handler)
    {
        if (!ReadRegisters(out KvmRegisters r, out KvmSpecialRegisters special) || special.Ss.Dpl != 0)
            return false;
        Span<ulong> registers = General(r);
        if (!handler.Hypercall(this, registers))
            return false;
        (r.Rax, r.Rdx) = (registers[0], registers[2]);
        KvmException.Check(KvmCalls.Control(fd, KvmIoctl.SetRegisters, &r), "its registers");
        return true;
    }

    /// <inheritdoc/>
    public bool IsIn64BitMode
    {
        get
        {
            const ulong longModeActive = 1 << 10;
            KvmSpecialRegisters special;
            return KvmCalls.Control(fd, KvmIoctl.GetSpecialRegisters, &special) >= 0 && (special.Efer & longModeActive) != 0 && special.Cs.L != 0;
        }
    }

    private bool ReadRegisters(out KvmRegisters registers, out KvmSpecialRegisters special)
    {
        KvmRegisters r = default;
        KvmSpecialRegisters s = default;
        bool read = KvmCalls.Control(fd, KvmIoctl.GetRegisters, &r) >= 0 && KvmCalls.Control(fd, KvmIoctl.GetSpecialRegisters, &s) >= 0;
        (registers, special) = (r, s);
        return read;
    }

    // RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    private static ulong[] General(in KvmRegisters r) => [r.Rax, r.Rcx, r.Rdx, r.Rbx, r.Rsp, r.Rbp, r.Rsi, r.Rdi, r.R8, r.R9, r.R10, r.R11, r.R12, r.R13, r.R14, r.R15];

    private static bool Mmio(KvmProcessor processor, IExitHandler handler, out ProcessorExit exit)
    {
        KvmRun* run = processor.run;
        processor.incomplete = true;
        exit = default;
        ulong address = run->MmioAddress;
        int length = (int)Math.Min(run->MmioLength, 8);
        ulong data = run->MmioData;
        bool whole = length is 1 or 2 or 4 or 8;
        // Memory that is shown as a copy, because there are breakpoints in it.
        if (processor.memory.Contains(address, (ulong)length))
        {
            if (run->MmioIsWrite != 0)
                processor.memory.TryWrite(new(address), MemoryMarshal.AsBytes(new ReadOnlySpan<ulong>(in data))[..length]);
            else
            {
                ulong read = 0;
                processor.memory.TryRead(new(address), MemoryMarshal.AsBytes(new Span<ulong>(ref read))[..length]);
                run->MmioData = read;
            }
            return false;
        }
        if (run->MmioIsWrite != 0)
        {
            if (whole)
                handler.WriteMmio(address, length, length == 8 ? data : data & ((1UL << (length * 8)) - 1));
            else
                for (int i = 0; i < length; i++)
                    handler.WriteMmio(address + (ulong)i, 1, (byte)(data >> (i * 8)));
            return false;
        }
        ulong value = 0;
        if (whole)
            value = handler.ReadMmio(address, length);
        else
            for (int i = 0; i < length; i++)
                value |= (handler.ReadMmio(address + (ulong)i, 1) & 0xFF) << (i * 8);
        run->MmioData = value;
        return false;
    }

    private static bool ReadMsr(KvmProcessor processor, IExitHandler handler, out ProcessorExit exit)
    {
        processor.incomplete = true;
        exit = default;
        bool known = handler.ReadMsr(processor.run->MsrIndex, out ulong value);
        processor.run->MsrData = value;
        processor.run->MsrError = known ? (byte)0 : (byte)1;
        return false;
    }

    private static bool WriteMsr(KvmProcessor processor, IExitHandler handler, out ProcessorExit exit)
    {
        processor.incomplete = true;
        exit = default;
        processor.run->MsrError = handler.WriteMsr(processor.run->MsrIndex, processor.run->MsrData) ? (byte)0 : (byte)1;
        return false;
    }

    private static bool EndOfInterrupt(KvmProcessor processor, IExitHandler handler, out ProcessorExit exit)
    {
        exit = default;
        processor.localApics?.EndOfInterrupt?.Invoke(processor.run->EndedVector);
        return false;
    }

    private static bool DirtyRingFull(KvmProcessor processor, IExitHandler handler, out ProcessorExit exit)
    {
        exit = default;
        processor.slots.EmptyRings();
        return false;
    }

    // Whether something is pending already is looked at before the next entry, as for every halted processor.
    private static bool Halt(KvmProcessor processor, IExitHandler handler, out ProcessorExit exit)
    {
        processor.activity = ActivityState.Halted;
        exit = default;
        return false;
    }

    private static bool Debug(KvmProcessor processor, IExitHandler handler, out ProcessorExit exit) => processor.ReportDebug(out exit);

    private static bool Shutdown(KvmProcessor processor, IExitHandler handler, out ProcessorExit exit)
    {
        processor.activity = ActivityState.Shutdown;
        processor.faultsBeforeShutdown = [];
        exit = new ProcessorExit(ExitReason.Shutdown);
        return true;
    }

    private static bool FailedEntry(KvmProcessor processor, IExitHandler handler, out ProcessorExit exit)
    {
        exit = new ProcessorExit(ExitReason.FailedEntry, processor.run->HardwareReason);
        return true;
    }

    private static bool Unknown(KvmProcessor processor, IExitHandler handler, out ProcessorExit exit)
    {
        exit = new ProcessorExit(ExitReason.Unknown, processor.run->HardwareReason);
        return true;
    }

    private static bool InternalError(KvmProcessor processor, IExitHandler handler, out ProcessorExit exit)
    {
        if (processor.StumbledOverInt3(out ulong address))
            return processor.ReportInt3(address, out exit);
        exit = new ProcessorExit(ExitReason.InternalError, processor.run->InternalError);
        return true;
    }
}
