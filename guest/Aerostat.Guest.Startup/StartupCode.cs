using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace Aerostat.Guest.Startup;

/// <summary>
/// What a C# kernel needs and C# cannot say: from the loader's 32-bit mode to long mode, the entries of interrupts, and single instructions as functions in the
/// calling convention of System V (arguments RDI, RSI, RDX, RCX; result RAX).
/// </summary>
internal sealed class StartupCode
{
    private const uint DataSelector = 16, Code32Selector = 24;
    private const int Vectors = 256, StubSize = 16;

    // Exceptions for which the processor pushes an error code (Intel SDM vol. 3, table 6-1; AMD's 28 to 30 among them).
    private const uint WithErrorCode = (1u << 8) | (1u << 10) | (1u << 11) | (1u << 12) | (1u << 13) | (1u << 14) | (1u << 17) | (1u << 21) | (1u << 29) | (1u << 30);

    private readonly Dictionary<string, uint> symbols = [];
    private readonly MemoryStream bytes = new();

    private uint Here => ImageLayout.Code + (uint)bytes.Length;

    /// <summary>The code, to be put at <see cref="ImageLayout.Code"/>.</summary>
    public byte[] Bytes => bytes.ToArray();

    /// <summary>Names for the linker.</summary>
    public IReadOnlyDictionary<string, uint> Symbols => symbols;

    public static StartupCode Assemble()
    {
        StartupCode code = new();
        uint gdt = code.Data("StartGdt", 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF, 0x00CF_9B00_0000_FFFF);
        // Compiled code puts this behind buffers on the stack and looks whether it is still there. It finds mistakes; it is no secret.
        code.Data("__security_cookie", 0x5AFE_C0DE_D0C5_EF0A);
        uint gdtPointer = code.Data("StartGdtPointer", 31 | ((ulong)gdt << 16));
        uint long64 = code.Add("StartLong", 64, WriteLong);
        uint start = code.Add("StartCommon", 32, a => WriteToLongMode(a, gdtPointer, long64));
        code.Add("StartMultiboot", 32, a =>
        {
            a.mov(edi, eax);
            a.mov(esi, ebx);
            a.jmp(start);
        });
        code.Add("StartPvh", 32, a =>
        {
            a.xor(edi, edi);
            a.mov(esi, ebx);
            a.jmp(start);
        });
        uint applicationLong = code.Add("StartApplicationLong", 64, WriteApplicationLong);
        uint application32 = code.Add("StartApplication32", 32, a =>
        {
            a.mov(eax, DataSelector);
            a.mov(ds, eax);
            a.mov(es, eax);
            a.mov(ss, eax);
            a.mov(ebx, __dword_ptr[ImageLayout.PageTablesSlot]);
            WritePaging(a, gdtPointer, applicationLong);
        });
        code.AddTrampoline(gdt, application32);
        code.AddInterrupts();
        code.AddInstructions();
        return code;
    }

    private uint Data(string name, params ulong[] words)
    {
        Align(8);
        uint at = Here;
        symbols.Add(name, at);
        foreach (ulong word in words)
            bytes.Write(BitConverter.GetBytes(word));
        return at;
    }

    private uint Add(string name, int bitness, Action<Assembler> write)
    {
        Align(16);
        uint at = Here;
        symbols.Add(name, at);
        Assembler assembler = new(bitness);
        write(assembler);
        assembler.Assemble(new StreamCodeWriter(bytes), at);
        return at;
    }

    private void Align(int to)
    {
        while (Here % to != 0)
            bytes.WriteByte(0xCC);
    }

