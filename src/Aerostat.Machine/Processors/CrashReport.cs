using System.Buffers.Binary;
using System.Text;
using Aerostat.Memory;
using Aerostat.Processors;

namespace Aerostat.Machine;

/// <summary>What is known of a vCPU that cannot go on, as lines for people.</summary>
internal static class CrashReport
{
    private const ulong Cr0Paging = 1UL << 31, Cr0Protection = 1, Cr4Pae = 1 << 5, Cr4La57 = 1 << 12, EferLma = 1 << 10;
    private const ulong AddressMask = 0x000F_FFFF_FFFF_F000;
    private static readonly string[] s_names = ["RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", "R8 ", "R9 ", "R10", "R11", "R12", "R13", "R14", "R15"];
    private static readonly string[] s_segments = ["ES", "CS", "SS", "DS", "FS", "GS"];

    /// <summary>Says what <paramref name="exit"/> means.</summary>
    public static string Describe(int vcpu, ProcessorExit exit) => exit.Reason switch
    {
        ExitReason.Shutdown => $"vCPU {vcpu}: triple fault",
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
            if (Translate(s, memory, linear + i) is not { } physical || !memory.TryRead(new(physical), one))
            {
                text.Append(i == 0 ? " not mapped" : " --");
                break;
            }
            text.Append($" {one[0]:x2}");
        }
        text.Append('\n');
    }

    // A page walk without rights or side effects (Intel SDM vol. 3 chapter 4).
    private static ulong? Translate(ProcessorState s, GuestMemory memory, ulong linear)
    {
        if ((s.Cr0 & Cr0Protection) == 0 || (s.Cr0 & Cr0Paging) == 0)
            return linear & 0xFFFF_FFFF;
        if ((s.Cr4 & Cr4Pae) == 0)
        {
            if (ReadEntry(memory, (s.Cr3 & 0xFFFF_F000) + (((linear >> 22) & 0x3FF) * 4), 4) is not { } directory)
                return null;
            if ((directory & 0x80) != 0)
                return (directory & 0xFFC0_0000) | (linear & 0x3F_FFFF);
            return ReadEntry(memory, (directory & 0xFFFF_F000) + (((linear >> 12) & 0x3FF) * 4), 4) is { } entry
                ? (entry & 0xFFFF_F000) | (linear & 0xFFF)
                : null;
        }
        bool isLong = (s.Efer & EferLma) != 0;
        ulong table = isLong ? s.Cr3 & AddressMask : s.Cr3 & 0xFFFF_FFE0;
        int top = !isLong ? 30 : (s.Cr4 & Cr4La57) != 0 ? 48 : 39;
        for (int shift = top; ; shift -= 9)
        {
            ulong index = (linear >> shift) & (!isLong && shift == 30 ? 3UL : 0x1FF);
            if (ReadEntry(memory, table + (index * 8), 8) is not { } entry)
                return null;
            ulong mask = (1UL << shift) - 1;
            if (shift == 12 || (shift <= 30 && (isLong || shift == 21) && (entry & 0x80) != 0))
                return (entry & AddressMask & ~mask) | (linear & mask);
            table = entry & AddressMask;
        }
    }

    private static ulong? ReadEntry(GuestMemory memory, ulong address, int size)
    {
        Span<byte> bytes = stackalloc byte[8];
        bytes.Clear();
        if (!memory.TryRead(new(address), bytes[..size]))
            return null;
        ulong entry = BinaryPrimitives.ReadUInt64LittleEndian(bytes);
        return (entry & 1) != 0 ? entry : null;
    }
}
