using Iced.Intel;

namespace Aerostat.Cpu;

/// <content>
/// Instructions with guest registers that live in the frame (<see cref="Homes"/>), in their common forms: such a register is the memory operand of the host's instruction,
/// where otherwise it would be loaded before and stored behind. Only whole registers are stored, for a load that takes more than the last store has written waits for that.
/// </content>
internal sealed unsafe partial class BlockTranslator
{
    // Emits instructions of general registers and immediates of 32 and 64 bits; false: not this one.
    private bool EmitInFrame(in Instruction i)
    {
        if (i.OpCount != 2 || i.Op0Kind != OpKind.Register || !(i.Op0Register.IsGPR32() || i.Op0Register.IsGPR64()))
            return false;
        bool wide = i.Op0Register.IsGPR64();
        int to = i.Op0Register.GetNumber();
        if (i.Op1Kind == OpKind.Register)
        {
            if (i.Mnemonic is Mnemonic.Movzx or Mnemonic.Movsx or Mnemonic.Movsxd)
                return EmitExtension(i, to, wide);
            return i.Op1Register.GetSize() == i.Op0Register.GetSize() && i.Op1Register.IsGPR() && EmitInFrame(i.Mnemonic, to, i.Op1Register.GetNumber(), wide);
        }
        return Homes.OfGuest[to] == Host.None
            && i.Op1Kind is OpKind.Immediate8 or OpKind.Immediate32 or OpKind.Immediate8to32 or OpKind.Immediate8to64 or OpKind.Immediate32to64
            && EmitImmediateInFrame(i.Mnemonic, to, (int)(long)i.GetImmediate(1), wide);
    }

    // The number of an arithmetic operation in opcodes, -1: it is none.
    private static int Arithmetic(Mnemonic m) => m switch
    {
        Mnemonic.Add => 0,
        Mnemonic.Or => 1,
        Mnemonic.And => 4,
        Mnemonic.Sub => 5,
        Mnemonic.Xor => 6,
        Mnemonic.Cmp => 7,
        _ => -1,
    };

    private bool EmitInFrame(Mnemonic m, int to, int from, bool wide)
    {
        int toHost = Homes.OfGuest[to], fromHost = Homes.OfGuest[from], operation = Arithmetic(m);
        bool moves = m == Mnemonic.Mov, tests = m == Mnemonic.Test;
        if ((toHost != Host.None && fromHost != Host.None) || (operation < 0 && !moves && !tests))
            return false;
        if (to == from)
        {
            if (m is Mnemonic.Xor or Mnemonic.Sub)
            {
                // Zero, whatever it was.
                a.RR((operation << 3) | 3, Host.R10, Host.R10, wide: false);
                a.StoreFrame(Frame.OfGuest[to], Host.R10);
                return true;
            }
            if (!tests)
                return false;
            // Compared with zero it has the same flags.
            return EmitImmediateInFrame(Mnemonic.Cmp, to, 0, wide);
        }
        if (toHost != Host.None)
        {
            a.RM(moves ? 0x8B : tests ? 0x85 : (operation << 3) | 3, toHost, Host.Rsp, Host.None, 0, Frame.OfGuest[from], wide);
            return true;
        }
        if (wide || tests || m == Mnemonic.Cmp)
        {
            int source = Use(from, Host.R10);
            a.RM(moves ? 0x89 : tests ? 0x85 : (operation << 3) | 1, source, Host.Rsp, Host.None, 0, Frame.OfGuest[to], wide);
            return true;
        }
        if (fromHost != Host.None)
            return false;
        // 32 bits, from the frame to the frame.
        if (!moves)
            a.LoadFrame(Host.R10, Frame.OfGuest[to]);
        a.RM(moves ? 0x8B : (operation << 3) | 3, Host.R10, Host.Rsp, Host.None, 0, Frame.OfGuest[from], wide: false);
        a.StoreFrame(Frame.OfGuest[to], Host.R10);
        return true;
    }

    private bool EmitImmediateInFrame(Mnemonic m, int to, int value, bool wide)
    {
        int operation = Arithmetic(m), frame = Frame.OfGuest[to];
        if (m == Mnemonic.Mov && (wide || value >= 0))
        {
            a.RM(0xC7, 0, Host.Rsp, Host.None, 0, frame);
            a.Int32(value);
        }
        else if (m == Mnemonic.Test)
        {
            a.RM(0xF7, 0, Host.Rsp, Host.None, 0, frame, wide);
            a.Int32(value);
        }
        else if (operation >= 0 && (wide || m == Mnemonic.Cmp))
        {
            bool small = value is >= -128 and <= 127;
            a.RM(small ? 0x83 : 0x81, operation, Host.Rsp, Host.None, 0, frame, wide);
            if (small)
                a.Byte(value);
            else
                a.Int32(value);
        }
        else
        {
            return false;
        }
        return true;
    }

    // MOVZX, MOVSX and MOVSXD from the frame.
    private bool EmitExtension(in Instruction i, int to, bool wide)
    {
        Register from = i.Op1Register;
        int toHost = Homes.OfGuest[to];
        if (toHost == Host.None || !from.IsGPR() || IsHighByte(from) || Homes.OfGuest[GuestNumber(from)] != Host.None)
            return false;
        int opcode = from.GetSize() switch { 1 => 0x0FB6, 2 => 0x0FB7, _ => 0x63 };
        if (opcode == 0x63 && !wide)
            return false;
        a.RM(opcode != 0x63 && i.Mnemonic == Mnemonic.Movsx ? opcode | 8 : opcode, toHost, Host.Rsp, Host.None, 0, Frame.OfGuest[GuestNumber(from)], wide);
        return true;
    }
}
