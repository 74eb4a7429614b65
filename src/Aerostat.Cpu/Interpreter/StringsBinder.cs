using Iced.Intel;
using unsafe OpHandler = delegate*<Aerostat.Cpu.Interpreter, Aerostat.Cpu.CpuState*, Aerostat.Cpu.MicroOp*, Aerostat.Cpu.Outcome>;

namespace Aerostat.Cpu;

/// <summary>Binds MOVS, STOS, LODS, SCAS and CMPS.</summary>
internal static unsafe class StringBinder
{
    /// <summary>False: not one of them.</summary>
    public static bool Bind(in Instruction i, MicroOp* op, DecodeContext c)
    {
        // F2 repeats MOVS, STOS and LODS just as F3 does.
        bool repeat = (op->Flags & (MicroOpFlags.Rep | MicroOpFlags.RepNe)) != 0;
        OpHandler h = i.Code switch
        {
            Code.Movsb_m8_m8 => Move<byte>(repeat),
            Code.Movsw_m16_m16 => Move<ushort>(repeat),
            Code.Movsd_m32_m32 => Move<uint>(repeat),
            Code.Movsq_m64_m64 => Move<ulong>(repeat),
            Code.Stosb_m8_AL => Store<byte>(repeat),
            Code.Stosw_m16_AX => Store<ushort>(repeat),
            Code.Stosd_m32_EAX => Store<uint>(repeat),
            Code.Stosq_m64_RAX => Store<ulong>(repeat),
            Code.Lodsb_AL_m8 => Load<byte>(repeat),
            Code.Lodsw_AX_m16 => Load<ushort>(repeat),
            Code.Lodsd_EAX_m32 => Load<uint>(repeat),
            Code.Lodsq_RAX_m64 => Load<ulong>(repeat),
            Code.Scasb_AL_m8 => Scan<byte>(repeat),
            Code.Scasw_AX_m16 => Scan<ushort>(repeat),
            Code.Scasd_EAX_m32 => Scan<uint>(repeat),
            Code.Scasq_RAX_m64 => Scan<ulong>(repeat),
            Code.Cmpsb_m8_m8 => Compare<byte>(repeat),
            Code.Cmpsw_m16_m16 => Compare<ushort>(repeat),
            Code.Cmpsd_m32_m32 => Compare<uint>(repeat),
            Code.Cmpsq_m64_m64 => Compare<ulong>(repeat),
            _ => null,
        };
        op->Handler = h;
        return h != null;
    }

    private static OpHandler Move<T>(bool repeat)
        where T : unmanaged => repeat ? &StringHandlers<T>.RepeatMove : &StringHandlers<T>.Move;

    private static OpHandler Store<T>(bool repeat)
        where T : unmanaged => repeat ? &StringHandlers<T>.RepeatStore : &StringHandlers<T>.Store;

    private static OpHandler Load<T>(bool repeat)
        where T : unmanaged => repeat ? &StringHandlers<T>.RepeatLoad : &StringHandlers<T>.Load;

    private static OpHandler Scan<T>(bool repeat)
        where T : unmanaged => repeat ? &StringHandlers<T>.RepeatScan : &StringHandlers<T>.Scan;

    private static OpHandler Compare<T>(bool repeat)
        where T : unmanaged => repeat ? &StringHandlers<T>.RepeatCompare : &StringHandlers<T>.Compare;
}
