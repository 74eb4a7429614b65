using System.Diagnostics;
using System.Runtime.InteropServices;
using Aerostat.Memory;
using Aerostat.Processors;
using Aerostat.X86;

namespace Aerostat.Kvm;

/// <summary>Which check of <see cref="KvmHost.Probe()"/> came out.</summary>
public enum KvmVerdict
{
    /// <summary>Usable, and guests run at the processor's own speed.</summary>
    Fast,
    /// <summary>Usable, but guest code is emulated: small guests only.</summary>
    Emulating,
    /// <summary>There is no /dev/kvm.</summary>
    NoDevice,
    /// <summary>/dev/kvm may not be opened by this user.</summary>
    NoPermission,
    /// <summary>The processor's virtualization is off or not passed on (VMX or SVM), so the kernel makes no virtual machine.</summary>
    NoVirtualization,
    /// <summary>The kernel speaks another version of the interface.</summary>
    WrongVersion,
    /// <summary>A capability that Aerostat cannot do without is missing.</summary>
    MissingCapability,
    /// <summary>A probe guest did not do what it should.</summary>
    Broken,
}

/// <summary>What became of the look at a host's KVM.</summary>
/// <param name="Verdict">Which check came out.</param>
/// <param name="Explanation">One line for people: what was found and, if it hinders, what to do.</param>
/// <param name="Capabilities">The record, when the device could be opened.</param>
/// <param name="MillionInstructionsPerSecond">Speed of the probe guest; 0 when it did not run.</param>
public sealed record KvmStatus(KvmVerdict Verdict, string Explanation, KvmCapabilities? Capabilities = null, double MillionInstructionsPerSecond = 0)
{
    /// <summary>Whether a machine can be made with it.</summary>
    public bool Usable => Verdict is KvmVerdict.Fast or KvmVerdict.Emulating;
}

/// <summary>The host's KVM, before there is a machine.</summary>
public static unsafe class KvmHost
{
    internal const string DevicePath = "/dev/kvm";

    // Host processors do more than a thousand; a kernel that interprets its guests does a few.
    private const double FastEnough = 100;
    private const int WarmUpLoops = 64, TimedLoops = 4_000;

    /// <summary>Tries everything that a machine needs, and times a small guest. Takes a few milliseconds, or some tens where guests are emulated.</summary>
    public static KvmStatus Probe() => Probe(DevicePath);

    internal static KvmStatus Probe(string path)
    {
        if (RuntimeInformation.ProcessArchitecture != Architecture.X64)
            return new(KvmVerdict.NoDevice, "this host is not x86-64");
        int device = KvmCalls.Open(path);
        switch (-device)
        {
            case KvmCalls.AccessDenied or KvmCalls.NotPermitted:
                return new(KvmVerdict.NoPermission, $"this user may not open {path}: join its group (usually kvm) and log in again");
            case KvmCalls.NoEntry:
                return new(KvmVerdict.NoDevice, $"this host has no {path}: {(VirtualizationFlag() is { } flag ? $"load kvm_{(flag == "vmx" ? "intel" : "amd")} (modprobe, as root)" : "its processor offers no VMX or SVM; in a virtual machine, turn nested virtualization on outside")}");
            case > 0:
                return new(KvmVerdict.NoDevice, $"{path} cannot be opened: {Marshal.GetPInvokeErrorMessage(-device)}{(VirtualizationFlag() is null ? "; the processor offers no VMX or SVM" : "")}");
        }
        try
        {
            int version = KvmCalls.Control(device, KvmIoctl.GetApiVersion);
            if (version != KvmIoctl.ApiVersion)
                return new(KvmVerdict.WrongVersion, $"{path} speaks version {version} of the interface, not {KvmIoctl.ApiVersion}: use a stock kernel");
            KvmCapabilities capabilities = KvmCapabilities.Read(device);
            if (capabilities.MissingRequirement is { } missing)
                return new(KvmVerdict.MissingCapability, $"this KVM has no {missing}: use a newer kernel", capabilities);
            int machine = KvmCalls.Control(device, KvmIoctl.CreateVm);
            if (machine < 0)
                return new(KvmVerdict.NoVirtualization, $"the kernel makes no virtual machine ({Marshal.GetPInvokeErrorMessage(-machine)}): turn VMX or SVM on in the firmware, or nested virtualization in the hypervisor outside", capabilities);
            KvmCalls.Close(machine);
            return Time(capabilities);
        }
        finally
        {
            KvmCalls.Close(device);
        }
    }

