using System.Buffers.Binary;
using Aerostat.Devices;

namespace Aerostat.VMware;

/// <summary>
/// VMware's backdoor: IN EAX from port 0x5658 with a magic number in EAX and a command in CX, answered in registers, for programs as well as for the
/// kernel. The facts are those of open-vm-tools' backdoor_def.h and of Linux's arch/x86/kernel/cpu/vmware.c.
/// <para>
/// Not emulated: everything about screens, pointers and selections, firmware services, hot plug, and the hypercall instructions as another way in.
/// Whatever is not known is answered with all ones in EAX, and nothing else is changed.
/// </para>
/// </summary>
public sealed class VmwareBackdoor : IDevice
{
    /// <summary>The port of commands.</summary>
    public const ushort Port = 0x5658;

    /// <summary>The port of messages in one piece.</summary>
    public const ushort MessagePort = 0x5659;

    internal const uint Magic = 0x564D_5868;
    internal const int Rax = 0, Rcx = 1, Rdx = 2, Rbx = 3, Rsi = 6, Rdi = 7;

    private const uint GetMhz = 1, GetVersion = 10, GetHardwareVersion = 17, GetUuid = 19, GetMemorySize = 20, GetTime = 23, GetHz = 45, GetTimeFull = 46,
        GetTimeFullWithLag = 55, GetVcpuInfo = 68, StealClock = 91, Message = 30;

    // The backdoor's version, a server product, and a virtual hardware version of ESXi 6.5.
    private const uint Version = 6, ServerProduct = 2, HardwareVersion = 13;
    private const uint VcpuSyncedCounters = 1 << 1, VcpuX2ApicWithoutRemapping = 1 << 3;
    private const uint Unsupported = uint.MaxValue;
    private const uint CounterHostTsc = 0x10000, CounterRealTime = 0x10001, CounterApparentTime = 0x10002, CounterTsc = 0x10003;

    private readonly VmwareBackdoorOptions _options;
    private readonly GuestTools _tools;
    private readonly long _bornAt;
    private long _calls, _unknown;

    /// <summary>Makes it.</summary>
    /// <param name="options">What it tells.</param>
    /// <param name="tools">Who is behind its messages.</param>
    public VmwareBackdoor(VmwareBackdoorOptions options, GuestTools tools)
    {
        ArgumentNullException.ThrowIfNull(options);
        ArgumentNullException.ThrowIfNull(tools);
        _options = options;
        _tools = tools;
        _bornAt = options.HostClock.GetTimestamp();
    }

    /// <inheritdoc/>
    public string Name => "vmbackdoor";

    /// <summary>Its figures, by name.</summary>
    public IEnumerable<(string Name, long Value)> Counters => [("calls", Volatile.Read(ref _calls)), ("unknown", Volatile.Read(ref _unknown))];

    /// <summary>What it was made from.</summary>
    internal VmwareBackdoorOptions Options => _options;