    // Intel SDM vol. 3, section 10.8.5. EDI and ESI are kept for the C# entry.
    private static void WriteToLongMode(Assembler a, uint gdtPointer, uint long64)
    {
        Label fill = a.CreateLabel(), link = a.CreateLabel();
        a.cli();
        a.cld();
        // One page of level 4, one of level 3, four of level 2: 4 GiB in pages of 2 MiB.
        a.mov(ebx, __dword_ptr[ImageLayout.PageTablesSlot]);
        a.lea(eax, __dword_ptr[ebx + 0x1003]);
        a.mov(__dword_ptr[ebx], eax);
        a.xor(ecx, ecx);
        a.Label(ref link);
        a.add(eax, 0x1000);
        a.mov(__dword_ptr[ebx + ecx * 8 + 0x1000], eax);
        a.inc(ecx);
        a.cmp(ecx, 4);
        a.jne(link);
        a.mov(eax, 0x83);
        a.xor(ecx, ecx);
        a.Label(ref fill);
        a.mov(__dword_ptr[ebx + ecx * 8 + 0x2000], eax);
        a.add(eax, 0x20_0000);
        a.inc(ecx);
        a.cmp(ecx, 2048);
        a.jne(fill);
        WritePaging(a, gdtPointer, long64);
    }

    // EBX: the page tables.
    private static void WritePaging(Assembler a, uint gdtPointer, uint long64)
    {
        a.mov(cr3, ebx);
        LongModeSwitch.Write(a, gdtPointer, long64, noExecute: true);
    }

    private static void WriteLong(Assembler a)
    {
        WriteSegments(a);
        a.mov(rsp, __qword_ptr[ImageLayout.StackSlot]);
        a.xor(ebp, ebp);
        a.mov(edi, edi);
        a.mov(esi, esi);
        a.call(__qword_ptr[ImageLayout.MainSlot]);
        Label end = a.CreateLabel();
        WriteEnd(a, end);
    }

    // A stack is taken by one processor only; one that comes when nobody waits for it any more finds none. Its top word is the argument.
    private static void WriteApplicationLong(Assembler a)
    {
        Label end = a.CreateLabel();
        WriteSegments(a);
        a.mov(rdx, __qword_ptr[ImageLayout.ApplicationStackSlot]);
        a.xchg(__qword_ptr[rdx], rax);
        a.test(rax, rax);
        a.jz(end);
        a.mov(rsp, rax);
        a.pop(rdi);
        a.xor(ebp, ebp);
        a.call(__qword_ptr[ImageLayout.ApplicationMainSlot]);
        WriteEnd(a, end);
    }

    // Leaves 0 in RAX.
    private static void WriteSegments(Assembler a)
    {
        a.mov(eax, DataSelector);
        a.mov(ds, eax);
        a.mov(es, eax);
        a.mov(ss, eax);
        a.xor(eax, eax);
        a.mov(fs, eax);
        a.mov(gs, eax);
    }

    private static void WriteEnd(Assembler a, Label end)
    {
        a.Label(ref end);
        a.cli();
        a.hlt();
        a.jmp(end);
    }

    // Where a further processor begins, in real mode with its page in CS (Intel SDM vol. 3, section 9.4.4.2): the kernel copies it to a page below 1 MiB.
    // From there to 32-bit code in the image: paging comes on only there, so that the page below 1 MiB need not be executable.
    private void AddTrampoline(uint gdt, uint application32)
    {
        const ushort PointerAt = 48;
        uint start = Add("Trampoline", 16, a =>
        {
            a.cli();
            a.cld();
            a.mov(ax, cs);
            a.mov(ds, ax);
            // LGDT m16&32, of which a 66 prefix takes all 32 bits.
            a.db(0x66, 0x0F, 0x01, 0x16);
            a.dw(PointerAt);
            a.mov(eax, cr0);
            a.or(al, 1);
            a.mov(cr0, eax);
            // JMP FAR ptr16:32.
            a.db(0x66, 0xEA);
            a.dd(application32);
            a.dw((ushort)Code32Selector);
        });
        if (Here > start + PointerAt)
            throw new InvalidOperationException("the trampoline has grown over its descriptor pointer");
        while (Here < start + PointerAt)
            bytes.WriteByte(0xCC);
        bytes.Write(BitConverter.GetBytes(31 | ((ulong)gdt << 16)));
    }

