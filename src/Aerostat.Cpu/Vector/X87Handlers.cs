using System.Runtime.CompilerServices;
using Aerostat.X86;

namespace Aerostat.Cpu;

/// <summary>What an x87 instruction has besides registers (kept in MicroOp.Src2).</summary>
[Flags]
internal enum X87Form : byte
{
    None = 0,
    LoadsMemory = 1,
    StoresMemory = 2,
    WritesFlags = 4,
    ReadsFlags = 8,
}

/// <summary>
/// x87 instructions. Arithmetic runs on the host with the guest's whole x87 state and its own control word: x87 exceptions
/// are deferred, so an unmasked one only sets the error summary, and the guest gets #MF at its next waiting instruction. Control
/// instructions are done here.
/// </summary>
/// <remarks>
/// The last-instruction pointers: FIP is set by every non-control instruction, FDP by those with a memory operand, FOP only by one that
/// leaves an unmasked exception (IA32_MISC_ENABLE[2] = 0). FCS and FDS are deprecated and zero. FOP's ModRM byte is that of the shortest
/// encoding of the memory operand. With CR0.NE = 0 a PC would signal FERR# and get IRQ 13; here it is #MF all the same.
/// </remarks>
internal static unsafe class X87Handlers
{
    // SAFETY: images are local buffers of the size that is read or written; the stub gets a 512-byte aligned image and a bounce buffer in
    // the XSAVE area.

    private const int ImageBytes = 512, X87Bytes = 160;

    /// <summary>An instruction that runs in a stub: OperandSize is the size of its memory operand, Immediate its FOP.</summary>
    [SkipLocalsInit]
    public static Outcome Run(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if ((s->Cr0 & (Cr0.Em | Cr0.Ts)) != 0)
            return cpu.Raise(Vector.DeviceNotAvailable);
        byte* area = s->Xsave;
        if (X87Environment.IsPending(area))
            return cpu.Raise(Vector.FloatingPoint);
        X87Form form = (X87Form)op->Src2;
        byte* bounce = area + VectorState.Bounce;
        if ((form & X87Form.LoadsMemory) != 0 && !VectorState.LoadSized(cpu, s, op, op->OperandSize, bounce))
            return Outcome.Fault;

        // A copy, so that nothing has changed yet if the store faults. Of the image only the x87 part matters: the stub replaces its
        // MXCSR, and XMM registers are the caller's to lose.
        byte* buffer = stackalloc byte[ImageBytes + 16];
        byte* image = (byte*)(((nuint)buffer + 15) & ~(nuint)15);
        Buffer.MemoryCopy(area, image, X87Bytes, X87Bytes);
        *(ulong*)(image + 8) = 0;
        *(ulong*)(image + 16) = 0;
        uint flags = (form & (X87Form.ReadsFlags | X87Form.WritesFlags)) != 0
            ? (CpuStateExtensions.GetRflags(s) & RFlags.Status) | RFlags.Fixed1
            : 0;
        ulong rflags = SseHandlers.Call(s, op, image, bounce, null, flags);

        int raised = X87Environment.Status(image) & ~X87Environment.Control(image) & X87Environment.Exceptions;
        Outcome outcome = Outcome.Next;
        // Any unmasked exception but precision leaves memory unwritten (Intel SDM vol. 1 section 8.5), yet the address must be good.
        if ((form & X87Form.StoresMemory) != 0)
        {
            ulong linear = cpu.Linear(s, op, op->OperandSize, write: true);
            if ((raised & 0x1F) != 0)
            {
                if (!cpu.ProbeWrite(s, linear, op->Segment, op->OperandSize))
                    return Outcome.Fault;
            }
            else
            {
                outcome = cpu.StoreBytes(s, linear, op->Segment, bounce, op->OperandSize);
                if (outcome == Outcome.Fault)
                    return outcome;
            }
        }
        *(uint*)area = *(uint*)image;
        area[4] = image[4];
        Buffer.MemoryCopy(image + CpuState.StOffset, area + CpuState.StOffset, 128, 128);
        if ((form & X87Form.WritesFlags) != 0)
            CpuStateExtensions.SetStatusFlags(s, (uint)rflags);
        SetPointers(s, op, form, raised);
        return outcome;
    }

    /// <summary>WAIT.</summary>
    public static Outcome Wait(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if ((s->Cr0 & (Cr0.Mp | Cr0.Ts)) == (Cr0.Mp | Cr0.Ts))
            return cpu.Raise(Vector.DeviceNotAvailable);
        return X87Environment.IsPending(s->Xsave) ? cpu.Raise(Vector.FloatingPoint) : Outcome.Next;
    }

    /// <summary>FNINIT.</summary>
    public static Outcome Init(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if ((s->Cr0 & (Cr0.Em | Cr0.Ts)) != 0)
            return cpu.Raise(Vector.DeviceNotAvailable);
        X87Environment.Initialize(s->Xsave);
        return Outcome.Next;
    }

    /// <summary>FNCLEX.</summary>
    public static Outcome ClearExceptions(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if ((s->Cr0 & (Cr0.Em | Cr0.Ts)) != 0)
            return cpu.Raise(Vector.DeviceNotAvailable);
        X87Environment.Status(s->Xsave) &= 0x7F00;
        return Outcome.Next;
    }

    /// <summary>FNENI, FNDISI, FNSETPM: no operation since the 387.</summary>
    public static Outcome Nothing(Interpreter cpu, CpuState* s, MicroOp* op) =>
        (s->Cr0 & (Cr0.Em | Cr0.Ts)) != 0 ? cpu.Raise(Vector.DeviceNotAvailable) : Outcome.Next;