    /// <summary>IN from <see cref="Port"/>. The calling vCPU's thread.</summary>
    /// <param name="caller">Who calls.</param>
    /// <param name="privilege">Its privilege level.</param>
    /// <param name="registers">RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, ...</param>
    /// <returns>False: the magic number is not there, and this is an access like any other.</returns>
    internal bool Call(VmwareVcpu caller, int privilege, Span<ulong> registers)
    {
        if ((uint)registers[Rax] != Magic)
            return false;
        Interlocked.Increment(ref _calls);
        // The upper half of ECX is the command's own.
        switch ((uint)registers[Rcx] & 0xFFFF)
        {
            case GetMhz:
                registers[Rax] = (uint)(_options.TscFrequencyHz / 1_000_000);
                break;
            case GetVersion:
                registers[Rax] = Version;
                registers[Rbx] = Magic;
                registers[Rcx] = ServerProduct;
                break;
            case GetHardwareVersion:
                registers[Rax] = HardwareVersion;
                break;
            case GetUuid:
                Span<byte> uuid = stackalloc byte[16];
                _options.Uuid.TryWriteBytes(uuid, bigEndian: true, out _);
                registers[Rax] = BinaryPrimitives.ReadUInt32LittleEndian(uuid);
                registers[Rbx] = BinaryPrimitives.ReadUInt32LittleEndian(uuid[4..]);
                registers[Rcx] = BinaryPrimitives.ReadUInt32LittleEndian(uuid[8..]);
                registers[Rdx] = BinaryPrimitives.ReadUInt32LittleEndian(uuid[12..]);
                break;
            case GetMemorySize:
                registers[Rax] = (uint)(_options.MemoryBytes >> 20);
                break;
            case GetHz:
                registers[Rax] = (uint)_options.TscFrequencyHz;
                registers[Rbx] = (ulong)_options.TscFrequencyHz >> 32;
                registers[Rcx] = (uint)_options.ApicFrequencyHz;
                break;
            case GetVcpuInfo:
                registers[Rax] = VcpuSyncedCounters | (_options.X2Apic ? VcpuX2ApicWithoutRemapping : 0);
                break;
            case GetTime or GetTimeFull or GetTimeFullWithLag:
                TellTime((uint)registers[Rcx] & 0xFFFF, registers);
                break;
            case Message:
                _tools.Channels.Call(registers);
                break;
            case StealClock when privilege == 0:
                registers[Rax] = caller.StealClock.Configure((uint)registers[Rsi], (uint)registers[Rdi]);
                break;
            default:
                Interlocked.Increment(ref _unknown);
                registers[Rax] = Unsupported;
                break;
        }
        return true;
    }

    // The guest may be this many microseconds behind before it is worth a correction; nothing of ours lags.
    private void TellTime(uint command, Span<ulong> registers)
    {
        const uint maxLag = 1_000_000;
        long ticks = (_options.HostClock.GetUtcNow() - DateTimeOffset.UnixEpoch).Ticks;
        ulong seconds = (ulong)(ticks / TimeSpan.TicksPerSecond);
        registers[Rbx] = (ulong)(ticks % TimeSpan.TicksPerSecond / TimeSpan.TicksPerMicrosecond);
        registers[Rcx] = maxLag;
        if (command == GetTime)
        {
            registers[Rax] = (uint)seconds;
            // Minutes west of Greenwich: the host's time is universal time.
            registers[Rdx] = 0;
            return;
        }
        registers[Rax] = Magic;
        registers[Rsi] = seconds >> 32;
        registers[Rdx] = (uint)seconds;
        if (command == GetTimeFullWithLag)
            registers[Rdi] = 0;
    }

    /// <summary>A part of REP INSB or OUTSB on <see cref="MessagePort"/>.</summary>
    internal bool Transfer(bool output, Span<byte> bytes, Span<ulong> registers) => _tools.Channels.Transfer(output, bytes, registers);

    /// <summary>RDPMC of an index that no processor has.</summary>
    internal bool ReadPseudoCounter(uint index, ulong timestamp, out ulong value)
    {
        ulong real = (ulong)(_options.HostClock.GetElapsedTime(_bornAt).Ticks * TimeSpan.NanosecondsPerTick);
        value = index switch
        {
            // The host's own counter is nobody's business; one that runs as steadily, from the machine's birth on.
            CounterHostTsc => (ulong)((UInt128)real * (UInt128)_options.TscFrequencyHz / 1_000_000_000),
            CounterRealTime => real,
            CounterApparentTime => (ulong)(_options.Clock.GetElapsedTime(0).Ticks * TimeSpan.NanosecondsPerTick),
            CounterTsc => timestamp,
            _ => 0,
        };
        return index is >= CounterHostTsc and <= CounterTsc;
    }

    /// <inheritdoc/>
    public void Reset()
    {
    }
}
