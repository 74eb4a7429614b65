using System.Buffers.Binary;
using System.Runtime.InteropServices;
using Aerostat.Memory;
using Aerostat.Processors;
using Aerostat.X86;

namespace Aerostat.Cpu.Tests;

/// <summary>
/// Runs instructions on a virtual processor as user code (CPL 3) of a small long-mode guest whose segments look like those of Linux. A case
/// ends in an exception: the INT3 after its bytes, or whatever it raises itself. Every gate leads to a HLT at CPL 0, so that the interrupted
/// state can be read from the registers and the exception frame. Works with any <see cref="IVirtualProcessor"/>.
/// </summary>
internal sealed unsafe partial class GuestRunner : IDisposable
{
    private const ulong Tables = 0x1000, WindowGpa = 0x100000, LowWindowGpa = 0x110000, CodeGpa = 0x120000, SystemGpa = 0x130000, AreaGpa = 0x140000, FarWindowGpa = 0x160000;

    /// <summary>Linear address of the supervisor pages: GDT, IDT, TSS, handlers, then two pages of stack.</summary>
    private const ulong System = 0x6000_0000, Gdt = System, Idt = System + 0x1000, Tss = System + 0x2000, Handlers = System + 0x3000, StackTop = System + 0x6000;

    private const uint UserData = 0xC0F3;

    private const uint ErrorVectors = 1 << 8 | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 14 | 1 << 17 | 1 << 21;

    private readonly GuestMemory _memory = new(new MemoryRegion(new GuestAddress(0), 4 << 20, "test"));
    private readonly IHypervisor _hypervisor;
    private readonly IVirtualProcessor _processor;
    private readonly ProcessorState _state;
    private readonly TestExitHandler _handler = new();
    private readonly Interpreter? _cpu;
    private readonly int[] _codeLength = new int[3];
    private int _bitness;

    public GuestRunner(Func<GuestMemory, IHypervisor> hypervisor, CpuidTable cpuid, bool watched = false)
    {
        var tables = new PageTables(_memory, Tables);
        const ulong user = PageTableEntry.W | PageTableEntry.U | PageTableEntry.A | PageTableEntry.D;
        tables.Map(Layout.Window, WindowGpa, Layout.WindowSize, user | PageTableEntry.Nx);
        tables.Map(Layout.LowWindow, LowWindowGpa, Layout.WindowSize, user | PageTableEntry.Nx);
        tables.Map(Layout.Code, CodeGpa, Layout.CodeSize, PageTableEntry.U | PageTableEntry.A);
        tables.Map(Layout.CodeAlias, CodeGpa, Layout.CodeSize, user | PageTableEntry.Nx);
        tables.Map(System, SystemGpa, 0x6000, PageTableEntry.W | PageTableEntry.A | PageTableEntry.D);
        tables.Map(Layout.FarWindow, FarWindowGpa, Layout.WindowSize, user | PageTableEntry.Nx);
        for (int area = 1; area < 3; area++)
        {
            tables.Map(Layout.Code + ((ulong)area * Layout.AreaDistance), AreaAddress(area), Layout.CodeSize, PageTableEntry.U | PageTableEntry.A);
            _memory.Write(new GuestAddress(AreaAddress(area)), Enumerable.Repeat((byte)0xCC, Layout.CodeSize).ToArray());
        }
        WriteSystem();
        _memory.Write(new GuestAddress(CodeGpa), Enumerable.Repeat((byte)0xCC, Layout.CodeSize).ToArray());

        _hypervisor = hypervisor(_memory);
        _processor = _hypervisor.CreateProcessor(new VirtualProcessorOptions { Index = 0, Count = 1, Cpuid = cpuid, Clock = TimeProvider.System });
        _state = new ProcessorState
        {
            Cr0 = Cr0.Pe | Cr0.Mp | Cr0.Et | Cr0.Ne | Cr0.Wp | Cr0.Am | Cr0.Pg,
            Cr3 = tables.Root,
            Cr4 = Cr4.Pae | Cr4.OsFxsr | Cr4.OsXmmExcpt | Cr4.OsXsave | Cr4.FsGsBase,
            Efer = Efer.Sce | Efer.Lme | Efer.Lma | Efer.Nxe,
            Xcr0 = cpuid.Get(0xD, 0).Eax & 7,
            Gdtr = new DescriptorTableState(Gdt, 0x5F),
            Idtr = new DescriptorTableState(Idt, 0xFFF),
            Tr = new SegmentState(0x40, Tss, 0x67, 0x8B),
            Ldtr = new SegmentState(0, 0, 0, SegmentState.Unusable),
        };
        _cpu = (_processor as SoftwareProcessor)?.Interpreter;
        _state.Dr[6] = 0xFFFF0FF0;
        _state.Dr[7] = 0x400;
        if (watched)
        {
            // A data breakpoint that nothing meets: every access has to be looked at, and every instruction ends alone.
            _state.Dr[0] = 0x7000_0000;
            _state.Dr[7] |= 1 | (3 << 16);
        }
    }

