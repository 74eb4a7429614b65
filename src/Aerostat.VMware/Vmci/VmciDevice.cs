using System.Buffers.Binary;
using Aerostat.Chipset;
using Aerostat.Devices;
using Aerostat.Interrupts;
using Aerostat.Memory;
using Aerostat.State;

namespace Aerostat.VMware;

/// <summary>
/// VMware's virtual machine communication interface as a PCI function, as far as doorbells go: the guest sends datagrams to the hypervisor by which it names a page
/// with a byte for each doorbell, and links doorbells to bytes of it; the host rings one by setting its byte and raising an interrupt. The facts are those of
/// Linux's driver (drivers/misc/vmw_vmci, include/linux/vmw_vmci_defs.h).
/// <para>
/// Not emulated: queue pairs, datagrams to the guest, DMA datagrams, and the registers as I/O ports: base address register 0 is memory, which every version of
/// the driver in Linux takes as well.
/// </para>
/// </summary>
/// <remarks>Nothing the guest sends is trusted: datagrams and doorbells are bounded, and the page is looked up at each ring.</remarks>
public sealed class VmciDevice : PciEndpoint, ISavable<VmciSavedState>
{
    /// <summary>The guest's number among those that talk over this interface; the first that is not reserved.</summary>
    public const uint ContextId = 16;

    /// <summary>Most doorbells: bytes of the page.</summary>
    public const int MaxDoorbells = 4096;

    private const uint RegionSize = 0x1000;
    private const ulong StatusAt = 0x00, ControlAt = 0x04, CauseAt = 0x08, MaskAt = 0x0C, DataOutAt = 0x10, DataInAt = 0x14, CapabilitiesAt = 0x18, ResultAt = 0x1C;
    private const uint ControlReset = 1 << 0, ControlEnable = 1 << 1, ControlDisable = 1 << 2;
    private const uint Datagrams = 1 << 2, Notifications = 1 << 3, Wide = 1 << 4, Offered = Datagrams | Notifications | Wide;
    private const uint CauseNotification = 1 << 1, Causes = 0b11;
    private const int NotificationVector = 1, Vectors = 2;
    // Destination, source, length of what follows; then at most what any request here has.
    private const int HeaderBytes = 24, LongestRequest = HeaderBytes + 64, PageShift = 12;
    private const int Done = 0, NoSuchResource = -1, Senseless = -2, NoResources = -19, NotFound = -21;

    private readonly Lock _lock = new();
    private readonly GuestMemory _memory;
    private readonly byte[] _request = new byte[LongestRequest];
    private readonly Dictionary<(uint Context, uint Resource), int> _doorbells = [];
    private int _received;
    private ulong _ignored;
    private uint _cause, _mask, _capabilities = Offered;
    private int _result;
    private bool _enabled;
    private ulong? _page;
    private long _rings, _requests;

    /// <summary>Makes the function.</summary>
    /// <param name="memory">Guest memory.</param>
    /// <param name="space">Where its registers decode.</param>
    /// <param name="messages">Where MSI-X messages go.</param>
    /// <param name="pin">The wire of INTA#.</param>
    public VmciDevice(GuestMemory memory, PciMemorySpace space, IMessageInterrupts messages, IInterruptLine pin)
        : base("vmci", new PciIdentity(0x15AD, 0x0740, 0x088000, Revision: 0x10, 0x15AD, 0x0740), space, messages, pin, Vectors)
    {
        ArgumentNullException.ThrowIfNull(memory);
        _memory = memory;
        AddBar(0, RegionSize, new Registers(this));
    }

    /// <summary>Its figures, by name.</summary>
    public IEnumerable<(string Name, long Value)> Counters
    {
        get
        {
            lock (_lock)
                return [("requests", _requests), ("doorbells", _doorbells.Count), ("rings", _rings)];
        }
    }

    /// <summary>Rings a doorbell of the guest's. Any thread.</summary>
    /// <param name="context">Whose it is.</param>
    /// <param name="resource">Its number there.</param>
    /// <returns>False: there is no such doorbell, or the guest's page is no memory.</returns>
    public bool Ring(uint context, uint resource)
    {
        lock (_lock)
        {
            if (_page is not { } page || !_doorbells.TryGetValue((context, resource), out int at) || !_memory.TryWrite(new GuestAddress((page << PageShift) + (ulong)at), [1]))
                return false;
            _rings++;
            _cause |= CauseNotification;
            Interrupt();
            return true;
        }
    }