    private void AddInterrupts()
    {
        AssemblerRegister64[] saved = [rax, rcx, rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15];
        // The frame that C# sees: 15 registers, vector, error code, then what the processor pushed.
        uint common = Add("InterruptCommon", 64, a =>
        {
            for (int i = saved.Length; i-- > 0;)
                a.push(saved[i]);
            a.cld();
            a.mov(rdi, rsp);
            a.mov(rbp, rsp);
            a.sub(rsp, 512);
            a.and(rsp, -16);
            a.fxsave(__[rsp]);
            a.call(__qword_ptr[ImageLayout.InterruptSlot]);
            a.fxrstor(__[rsp]);
            a.mov(rsp, rbp);
            foreach (AssemblerRegister64 register in saved)
                a.pop(register);
            a.add(rsp, 16);
            a.iretq();
        });
        Align(16);
        symbols.Add("InterruptStubs", Here);
        for (int vector = 0; vector < Vectors; vector++)
        {
            uint at = Here;
            Assembler a = new(64);
            if (vector >= 32 || (WithErrorCode >> vector & 1) == 0)
                a.push(0);
            a.push(vector);
            a.jmp(common);
            a.Assemble(new StreamCodeWriter(bytes), at);
            Align(StubSize);
            if (Here - at != StubSize)
                throw new InvalidOperationException($"interrupt stub {vector} has {Here - at} bytes, not {StubSize}");
        }
    }