    /// <summary>FNSTCW.</summary>
    public static Outcome StoreControl(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if ((s->Cr0 & (Cr0.Em | Cr0.Ts)) != 0)
            return cpu.Raise(Vector.DeviceNotAvailable);
        return cpu.StoreOperand<ushort>(s, op, X87Environment.Control(s->Xsave));
    }

    /// <summary>FNSTSW m16.</summary>
    public static Outcome StoreStatus(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if ((s->Cr0 & (Cr0.Em | Cr0.Ts)) != 0)
            return cpu.Raise(Vector.DeviceNotAvailable);
        return cpu.StoreOperand<ushort>(s, op, X87Environment.Status(s->Xsave));
    }

    /// <summary>FNSTSW AX.</summary>
    public static Outcome StoreStatusToAx(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if ((s->Cr0 & (Cr0.Em | Cr0.Ts)) != 0)
            return cpu.Raise(Vector.DeviceNotAvailable);
        *(ushort*)s->Gpr = X87Environment.Status(s->Xsave);
        return Outcome.Next;
    }

    /// <summary>FLDCW.</summary>
    public static Outcome LoadControl(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!Ready(cpu, s) || !cpu.LoadOperand<ushort>(s, op, out ulong v))
            return Outcome.Fault;
        X87Environment.SetControl(s->Xsave, (ushort)v);
        return Outcome.Next;
    }

    /// <summary>FNSTENV, 14 or 28 bytes: stores, then masks all exceptions.</summary>
    public static Outcome StoreEnvironment(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if ((s->Cr0 & (Cr0.Em | Cr0.Ts)) != 0)
            return cpu.Raise(Vector.DeviceNotAvailable);
        byte* image = stackalloc byte[28];
        int size = op->OperandSize;
        X87Environment.Store(s->Xsave, image, size == 28, IsReal(s));
        Outcome o = cpu.StoreBytes(s, cpu.Linear(s, op, size, write: true), op->Segment, image, size);
        if (o != Outcome.Fault)
            X87Environment.SetControl(s->Xsave, (ushort)(X87Environment.Control(s->Xsave) | X87Environment.Exceptions));
        return o;
    }

    /// <summary>FLDENV.</summary>
    public static Outcome LoadEnvironment(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!Ready(cpu, s))
            return Outcome.Fault;
        byte* image = stackalloc byte[28];
        int size = op->OperandSize;
        if (!cpu.LoadBytes(s, cpu.Linear(s, op, size), op->Segment, image, size))
            return Outcome.Fault;
        X87Environment.Load(s->Xsave, image, size == 28, IsReal(s));
        return Outcome.Next;
    }

    /// <summary>FNSAVE, 94 or 108 bytes: environment and registers in stack order, then FNINIT.</summary>
    public static Outcome Save(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if ((s->Cr0 & (Cr0.Em | Cr0.Ts)) != 0)
            return cpu.Raise(Vector.DeviceNotAvailable);
        byte* image = stackalloc byte[108];
        int size = op->OperandSize, environment = size - 80;
        X87Environment.Store(s->Xsave, image, environment == 28, IsReal(s));
        for (int k = 0; k < 8; k++)
            Buffer.MemoryCopy(s->Xsave + CpuState.StOffset + (16 * k), image + environment + (10 * k), 10, 10);
        Outcome o = cpu.StoreBytes(s, cpu.Linear(s, op, size, write: true), op->Segment, image, size);
        if (o != Outcome.Fault)
            X87Environment.Initialize(s->Xsave);
        return o;
    }

    /// <summary>FRSTOR.</summary>
    public static Outcome Restore(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!Ready(cpu, s))
            return Outcome.Fault;
        byte* image = stackalloc byte[108];
        int size = op->OperandSize, environment = size - 80;
        if (!cpu.LoadBytes(s, cpu.Linear(s, op, size), op->Segment, image, size))
            return Outcome.Fault;
        X87Environment.Load(s->Xsave, image, environment == 28, IsReal(s));
        for (int k = 0; k < 8; k++)
            Buffer.MemoryCopy(image + environment + (10 * k), s->Xsave + CpuState.StOffset + (16 * k), 10, 10);
        return Outcome.Next;
    }

    // #NM, then #MF of an earlier instruction.
    private static bool Ready(Interpreter cpu, CpuState* s)
    {
        if ((s->Cr0 & (Cr0.Em | Cr0.Ts)) != 0)
        {
            cpu.Raise(Vector.DeviceNotAvailable);
            return false;
        }
        if (X87Environment.IsPending(s->Xsave))
        {
            cpu.Raise(Vector.FloatingPoint);
            return false;
        }
        return true;
    }

    private static bool IsReal(CpuState* s) => (s->Cr0 & Cr0.Pe) == 0 || (s->SystemFlags & RFlags.Vm) != 0;

    private static void SetPointers(CpuState* s, MicroOp* op, X87Form form, int raised)
    {
        ulong ip = s->Gpr[CpuState.BlockRip / 8] + op->Offset;
        bool real = IsReal(s);
        // In real mode the pointers are linear: 20 bits of segment and offset together.
        if (s->Bitness != 64)
            ip = (s->Bitness == 16 ? (ushort)ip : (uint)ip) + (real ? s->Cs.Base : 0);
        X87Environment.InstructionPointer(s->Xsave) = ip;
        if ((form & (X87Form.LoadsMemory | X87Form.StoresMemory)) != 0)
        {
            ulong data = Interpreter.EffectiveAddress(s, op);
            X87Environment.DataPointer(s->Xsave) = real ? data + CpuStateExtensions.Segment(s, op->Segment)->Base : data;
        }
        if (raised != 0)
            X87Environment.Opcode(s->Xsave) = (ushort)op->Immediate;
    }
}
