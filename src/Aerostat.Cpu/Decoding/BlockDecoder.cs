using Iced.Intel;

namespace Aerostat.Cpu;

/// <summary>Turns guest bytes into <see cref="MicroOp"/>s with Iced's decoder.</summary>
internal sealed unsafe class BlockDecoder
{
    /// <summary>Longest block, in instructions.</summary>
    public const int MaxOps = 48;

    private const int LongestInstruction = 15;

    private readonly PointerReader reader = new();
    private readonly Decoder decoder16, decoder32, decoder64;
    private readonly HostStubs stubs;
    private readonly FeatureGate features;

    public BlockDecoder(HostStubs stubs, FeatureGate features)
    {
        this.stubs = stubs;
        this.features = features;
        decoder16 = Decoder.Create(16, reader);
        decoder32 = Decoder.Create(32, reader);
        decoder64 = Decoder.Create(64, reader);
    }

    /// <summary>
    /// Decodes up to <see cref="MaxOps"/> instructions, to the first that may branch or to the end of the bytes. Returns how many; 0 when the
    /// first one does not end within <paramref name="available"/>.
    /// </summary>
    public int Decode(byte* code, int available, int bitness, MicroOp* ops, int maxOps, out int length)
    {
        Decoder decoder = bitness == 64 ? decoder64 : bitness == 32 ? decoder32 : decoder16;
        reader.Set(code, available);
        decoder.IP = 0;
        var context = new DecodeContext(bitness, stubs);
        int count = 0;
        length = 0;
        while (count < maxOps)
        {
            decoder.Decode(out Instruction i);
            if (decoder.LastError == DecoderError.NoMoreBytes)
                break;
            MicroOp* op = ops + count;
            if (i.IsInvalid)
            {
                *op = default;
                op->Offset = (ushort)length;
                op->Length = (byte)Math.Max(1, i.Length);
                op->Handler = i.Length >= LongestInstruction && IsTooLong(decoder, code + length, available - length) ? &TooLong : &Undefined;
                length += op->Length;
                return count + 1;
            }
            OperandDecoder.Fill(i, op, bitness);
            bool known = features.IsSupported(i) && Bind(i, op, context);
            if (!known)
                op->Handler = &Undefined;
            count++;
            length += i.Length;
            if (!known || i.FlowControl != FlowControl.Next)
                break;
        }
        return count;
    }

    // Iced gives up after 15 bytes without saying why: an instruction that goes on is #GP, one that ends there and does not exist is #UD (Intel
    // SDM vol. 3 section 7.15). Its first byte can only be a prefix, so what follows it tells: is it, alone, within 14 bytes?
    private bool IsTooLong(Decoder decoder, byte* code, int available)
    {
        reader.Set(code + 1, available - 1);
        decoder.Decode(out Instruction rest);
        return decoder.LastError == DecoderError.NoMoreBytes || rest.Length >= LongestInstruction;
    }

    private static bool Bind(in Instruction i, MicroOp* op, DecodeContext context) =>
        IntegerBinder.Bind(i, op, context) || ControlBinder.Bind(i, op, context) || StringBinder.Bind(i, op, context)
        || SystemBinder.Bind(i, op, context) || VectorBinder.Bind(i, op, context);

    internal static Outcome Undefined(Interpreter cpu, CpuState* s, MicroOp* op) => cpu.RaiseUd();

    internal static Outcome TooLong(Interpreter cpu, CpuState* s, MicroOp* op) => cpu.RaiseGp();

    private sealed class PointerReader : CodeReader
    {
        private byte* next, end;

        public void Set(byte* code, int available)
        {
            next = code;
            end = code + available;
        }

        public override int ReadByte() => next < end ? *next++ : -1;
    }
}
