using Aerostat.X86;

namespace Aerostat.Cpu;

/// <summary>FXSAVE, FXRSTOR and the XSAVE family's legacy region (Intel SDM vol. 1 sections 10.5 and 13.5).</summary>
internal static unsafe class StateHandlers
{
    // SAFETY: an area is the vCPU's own (XsaveBytes long), an image a local buffer that covers the bytes that are touched.

    /// <summary>Bytes of the legacy region that the processor writes outside 64-bit mode: XMM8 to XMM15 are not there.</summary>
    private const int Bytes32 = 288, Bytes64 = 416;

    /// <summary>FXSAVE (OperandSize 4) and FXSAVE64 (8). Bytes from 416 on are software's and stay as they are.</summary>
    public static Outcome FxSave(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if ((s->Cr0 & (Cr0.Em | Cr0.Ts)) != 0)
            return cpu.Raise(Vector.DeviceNotAvailable);
        ulong linear = cpu.Linear(s, op, 512, write: true);
        if ((linear & 15) != 0)
            return cpu.RaiseGp();
        byte* image = stackalloc byte[Bytes64];
        int size = s->Bitness == 64 ? Bytes64 : Bytes32;
        WriteX87(s->Xsave, image, op->OperandSize == 8);
        *(uint*)(image + 24) = *(uint*)(s->Xsave + CpuState.MxcsrOffset);
        *(uint*)(image + 28) = VectorState.MxcsrValid;
        Buffer.MemoryCopy(s->Xsave + CpuState.XmmOffset, image + CpuState.XmmOffset, size - CpuState.XmmOffset, size - CpuState.XmmOffset);
        return cpu.StoreBytes(s, linear, op->Segment, image, size);
    }

    /// <summary>FXRSTOR and FXRSTOR64.</summary>
    public static Outcome FxRestore(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if ((s->Cr0 & (Cr0.Em | Cr0.Ts)) != 0)
            return cpu.Raise(Vector.DeviceNotAvailable);
        ulong linear = cpu.Linear(s, op, 512);
        if ((linear & 15) != 0)
            return cpu.RaiseGp();
        byte* image = stackalloc byte[512];
        if (!cpu.LoadBytes(s, linear, op->Segment, image, 512))
            return Outcome.Fault;
        uint mxcsr = *(uint*)(image + 24);
        if ((mxcsr & ~VectorState.MxcsrValid) != 0)
            return cpu.RaiseGp();
        *(uint*)(s->Xsave + CpuState.MxcsrOffset) = mxcsr;
        ReadX87(s->Xsave, image, op->OperandSize == 8);
        int size = (s->Bitness == 64 ? Bytes64 : Bytes32) - CpuState.XmmOffset;
        Buffer.MemoryCopy(image + CpuState.XmmOffset, s->Xsave + CpuState.XmmOffset, size, size);
        return Outcome.Next;
    }

    /// <summary>Writes bytes 0..23 and 32..159 of a legacy region. Without <paramref name="wide"/> the pointers are 32 bits with a zero selector.</summary>
    public static void WriteX87(byte* area, byte* image, bool wide)
    {
        Buffer.MemoryCopy(area, image, 24, 24);
        image[5] = 0;
        if (!wide)
        {
            *(ulong*)(image + 8) = (uint)X87Environment.InstructionPointer(area);
            *(ulong*)(image + 16) = (uint)X87Environment.DataPointer(area);
        }
        Buffer.MemoryCopy(area + CpuState.StOffset, image + CpuState.StOffset, 128, 128);
    }

    /// <summary>Reads what <see cref="WriteX87"/> wrote; reserved bits read as zero afterwards, and the error summary follows flags and masks.</summary>
    public static void ReadX87(byte* area, byte* image, bool wide)
    {
        // Both are in stack order, so TOP moves together with the registers.
        Buffer.MemoryCopy(image + CpuState.StOffset, area + CpuState.StOffset, 128, 128);
        for (int k = 0; k < 8; k++)
        {
            byte* padding = area + CpuState.StOffset + (16 * k) + 10;
            *(uint*)padding = 0;
            *(ushort*)(padding + 4) = 0;
        }
        X87Environment.Status(area) = X87Environment.Status(image);
        X87Environment.Tags(area) = X87Environment.Tags(image);
        area[5] = 0;
        X87Environment.Opcode(area) = (ushort)(X87Environment.Opcode(image) & 0x7FF);
        X87Environment.InstructionPointer(area) = wide ? X87Environment.InstructionPointer(image) : (uint)X87Environment.InstructionPointer(image);
        X87Environment.DataPointer(area) = wide ? X87Environment.DataPointer(image) : (uint)X87Environment.DataPointer(image);
        X87Environment.SetControl(area, X87Environment.Control(image));
    }

    /// <summary>
    /// Brings an XSAVE area that came from outside (a saved state, a boot protocol) into the form that the handlers rely on: no reserved MXCSR
    /// bits, a consistent x87 status.
    /// </summary>
    public static void Sanitize(byte* area)
    {
        *(uint*)(area + CpuState.MxcsrOffset) &= VectorState.MxcsrValid;
        ReadX87(area, area, wide: true);
    }
}
