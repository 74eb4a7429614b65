using System.Text;
using Aerostat.Memory;
using Aerostat.Processors;
using Aerostat.X86;

namespace Aerostat.Machine;

/// <summary>What is known of a vCPU that cannot go on, as lines for people.</summary>
internal static class CrashReport
{
    private const ulong EferLma = 1 << 10;
    private static readonly string[] s_names = ["RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", "R8 ", "R9 ", "R10", "R11", "R12", "R13", "R14", "R15"];
    private static readonly string[] s_segments = ["ES", "CS", "SS", "DS", "FS", "GS"];

    private static readonly string[] s_exceptions =
    [
        "#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "9", "#TS", "#NP", "#SS", "#GP", "#PF", "15", "#MF", "#AC", "#MC", "#XM", "#VE", "#CP",
    ];

    /// <summary>Says what <paramref name="exit"/> means. The first line says how it began. On the vCPU's thread.</summary>
    public static string Describe(IVirtualProcessor processor, ProcessorExit exit) =>
        exit.Reason == ExitReason.Shutdown ? TripleFault(processor) : Describe(processor.Index, exit);

    // The first event is what somebody has to look for: what the registers show is where the processor gave up.
    private static string TripleFault(IVirtualProcessor processor)
    {
        IReadOnlyList<DeliveredEvent> events = processor.FaultsBeforeShutdown;
        if (events.Count == 0)
            return $"vCPU {processor.Index}: triple fault (this accelerator does not tell which exception came first; the translator does)";
        StringBuilder text = new($"vCPU {processor.Index}: triple fault that began with {Name(events[0])} at CS:RIP={events[0].Cs:x4}:{events[0].Rip:x16}");
        bool doubled = false;
        for (int i = 1; i < events.Count; i++)
        {
            // Long runs of benign exceptions say the same again and again.
            if (i is > 6 && i < events.Count - 3)
                continue;
            bool isDouble = events[i] is { Origin: EventOrigin.Exception, Vector: Vector.DoubleFault };
            text.Append(isDouble ? $"\n  so the processor raised {Name(events[i])}"
                : doubled ? $"\n  whose delivery raised {Name(events[i])}: shutdown"
                : $"\n  its delivery raised {Name(events[i])}");
            doubled |= isDouble;
        }
        return text.ToString();
    }

    private static string Name(DeliveredEvent what)
    {
        string name = what.Origin switch
        {
            EventOrigin.Exception => what.Vector < s_exceptions.Length ? s_exceptions[what.Vector] : $"exception {what.Vector}",
            EventOrigin.Nmi => "an NMI",
            EventOrigin.ExternalInterrupt => $"interrupt 0x{what.Vector:x2}",
            _ => $"INT 0x{what.Vector:x2}",
        };
        return name + (what.Error is { } error ? $" (error 0x{error:x}{(what.FaultAddress is { } at ? $", CR2={at:x16}" : "")})" : "");
    }

    private static string Describe(int vcpu, ProcessorExit exit) => exit.Reason switch
    {
        ExitReason.FailedEntry => $"vCPU {vcpu}: the processor refused to enter the guest (error 0x{exit.Detail:x})",
        ExitReason.InternalError => $"vCPU {vcpu}: the host's hypervisor could not go on with the guest (error 0x{exit.Detail:x})",
        _ => $"vCPU {vcpu}: exit '{exit.Reason}' (0x{exit.Detail:x}), which nothing asked for",
    };

    /// <summary>One line: where a vCPU is. On its thread.</summary>
    public static string Summarize(IVirtualProcessor processor)
    {
        ProcessorState s = processor.GetState();
        return $"vCPU {processor.Index}: {s.Activity}, CS:RIP={s.Segments[1].Selector:x4}:{s.Rip:x16} RSP={s.Gpr[4]:x16} RFLAGS={s.Rflags:x} CR0={s.Cr0:x8} CR3={s.Cr3:x}";
    }

    /// <summary>Registers, the bytes at RIP, and the last branches. On the vCPU's thread.</summary>
    public static string Write(IVirtualProcessor processor, GuestMemory memory)
    {
        ProcessorState s = processor.GetState();
        StringBuilder text = new();
        for (int i = 0; i < 16; i++)
            text.Append($"{s_names[i]}={s.Gpr[i]:x16}{(i % 4 == 3 ? '\n' : ' ')}");
        text.Append($"RIP={s.Rip:x16} RFLAGS={s.Rflags:x8} {s.Activity}{(s.InterruptShadow ? " shadow" : "")}{(s.NmiBlocked ? " nmi-blocked" : "")}\n");
        for (int i = 0; i < 6; i++)
            text.Append(Segment(s_segments[i], s.Segments[i]));
        text.Append(Segment("TR", s.Tr)).Append(Segment("LD", s.Ldtr));
        text.Append($"GDT={s.Gdtr.Base:x16} {s.Gdtr.Limit:x4}  IDT={s.Idtr.Base:x16} {s.Idtr.Limit:x4}\n");
        text.Append($"CR0={s.Cr0:x8} CR2={s.Cr2:x16} CR3={s.Cr3:x16} CR4={s.Cr4:x8} EFER={s.Efer:x} XCR0={s.Xcr0:x}\n");
        text.Append($"DR0={s.Dr[0]:x16} DR1={s.Dr[1]:x16} DR2={s.Dr[2]:x16} DR3={s.Dr[3]:x16} DR6={s.Dr[6]:x8} DR7={s.Dr[7]:x8}\n");
        AppendCode(text, s, memory);
        int shown = 0;
        foreach ((ulong from, ulong to) in processor.LastBranches)
        {
            if (shown++ == 16)
                break;
            text.Append($"{(shown == 1 ? "last branches, newest first:\n" : "")}  {from:x16} -> {to:x16}\n");
        }
        return text.ToString().TrimEnd();
    }

    private static string Segment(string name, SegmentState s) =>
        $"{name} ={s.Selector:x4} base {s.Base:x16} limit {s.Limit:x8} attributes {s.Attributes:x5}\n";

    private static void AppendCode(StringBuilder text, ProcessorState s, GuestMemory memory)
    {
        const int Count = 16;
        ulong linear = s.Rip + ((s.Efer & EferLma) != 0 && (s.Segments[1].Attributes & 0x2000) != 0 ? 0 : s.Segments[1].Base);
        text.Append($"code at {linear:x}:");
        for (ulong i = 0; i < Count; i++)
        {
            byte[] one = new byte[1];
            if (PageWalk.Translate(s, memory, linear + i) is not { } physical || !memory.TryRead(new(physical), one))
            {
                text.Append(i == 0 ? " not mapped" : " --");
                break;
            }
            text.Append($" {one[0]:x2}");
        }
        text.Append('\n');
    }
}