    public IVirtualProcessor Processor => _processor;

    public Span<byte> Window(bool low) => new(_memory.HostBase + (low ? LowWindowGpa : WindowGpa), Layout.WindowSize);

    /// <summary>Puts the code of a case at <see cref="Layout.Start"/>, or in another area, between INT3s.</summary>
    public void SetCode(ReadOnlySpan<byte> code, int area = 0)
    {
        byte[] bytes = new byte[Math.Max(code.Length, _codeLength[area])];
        if (bytes.Length == 0)
            return;
        bytes.AsSpan().Fill(0xCC);
        code.CopyTo(bytes);
        _codeLength[area] = code.Length;
        _memory.Write(new GuestAddress(AreaAddress(area) + (Layout.Start - Layout.Code)), bytes);
    }

    private static ulong AreaAddress(int area) => area == 0 ? CodeGpa : AreaGpa + ((ulong)area * 0x4000);

    /// <summary>Runs the code once from <paramref name="s"/>, which is replaced by the result.</summary>
    public void Run(ref TestState s, int bitness, int codeLength)
    {
        Load(s, bitness);
        RunLoaded(ref s, bitness, codeLength, out _);
    }

    private void RunLoaded(ref TestState s, int bitness, int codeLength, out (ushort Cs, ushort Ss) left)
    {
        ProcessorExit exit = _processor.Run(_handler);
        TestState r = Save(out ulong rip);
        ulong handler = rip - 1 - Handlers;
        if (exit.Reason != ExitReason.Halted || handler >= 0x1000)
            throw new InvalidOperationException($"the guest ended with {exit.Reason} at 0x{rip:x}");

        s = r;
        s.Vector = (long)handler / 16;
        ulong frame = SystemGpa + (s.Gpr[4] - System);
        if (s.Vector < 32 && (ErrorVectors >> (int)s.Vector & 1) != 0)
        {
            s.Error = _memory.Read<ulong>(new GuestAddress(frame));
            frame += 8;
        }

        s.Rip = _memory.Read<ulong>(new GuestAddress(frame));
        s.Rflags = _memory.Read<ulong>(new GuestAddress(frame + 16));
        s.Gpr[4] = _memory.Read<ulong>(new GuestAddress(frame + 24));
        left = (_memory.Read<ushort>(new GuestAddress(frame + 8)), _memory.Read<ushort>(new GuestAddress(frame + 32)));
        if (s.Vector == Vector.Breakpoint && s.Rip == Layout.StartRip(bitness) + (ulong)codeLength + 1)
        {
            s.Vector = -1;
            s.Rip--;
        }
    }

    private static SegmentState CodeSegment(int bitness) => bitness == 64
        ? new SegmentState(0x33, 0, uint.MaxValue, 0xA0FB)
        : bitness == 32 ? new SegmentState(0x23, 0, uint.MaxValue, 0xC0FB)
        : new SegmentState(7, Layout.Code, uint.MaxValue, 0x80FB);

    private void Load(in TestState s, int bitness)
    {
        if (_cpu != null && bitness == _bitness)
        {
            LoadDirectly(s, bitness);
            return;
        }

        _bitness = bitness;
        for (int i = 0; i < 16; i++)
            _state.Gpr[i] = s.Gpr[i];
        _state.Rip = s.Rip;
        _state.Rflags = s.Rflags;
        _state.Segments[1] = CodeSegment(bitness);
        foreach (int data in (int[])[0, 2, 3])
            _state.Segments[data] = new SegmentState(0x2B, 0, uint.MaxValue, UserData);
        _state.Segments[4] = new SegmentState(0, s.FsBase, 0, SegmentState.Unusable);
        _state.Segments[5] = new SegmentState(0, s.GsBase, 0, SegmentState.Unusable);
        fixed (byte* fx = s.Fx)
            new ReadOnlySpan<byte>(fx, TestState.ImageBytes).CopyTo(_state.Xsave);
        _state.Xsave.AsSpan(512, 64).Clear();
        _state.Xsave[512] = (byte)(_state.Xcr0 | 3);
        _state.Cr2 = 0;
        _state.Activity = ActivityState.Running;
        _processor.SetState(_state);
    }

