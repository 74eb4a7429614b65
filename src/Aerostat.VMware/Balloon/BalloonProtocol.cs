namespace Aerostat.VMware;

/// <summary>Commands of the balloon channel.</summary>
internal enum BalloonCommand : uint
{
    Start = 0,
    GetTarget = 1,
    Lock = 2,
    Unlock = 3,
    GuestId = 4,
    BatchedLock = 6,
    BatchedUnlock = 7,
    BatchedLargeLock = 8,
    BatchedLargeUnlock = 9,
    SetDoorbell = 10,
}

/// <summary>How a command, or one entry of a batch, went.</summary>
internal enum BalloonStatus : uint
{
    Success = 0,
    CommandInvalid = 1,
    FrameInvalid = 2,
    FrameLocked = 3,
    FrameUnlocked = 4,
    FramePinned = 5,
    FrameNotNeeded = 6,
    Reset = 7,
    Busy = 8,
    /// <summary>To START only: the capabilities granted are in RCX.</summary>
    SuccessWithCapabilities = 0x0300_0000,
    Failure = 0xFFFF_FFFF,
}

/// <summary>What a driver asks for with START. Bit 0 is reserved: a driver that sets it speaks a protocol that was never shipped.</summary>
[Flags]
internal enum BalloonCapabilities : uint
{
    None = 0,
    /// <summary>LOCK and UNLOCK. The first drivers pass their protocol's version, 2, which is the same bit.</summary>
    Basic = 1 << 1,
    Batched = 1 << 2,
    BatchedLarge = 1 << 3,
    Doorbell = 1 << 4,
    WideTarget = 1 << 5,
}