    private void Interrupt()
    {
        if (!_enabled || (_cause & _mask) == 0)
            return;
        if (Msix.Enabled)
            Msix.Raise(NotificationVector);
        else
            SetPin(true);
    }

    /// <inheritdoc/>
    public override void Reset()
    {
        base.Reset();
        lock (_lock)
            Forget();
    }

    private void Forget()
    {
        _doorbells.Clear();
        _page = null;
        _received = 0;
        _ignored = 0;
        _cause = _mask = 0;
        _capabilities = Offered;
        _result = Done;
        _enabled = false;
        SetPin(false);
    }

    private ulong Read(ulong offset, int size)
    {
        lock (_lock)
        {
            if (offset is >= DataInAt and < CapabilitiesAt)
            {
                // There is never a datagram for the guest: one to nobody ends the list.
                return ulong.MaxValue >> (64 - (8 * size));
            }
            uint value = (offset & ~3UL) switch
            {
                StatusAt => (_cause & _mask) != 0 ? 1U : 0,
                CauseAt => TakeCause(),
                MaskAt => _mask,
                CapabilitiesAt => _capabilities,
                ResultAt => (uint)_result,
                _ => 0,
            };
            return (value >> (8 * (int)(offset & 3))) & (ulong.MaxValue >> (64 - (8 * size)));
        }
    }

    private uint TakeCause()
    {
        uint value = _cause;
        _cause = 0;
        SetPin(false);
        return value;
    }

    private void Write(ulong offset, int size, ulong value)
    {
        lock (_lock)
        {
            switch (offset)
            {
                case >= DataOutAt and < DataInAt:
                    for (int i = 0; i < size; i++)
                        Take((byte)(value >> (8 * i)));
                    break;
                case ControlAt:
                    if ((value & ControlReset) != 0)
                        Forget();
                    if ((value & (ControlEnable | ControlDisable)) != 0)
                        _enabled = (value & ControlEnable) != 0;
                    Interrupt();
                    break;
                case MaskAt:
                    _mask = (uint)value & Causes;
                    Interrupt();
                    break;
                case CapabilitiesAt:
                    _capabilities = (uint)value & Offered;
                    break;
            }
        }
    }

    // A datagram comes byte by byte. One that is longer than any that is served is answered at its end too.
    private void Take(byte next)
    {
        if (_ignored > 0)
        {
            _ignored--;
            return;
        }
        _request[_received++] = next;
        if (_received < HeaderBytes)
            return;
        ulong length = BinaryPrimitives.ReadUInt64LittleEndian(_request.AsSpan(16));
        if (length > LongestRequest - HeaderBytes)
        {
            _received = 0;
            _ignored = length;
            _result = Senseless;
        }
        else if (_received == HeaderBytes + (int)length)
        {
            _received = 0;
            _requests++;
            _result = Serve(_request.AsSpan(HeaderBytes, (int)length));
        }
    }

    private int Serve(ReadOnlySpan<byte> body)
    {
        if (BinaryPrimitives.ReadUInt32LittleEndian(_request) != 0)
            return NoSuchResource;
        switch ((Request)BinaryPrimitives.ReadUInt32LittleEndian(_request.AsSpan(4)))
        {
            case Request.ResourcesQuery:
                return Query(body);
            case Request.GetContextId:
                return (int)ContextId;
            case Request.SetNotifyBitmap when body.Length >= 8:
                ulong page = (_capabilities & Wide) != 0 ? BinaryPrimitives.ReadUInt64LittleEndian(body) : BinaryPrimitives.ReadUInt32LittleEndian(body);
                if (page > GuestMemory.AddressLimit >> PageShift || !_memory.Contains(page << PageShift, 1 << PageShift))
                    return Senseless;
                _page = page;
                return Done;
            case Request.LinkDoorbell when body.Length >= 16:
                ulong index = BinaryPrimitives.ReadUInt64LittleEndian(body[8..]);
                if (index >= MaxDoorbells || Context(body) != ContextId)
                    return Senseless;
                if (_doorbells.Count == MaxDoorbells && !_doorbells.ContainsKey((Context(body), Resource(body))))
                    return NoResources;
                _doorbells[(Context(body), Resource(body))] = (int)index;
                return Done;
            case Request.UnlinkDoorbell when body.Length >= 8:
                return _doorbells.Remove((Context(body), Resource(body))) ? Done : NotFound;
            case Request.SetNotifyBitmap or Request.LinkDoorbell or Request.UnlinkDoorbell:
                return Senseless;
            default:
                return NoSuchResource;
        }
    }