    private void AddInstructions()
    {
        Function("In8", a => { a.mov(edx, edi); a.xor(eax, eax); a.@in(al, dx); });
        Function("In16", a => { a.mov(edx, edi); a.xor(eax, eax); a.@in(ax, dx); });
        Function("In32", a => { a.mov(edx, edi); a.@in(eax, dx); });
        Function("Out8", a => { a.mov(edx, edi); a.mov(eax, esi); a.@out(dx, al); });
        Function("Out16", a => { a.mov(edx, edi); a.mov(eax, esi); a.@out(dx, ax); });
        Function("Out32", a => { a.mov(edx, edi); a.mov(eax, esi); a.@out(dx, eax); });
        Function("Halt", a => a.hlt());
        // STI holds interrupts off for one more instruction, so none is missed before HLT (Intel SDM vol. 2, STI).
        Function("EnableAndHalt", a => { a.sti(); a.hlt(); });
        Function("EnableInterrupts", a => a.sti());
        Function("DisableInterrupts", a => a.cli());
        Function("ReadFlags", a => { a.pushfq(); a.pop(rax); });
        Function("Pause", a => a.pause());
        Function("ReadFaultAddress", a => a.mov(rax, cr2));
        Function("ReadPageTables", a => a.mov(rax, cr3));
        Function("WritePageTables", a => a.mov(cr3, rdi));
        Function("InvalidatePage", a => a.invlpg(__[rdi]));
        Function("LoadInterruptTable", a => a.lidt(__[rdi]));
        Function("LoadTask", a => a.ltr(di));
        Function("LoadGlobalTable", a => a.lgdt(__[rdi]));
        Function("ReadStack", a => a.mov(rax, rsp));
        Function("ReadFrame", a => a.mov(rax, rbp));
        Function("ReadMsr", a => { a.mov(ecx, edi); a.rdmsr(); a.shl(rdx, 32); a.or(rax, rdx); });
        Function("WriteMsr", a => { a.mov(ecx, edi); a.mov(rax, rsi); a.mov(rdx, rsi); a.shr(rdx, 32); a.wrmsr(); });
        Function("ReadTimestamp", a => { a.rdtsc(); a.shl(rdx, 32); a.or(rax, rdx); });
        // RDI leaf, RSI subleaf, RDX where EAX, EBX, ECX and EDX go.
        Function("Cpuid", a =>
        {
            a.push(rbx);
            a.mov(r8, rdx);
            a.mov(eax, edi);
            a.mov(ecx, esi);
            a.cpuid();
            a.mov(__dword_ptr[r8], eax);
            a.mov(__dword_ptr[r8 + 4], ebx);
            a.mov(__dword_ptr[r8 + 8], ecx);
            a.mov(__dword_ptr[r8 + 12], edx);
            a.pop(rbx);
        });
        // RDI: EAX, EBX, ECX, EDX and ESI as 8 bytes each, there and back, for hosts that take their arguments in registers with IN.
        Function("HostCall", a =>
        {
            a.push(rbx);
            a.push(rdi);
            a.mov(rax, __qword_ptr[rdi]);
            a.mov(rbx, __qword_ptr[rdi + 8]);
            a.mov(rcx, __qword_ptr[rdi + 16]);
            a.mov(rdx, __qword_ptr[rdi + 24]);
            a.mov(rsi, __qword_ptr[rdi + 32]);
            a.xor(edi, edi);
            a.@in(eax, dx);
            a.pop(rdi);
            a.mov(__qword_ptr[rdi], rax);
            a.mov(__qword_ptr[rdi + 8], rbx);
            a.mov(__qword_ptr[rdi + 16], rcx);
            a.pop(rbx);
        });
        // RDI the hypercall page, RSI control, RDX input, RCX output: Hyper-V takes them in RCX, RDX and R8 (TLFS, 3.7.1).
        Function("Hypercall", a => { a.mov(rax, rdi); a.mov(r8, rcx); a.mov(rcx, rsi); a.call(rax); });
        Function("MemoryFence", a => a.mfence());
        Function("Undefined", a => a.ud2());
        // RDI where, RSI the new value: returns the old one.
        Function("Exchange32", a => { a.mov(eax, esi); a.xchg(__dword_ptr[rdi], eax); });
        Function("AddExchange32", a => { a.mov(eax, esi); a.@lock.xadd(__dword_ptr[rdi], eax); });
        // RDI where, RSI the new value, RDX the one that is expected: returns the one that was there.
        Function("CompareExchange32", a => { a.mov(eax, edx); a.@lock.cmpxchg(__dword_ptr[rdi], esi); });
        Function("Load32", a => a.mov(eax, __dword_ptr[rdi]));
        Function("Load64", a => a.mov(rax, __qword_ptr[rdi]));
        Function("Exchange64", a => { a.mov(rax, rsi); a.xchg(__qword_ptr[rdi], rax); });
        // The first word of what GS points to.
        Function("ReadLocal", a => a.mov(rax, __qword_ptr.gs[0]));
        // RDI what to fill, RSI the value, RDX how many words of 8 bytes.
        Function("FillWords", a => { a.mov(rax, rsi); a.mov(rcx, rdx); a.rep.stosq(); });

        // Helpers with the compiler's own convention (dotnet/runtime docs/design/coreclr/botr/clr-abi.md): there is no collector, so a barrier is a store.
        Function("RhpAssignRef", a => a.mov(__qword_ptr[rdi], rsi));
        Function("RhpCheckedAssignRef", a => a.mov(__qword_ptr[rdi], rsi));
        Function("RhpByRefAssignRef", a => { a.mov(rcx, __qword_ptr[rsi]); a.mov(__qword_ptr[rdi], rcx); a.add(rdi, 8); a.add(rsi, 8); });
        // The compiler's own start-up, which nobody calls, names these two.
        Function("RhpReversePInvoke", _ => { });
        Function("RhpReversePInvokeReturn", _ => { });
        Function("memset", a => { a.mov(r8, rdi); a.mov(eax, esi); a.mov(rcx, rdx); a.rep.stosb(); a.mov(rax, r8); });
        Function("memcpy", a => { a.mov(rax, rdi); a.mov(rcx, rdx); a.rep.movsb(); });
        Function("memmove", a =>
        {
            Label forward = a.CreateLabel();
            a.mov(rax, rdi);
            a.mov(rcx, rdx);
            a.cmp(rdi, rsi);
            a.jbe(forward);
            a.std();
            a.lea(rdi, __[rdi + rcx - 1]);
            a.lea(rsi, __[rsi + rcx - 1]);
            a.rep.movsb();
            a.cld();
            a.ret();
            a.Label(ref forward);
            a.rep.movsb();
        });
    }

    private void Function(string name, Action<Assembler> body) => Add(name, 64, a =>
    {
        body(a);
        a.ret();
    });
}