    // A loop in long mode with paging on, which is what operating systems run in: where the kernel takes pages of its own to run guests it
    // may emulate code that was not prepared for that, instruction by instruction.
    private static KvmStatus Time(KvmCapabilities capabilities)
    {
        try
        {
            using GuestMemory memory = new(new MemoryRegion(new(0), 1 << 20, "probe"));
            using KvmHypervisor hypervisor = new(memory);
            using IVirtualProcessor processor = hypervisor.CreateProcessor(new VirtualProcessorOptions
            {
                Index = 0,
                Count = 1,
                Cpuid = capabilities.SupportedCpuid,
                Clock = TimeProvider.System,
            });
            // mov ecx, LOOPS; 1: dec ecx; jnz 1b; hlt
            memory.Write(new(0x8000), [0xB9, 0, 0, 0, 0, 0xFF, 0xC9, 0x75, 0xFC, 0xF4]);
            memory.Write(new(0x1000), 0x2003UL);
            memory.Write(new(0x2000), 0x3003UL);
            memory.Write(new(0x3000), 0x83UL);
            ProbeHandler handler = new();
            TimeSpan Loop(int count)
            {
                memory.Write(new(0x8001), count);
                processor.SetState(LongMode(processor.GetState()));
                long start = Stopwatch.GetTimestamp();
                ProcessorExit exit = processor.Run(handler);
                TimeSpan taken = Stopwatch.GetElapsedTime(start);
                ProcessorState end = processor.GetState();
                return exit.Reason == ExitReason.Halted && end.Rip == 0x800A && (uint)end.Gpr[1] == 0
                    ? taken
                    : throw new InvalidOperationException($"a probe guest ended with {exit.Reason} (0x{exit.Detail:x}) at 0x{end.Rip:x}");
            }
            Loop(WarmUpLoops);
            TimeSpan best = Loop(TimedLoops);
            // A host that was busy for a moment is not a host that emulates.
            for (int i = 0; i < 2 && Rate(best) < FastEnough && best < TimeSpan.FromMilliseconds(5); i++)
                best = TimeSpan.FromTicks(Math.Min(best.Ticks, Loop(TimedLoops).Ticks));
            double rate = Rate(best);
            return rate >= FastEnough
                ? new(KvmVerdict.Fast, $"a probe guest runs at {rate:0} million instructions a second", capabilities, rate)
                : new(KvmVerdict.Emulating, $"this KVM emulates its guests: a probe guest runs at {rate:0.0} million instructions a second, so it is for small guests only", capabilities, rate);
        }
        catch (Exception e) when (e is KvmException or NotSupportedException or InvalidOperationException)
        {
            return new(KvmVerdict.Broken, e.Message, capabilities);
        }

        static double Rate(TimeSpan taken) => TimedLoops * 2 / Math.Max(taken.TotalMicroseconds, 0.1);
    }

    private static ProcessorState LongMode(ProcessorState state)
    {
        SegmentState data = new(0x10, 0, uint.MaxValue, 0xC093);
        for (int i = 0; i < 6; i++)
            state.Segments[i] = data;
        state.Segments[1] = new(0x08, 0, uint.MaxValue, 0xA09B);
        state.Cr0 = Cr0.Pe | Cr0.Pg | Cr0.Et | Cr0.Ne;
        state.Cr3 = 0x1000;
        state.Cr4 = Cr4.Pae;
        state.Efer = Efer.Lme | Efer.Lma;
        state.Rip = 0x8000;
        state.Gpr[4] = 0x7000;
        state.Rflags = 2;
        state.Activity = ActivityState.Running;
        return state;
    }

    private static string? VirtualizationFlag()
    {
        try
        {
            string flags = File.ReadLines("/proc/cpuinfo").FirstOrDefault(l => l.StartsWith("flags", StringComparison.Ordinal)) ?? "";
            return flags.Split(' ').FirstOrDefault(f => f is "vmx" or "svm");
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            return null;
        }
    }

    private sealed class ProbeHandler : IExitHandler
    {
        public ulong TaskPriority { get; set; }

        public bool LocalApicEnabled => true;

        public bool LeaveRequested => false;

        public uint ReadPort(ushort port, int size) => uint.MaxValue;

        public void WritePort(ushort port, int size, uint value)
        {
        }

        public ulong ReadMmio(ulong address, int size) => ulong.MaxValue;

        public void WriteMmio(ulong address, int size, ulong value)
        {
        }

        public bool ReadMsr(uint index, out ulong value)
        {
            value = 0;
            return false;
        }

        public bool WriteMsr(uint index, ulong value) => false;

        public int AcknowledgeInterrupt() => -1;

        public bool Hypercall(IVirtualProcessor processor, Span<ulong> registers) => false;
    }
}