    // A bit for each of the resources that are asked about.
    private static int Query(ReadOnlySpan<byte> body)
    {
        int count = body.Length < 8 ? 0 : (int)Math.Min(BinaryPrimitives.ReadUInt32LittleEndian(body), 32U), answer = 0;
        for (int i = 0; i < count && 8 + (4 * i) + 4 <= body.Length; i++)
            if (BinaryPrimitives.ReadUInt32LittleEndian(body[(8 + (4 * i))..]) <= (uint)Request.UnlinkDoorbell)
                answer |= 1 << i;
        return answer;
    }

    private static uint Context(ReadOnlySpan<byte> handle) => BinaryPrimitives.ReadUInt32LittleEndian(handle);

    private static uint Resource(ReadOnlySpan<byte> handle) => BinaryPrimitives.ReadUInt32LittleEndian(handle[4..]);

    /// <inheritdoc/>
    public VmciSavedState Save()
    {
        PciEndpointSavedState endpoint = SaveEndpoint();
        lock (_lock)
        {
            return new VmciSavedState
            {
                Endpoint = endpoint,
                Page = _page,
                Doorbells = [.. _doorbells.OrderBy(d => d.Key).SelectMany(d => (uint[])[d.Key.Context, d.Key.Resource, (uint)d.Value])],
                Cause = _cause,
                Mask = _mask,
                Capabilities = _capabilities,
                Result = _result,
                Enabled = _enabled,
                Request = _request[.._received],
                Ignored = _ignored,
            };
        }
    }

    /// <inheritdoc/>
    public void Restore(VmciSavedState state)
    {
        ArgumentNullException.ThrowIfNull(state);
        lock (_lock)
        {
            Forget();
            _page = state.Page <= GuestMemory.AddressLimit >> PageShift ? state.Page : null;
            for (int i = 0; i + 3 <= state.Doorbells.Length && _doorbells.Count < MaxDoorbells; i += 3)
                _doorbells[(state.Doorbells[i], state.Doorbells[i + 1])] = (int)(state.Doorbells[i + 2] % MaxDoorbells);
            _cause = state.Cause & Causes;
            _mask = state.Mask & Causes;
            _capabilities = state.Capabilities & Offered;
            _result = state.Result;
            _enabled = state.Enabled;
            // What has begun is less than a header, or a header that was found good and less than what it announces.
            foreach (byte b in state.Request.AsSpan(0, Math.Min(state.Request.Length, LongestRequest - 1)))
                Take(b);
            _result = state.Result;
            _ignored = state.Ignored;
        }
        RestoreEndpoint(state.Endpoint);
    }

    private enum Request : uint
    {
        ResourcesQuery = 0,
        GetContextId = 1,
        SetNotifyBitmap = 2,
        LinkDoorbell = 3,
        UnlinkDoorbell = 4,
    }

    /// <summary>Base address register 0.</summary>
    private sealed class Registers(VmciDevice owner) : IMmioDevice
    {
        public ulong ReadMmio(ulong offset, int size) => owner.Read(offset, size);

        public void WriteMmio(ulong offset, int size, ulong value) => owner.Write(offset, size, value);
    }
}

/// <summary>The interface at rest.</summary>
[SavedState("vmci", 1)]
public sealed record VmciSavedState
{
    /// <summary>The function's registers.</summary>
    public PciEndpointSavedState Endpoint { get; init; } = new();
    /// <summary>Number of the page with a byte for each doorbell; null: none.</summary>
    public ulong? Page { get; init; }
    /// <summary>Context, resource and byte of each doorbell.</summary>
    public uint[] Doorbells { get; init; } = [];
    /// <summary>Interrupt causes.</summary>
    public uint Cause { get; init; }
    /// <summary>Interrupt causes that interrupt.</summary>
    public uint Mask { get; init; }
    /// <summary>What the driver means to use.</summary>
    public uint Capabilities { get; init; }
    /// <summary>The last datagram's answer.</summary>
    public int Result { get; init; }
    /// <summary>Whether there are interrupts.</summary>
    public bool Enabled { get; init; }
    /// <summary>The datagram that is coming, as far as it has.</summary>
    public byte[] Request { get; init; } = [];
    /// <summary>How much of one that is too long is still to come.</summary>
    public ulong Ignored { get; init; }
}