    // What Load does, without the registers that no case changes: an interpreter's whole state takes longer to set than a case to run.
    private void LoadDirectly(in TestState s, int bitness)
    {
        CpuState* c = _cpu!.State;
        for (int i = 0; i < 16; i++)
            c->Gpr[i] = s.Gpr[i];
        c->Rip = s.Rip;
        CpuStateExtensions.SetRflags(c, (uint)s.Rflags);
        SegmentState cs = CodeSegment(bitness);
        c->Cs = new SegmentRegister { Selector = cs.Selector, Base = cs.Base, Limit = cs.Limit, Attributes = cs.Attributes };
        c->Ss = c->Ds = c->Es = new SegmentRegister { Selector = 0x2B, Limit = uint.MaxValue, Attributes = UserData };
        c->Fs = new SegmentRegister { Base = s.FsBase, Attributes = SegmentState.Unusable };
        c->Gs = new SegmentRegister { Base = s.GsBase, Attributes = SegmentState.Unusable };
        fixed (byte* fx = s.Fx)
        {
            Buffer.MemoryCopy(fx, c->Xsave, 512, 512);
            Buffer.MemoryCopy(fx + TestState.YmmHighOffset, c->Xsave + CpuState.YmmHighOffset, 256, 256);
        }

        c->Cr2 = 0;
        c->Cpl = 3;
        c->Activity = (int)ActivityState.Running;
        _cpu.UpdateMode();
    }

    private TestState Save(out ulong rip)
    {
        TestState s = default;
        if (_cpu != null)
        {
            CpuState* c = _cpu.State;
            for (int i = 0; i < 16; i++)
                s.Gpr[i] = c->Gpr[i];
            rip = c->Rip;
            s.FsBase = c->Fs.Base;
            s.GsBase = c->Gs.Base;
            s.Cr2 = c->Cr2;
            Buffer.MemoryCopy(c->Xsave, s.Fx, TestState.ImageBytes, TestState.ImageBytes);
            return s;
        }

        ProcessorState r = _processor.GetState();
        for (int i = 0; i < 16; i++)
            s.Gpr[i] = r.Gpr[i];
        rip = r.Rip;
        s.FsBase = r.Segments[4].Base;
        s.GsBase = r.Segments[5].Base;
        s.Cr2 = r.Cr2;
        r.Xsave.AsSpan(0, TestState.ImageBytes).CopyTo(new Span<byte>(s.Fx, TestState.ImageBytes));
        return s;
    }

    private void WriteSystem()
    {
        // The order of descriptors is that of Linux, so that selectors mean the same on both sides.
        ulong[] gdt =
        [
            0, 0x00CF9B000000FFFF, 0x00AF9B000000FFFF, 0x00CF93000000FFFF, 0x00CFFB000000FFFF, 0x00CFF3000000FFFF, 0x00AFFB000000FFFF, 0,
            0x0000890000000067 | (Tss & 0xFFFFFF) << 16 | (Tss >> 24 & 0xFF) << 56, Tss >> 32,
        ];
        _memory.Write(new GuestAddress(SystemGpa), MemoryMarshal.AsBytes<ulong>(gdt));
        byte[] idt = new byte[4096], handlers = new byte[4096], tss = new byte[0x68];
        for (int v = 0; v < 256; v++)
        {
            ulong target = Handlers + (ulong)v * 16;
            Span<byte> gate = idt.AsSpan(v * 16);
            BinaryPrimitives.WriteUInt16LittleEndian(gate, (ushort)target);
            BinaryPrimitives.WriteUInt16LittleEndian(gate[2..], 0x10);
            gate[4] = 1;
            // DPL 3 for #BP and #OF alone, as in Linux.
            gate[5] = (byte)(v is Vector.Breakpoint or Vector.Overflow ? 0xEE : 0x8E);
            BinaryPrimitives.WriteUInt16LittleEndian(gate[6..], (ushort)(target >> 16));
            BinaryPrimitives.WriteUInt32LittleEndian(gate[8..], (uint)(target >> 32));
            ((ReadOnlySpan<byte>)[0xF4, 0xEB, 0xFD]).CopyTo(handlers.AsSpan(v * 16));
        }

        BinaryPrimitives.WriteUInt64LittleEndian(tss.AsSpan(0x04), StackTop);
        BinaryPrimitives.WriteUInt64LittleEndian(tss.AsSpan(0x24), StackTop);
        BinaryPrimitives.WriteUInt16LittleEndian(tss.AsSpan(0x66), 0x68);
        _memory.Write(new GuestAddress(SystemGpa + 0x1000), idt);
        _memory.Write(new GuestAddress(SystemGpa + 0x2000), tss);
        _memory.Write(new GuestAddress(SystemGpa + 0x3000), handlers);
    }

    public void Dispose()
    {
        _processor.Dispose();
        _hypervisor.Dispose();
        _memory.Dispose();
    }
}
