using Aerostat.Cpu;
using Aerostat.Hosting;
using Aerostat.Memory;
using Aerostat.Processors;
using Xunit;
using static Iced.Intel.AssemblerRegisters;

namespace Aerostat.Kvm.Tests;

/// <summary>The processors that share a seam, and so their tests.</summary>
internal static class ProcessorKinds
{
    public static TheoryData<string> All => IsNested ? ["kvm"] : ["interpreter", "translator", "kvm"];

    /// <summary>Opens one around memory; skips the test, with the reason, where it cannot be used.</summary>
    public static IHypervisor Open(string kind, GuestMemory memory, KvmOptions? kvm = null)
    {
        SkipIfUnusable(kind);
        return kind switch
        {
            "kvm" => new KvmHypervisor(memory, kvm),
            "translator" => new TranslatorHypervisor(memory),
            _ => new InterpreterHypervisor(memory),
        };
    }

    /// <summary>
    /// Whether interrupts come at the very instruction, and limits are looked at. A KVM that emulates its guests is not so particular:
    /// it looks for a window now and then.
    /// </summary>
    public static bool IsExact(string kind) => kind != "kvm" || Accelerators.Kvm.Fast || IsNested;

    // "./dev test --nested": a real KVM, but on a software processor, which is too slow to be taken for one, and which makes everything else slow.
    private static string? Below => Environment.GetEnvironmentVariable("AEROSTAT_NESTED");

    private static bool IsNested => Below is not null;

    /// <summary>Skips what QEMU's emulation of AMD's virtualization lacks (QEMU, target/i386/tcg, svm_helper.c and excp_helper.c).</summary>
    public static void SkipIfNested(string kind, string lacks) => Assert.SkipWhen(kind == "kvm" && Below == "qemu", $"QEMU's emulation of SVM {lacks}");

    /// <summary>
    /// Skips where a guest does not even meet a data breakpoint that it sets itself: then the host's kernel has none, and nothing of ours has a part in that.
    /// </summary>
    public static void SkipWithoutDataBreakpoints(string kind)
    {
        if (kind != "kvm")
            return;
        SkipIfUnusable(kind);
        using SmallGuest g = new(kind);
        g.Long(a =>
        {
            a.mov(rax, 0x100000);
            a.mov(dr0, rax);
            // Breakpoint 0, globally: writes, four bytes.
            a.mov(rax, 0x000D_0402);
            a.mov(dr7, rax);
            a.mov(__dword_ptr[0x100000], 7);
            a.nop();
            a.hlt();
        });
        ProcessorExit exit = g.Run();
        bool met = exit.Reason == ExitReason.Halted && g.Processor.GetState().Rip == SmallGuest.Handlers + 16 + 1;
        Assert.SkipUnless(met, $"this host's KVM has no data breakpoints: a guest that set one in its own debug registers and wrote there went on ({Accelerators.Kvm.Explanation})");
    }

    /// <summary>Skips where INT3 does not get a guest into its handler without any debugger.</summary>
    public static void SkipWithoutInt3(string kind)
    {
        if (kind != "kvm")
            return;
        SkipIfUnusable(kind);
        using SmallGuest g = new(kind);
        g.Long(a =>
        {
            a.int3();
            a.hlt();
        });
        ProcessorExit exit = g.Run();
        ulong rip = g.Processor.GetState().Rip;
        Assert.SkipUnless(
            exit.Reason == ExitReason.Halted && rip == SmallGuest.Handlers + (3 * 16) + 1,
            $"this host's KVM cannot execute INT3 in a guest: without a debugger it ended as {exit.Reason} ({exit.Detail}) at 0x{rip:x} ({Accelerators.Kvm.Explanation})");
    }

    public static void SkipIfUnusable(string kind)
    {
        if (kind == "kvm")
            Assert.SkipUnless(Accelerators.Kvm.Usable, $"no KVM: {Accelerators.Kvm.Explanation}");
        if (kind == "translator")
            Assert.SkipUnless(TranslatorHypervisor.IsSupported, "the translator needs an x86-64 host");
    }
}

/// <summary>The outside world of a small guest: it remembers what the guest did and answers as the test wants.</summary>
internal sealed class World : IExitHandler
{
    public List<(string Kind, ulong Address, int Size, ulong Value)> Log { get; } = [];

    public Func<string, ulong, int, ulong> Input { get; set; } = (_, _, _) => ulong.MaxValue;

    public Action<ushort, uint>? PortWritten { get; set; }

    public Func<int>? Acknowledge { get; set; }

    public Dictionary<uint, ulong> Msrs { get; } = [];

    public ulong TaskPriority { get; set; }

    public bool LocalApicEnabled { get; set; } = true;

    public bool LeaveRequested { get; set; }

    public uint ReadPort(ushort port, int size)
    {
        uint value = (uint)Input("in", port, size);
        Log.Add(("in", port, size, value));
        return value;
    }

    public void WritePort(ushort port, int size, uint value)
    {
        Log.Add(("out", port, size, value));
        PortWritten?.Invoke(port, value);
    }

    public ulong ReadMmio(ulong address, int size)
    {
        ulong value = Input("read", address, size);
        Log.Add(("read", address, size, value));
        return value;
    }

    public void WriteMmio(ulong address, int size, ulong value) => Log.Add(("write", address, size, value));

    public bool ReadMsr(uint index, out ulong value) => Msrs.TryGetValue(index, out value);

    public bool WriteMsr(uint index, ulong value)
    {
        if (!Msrs.ContainsKey(index))
            return false;
        Msrs[index] = value;
        return true;
    }

    public int AcknowledgeInterrupt() => Acknowledge?.Invoke() ?? -1;

    /// <summary>What a hypercall does to the registers; null: there are none.</summary>
    public Action<IVirtualProcessor, ulong[]>? Called { get; set; }

    public bool Hypercall(IVirtualProcessor processor, Span<ulong> registers)
    {
        if (Called is null)
            return false;
        ulong[] copy = registers.ToArray();
        Called(processor, copy);
        copy.CopyTo(registers);
        return true;
    }
}
