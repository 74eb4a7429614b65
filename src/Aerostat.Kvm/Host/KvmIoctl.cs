using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace Aerostat.Kvm;

/// <summary>Numbers of the KVM interface (Documentation/virt/kvm/api.rst): direction, size and number as ioctl(2) packs them.</summary>
internal static class KvmIoctl
{
    public const nuint GetApiVersion = 0xAE00, CreateVm = 0xAE01, CheckExtension = 0xAE03, GetVcpuMapSize = 0xAE04;
    public const nuint GetMsrIndexList = 0xC004_AE02, GetSupportedCpuid = 0xC008_AE05;
    public const nuint CreateVcpu = 0xAE41, GetDirtyLog = 0x4010_AE42, SetUserMemoryRegion = 0x4020_AE46, SetTssAddress = 0xAE47, SetIdentityMapAddress = 0x4008_AE48;
    public const nuint Translate = 0xC018_AE85, SetClock = 0x4030_AE7B, GetClock = 0x8030_AE7C;
    public const nuint Run = 0xAE80, GetRegisters = 0x8090_AE81, SetRegisters = 0x4090_AE82, GetSpecialRegisters = 0x8138_AE83, SetSpecialRegisters = 0x4138_AE84;
    public const nuint Interrupt = 0x4004_AE86, GetMsrs = 0xC008_AE88, SetMsrs = 0x4008_AE89, SetSignalMask = 0x4004_AE8B, SetCpuid = 0x4008_AE90;
    public const nuint Nmi = 0xAE9A, SetGuestDebug = 0x4048_AE9B, GetVcpuEvents = 0x8040_AE9F, SetVcpuEvents = 0x4040_AEA0;
    public const nuint GetDebugRegisters = 0x8080_AEA1, SetDebugRegisters = 0x4080_AEA2, SetTscKhz = 0xAEA2, GetTscKhz = 0xAEA3, EnableCapability = 0x4068_AEA3;
    public const nuint GetXsave = 0x9000_AEA4, SetXsave = 0x5000_AEA5, GetXcrs = 0x8188_AEA6, SetXcrs = 0x4188_AEA7, SetMsrFilter = 0x4188_AEC6, GetXsave2 = 0x9000_AECF;

    public const nuint RegisterGathered = 0x4010_AE67, SetRouting = 0x4008_AE6A, InterruptDescriptor = 0x4020_AE76, WriteDescriptor = 0x4040_AE79, SignalMessage = 0x4020_AEA5;
    public const nuint GetLocalApic = 0x8400_AE8E, SetLocalApic = 0x4400_AE8F, GetActivity = 0x8004_AE98, SetActivity = 0x4004_AE99;
    public const nuint ResetDirtyRings = 0xAEC7, GetSupportedHyperVCpuid = 0xC008_AEC1;

    /// <summary>The only version of the interface there has ever been since it became stable.</summary>
    public const int ApiVersion = 12;
}

/// <summary>Numbers for KVM_CHECK_EXTENSION.</summary>
internal enum KvmCapability : uint
{
    Irqchip = 0, UserMemory = 3, MaximumSlots = 10, MpState = 14, CoalescedMmio = 15, UserNmi = 22, GuestDebug = 23, Irqfd = 32, Ioeventfd = 36, AdjustClock = 39,
    VcpuEvents = 41, HyperV = 44, DebugRegisters = 50, Xsave = 55, Xcrs = 56, TscControl = 60, GetTscKhz = 61, MaximumVcpus = 66, SyncRegisters = 74,
    ReadonlyMemory = 81, SplitIrqchip = 121, HyperVSynic = 123, ImmediateExit = 136, CoalescedPio = 162, ManualDirtyLog = 168, UserSpaceMsr = 188, MsrFilter = 189,
    HyperVVpIndex = 151, HyperVEventDescriptor = 154, HyperVTlbFlush = 155, HyperVSendIpi = 161, HyperVSynic2 = 148, HyperVCpuid = 167, SystemHyperVCpuid = 191,
    SignalMessage = 77, IoeventfdNoLength = 100, IoeventfdAnyLength = 122, ApicBusCycle = 237,
    DirtyRing = 192, GuestDebug2 = 195, Xsave2 = 208,
}

/// <summary>Why KVM_RUN came back.</summary>
internal enum KvmExit : uint
{
    Unknown = 0, Exception = 1, Io = 2, Hypercall = 3, Debug = 4, Halt = 5, Mmio = 6, InterruptWindowOpen = 7, Shutdown = 8, FailEntry = 9,
    Interrupted = 10, SetTpr = 11, InternalError = 17, EndOfInterrupt = 26, ReadMsr = 29, WriteMsr = 30, DirtyRingFull = 31,
}

/// <summary>The calls that drive /dev/kvm (Linux man pages ioctl(2), mmap(2), tgkill(2), rt_sigtimedwait(2)).</summary>
internal static unsafe partial class KvmCalls
{
    /// <summary>
    /// The real-time signal that takes a vCPU out of KVM_RUN. It is blocked in every thread that runs one and open only inside KVM_RUN, so
    /// no handler exists or is needed. The C library's threads and the .NET runtime use the first ones from 32 on.
    /// </summary>
    public const int KickSignal = 42;

    public const int Interrupted = 4, TryAgain = 11, NoEntry = 2, AccessDenied = 13, NotPermitted = 1, TooBig = 7;

    private const nint SysTgkill = 234, SysSigprocmask = 14, SysSigtimedwait = 128;
    private const nint SigBlock = 0;

    /// <summary>The kick signal as a bit of a signal set.</summary>
    public const ulong KickBit = 1UL << (KickSignal - 1);

    /// <summary>An ioctl; a negative result is the error number, negated.</summary>
    public static int Control(int fd, nuint request, void* argument)
    {
        int result = ioctl(fd, request, (nint)argument);
        return result >= 0 ? result : -Marshal.GetLastPInvokeError();
    }

    /// <summary>An ioctl with a number for argument; a negative result is the error number, negated.</summary>
    public static int Control(int fd, nuint request, nint argument = 0)
    {
        int result = ioctl(fd, request, argument);
        return result >= 0 ? result : -Marshal.GetLastPInvokeError();
    }

    /// <summary>An ioctl on a structure; a negative result is the error number, negated.</summary>
    public static int Control<T>(int fd, nuint request, ref T argument)
        where T : unmanaged
    {
        // SAFETY: the structure stays where it is during the call, and the request's number holds its size.
        fixed (T* pointer = &argument)
            return Control(fd, request, pointer);
    }

    /// <summary>Opens the device; a negative result is the error number, negated.</summary>
    public static int Open(string path)
    {
        const int ReadWrite = 2, CloseOnExec = 0x80000;
        int fd = open(path, ReadWrite | CloseOnExec);
        return fd >= 0 ? fd : -Marshal.GetLastPInvokeError();
    }

    /// <summary>Closes a descriptor.</summary>
    public static void Close(int fd) => _ = close(fd);

    /// <summary>Maps a vCPU's shared pages, or null.</summary>
    public static byte* Map(int fd, nuint length)
    {
        const int ReadWrite = 3, Shared = 1;
        byte* address = mmap(null, length, ReadWrite, Shared, fd, 0);
        return address == (byte*)-1 ? null : address;
    }

    /// <summary>Maps a vCPU's dirty ring, or null.</summary>
    public static byte* MapRing(int fd, nuint length)
    {
        const int ReadWrite = 3, Shared = 1;
        // KVM_DIRTY_LOG_PAGE_OFFSET, in pages.
        const nint Offset = 64 * 4096;
        byte* address = mmap(null, length, ReadWrite, Shared, fd, Offset);
        return address == (byte*)-1 ? null : address;
    }

    /// <summary>Makes a set of descriptors to wait for; a negative result is the error number, negated.</summary>
    public static int OpenPoll()
    {
        const int CloseOnExec = 0x80000;
        int fd = epoll_create1(CloseOnExec);
        return fd >= 0 ? fd : -Marshal.GetLastPInvokeError();
    }

    /// <summary>Adds one that is waited for until it can be read.</summary>
    public static bool PollAdd(int poll, int fd)
    {
        const int Add = 1;
        PollEvent item = new() { Events = 1, Data = (ulong)fd };
        return epoll_ctl(poll, Add, fd, &item) == 0;
    }

    /// <summary>Waits for some of them; answers how many.</summary>
    public static int PollWait(int poll, int* ready, int most)
    {
        PollEvent* items = stackalloc PollEvent[most];
        int count = epoll_wait(poll, items, most, -1);
        for (int i = 0; i < count; i++)
            ready[i] = (int)items[i].Data;
        return Math.Max(count, 0);
    }

    // struct epoll_event, packed on x86-64.
    [StructLayout(LayoutKind.Sequential, Pack = 4)]
    private struct PollEvent
    {
        public uint Events;
        public ulong Data;
    }

    /// <summary>Makes an event descriptor that never blocks; a negative result is the error number, negated.</summary>
    public static int OpenEvent()
    {
        const int NonBlocking = 0x800, CloseOnExec = 0x80000;
        int fd = eventfd(0, NonBlocking | CloseOnExec);
        return fd >= 0 ? fd : -Marshal.GetLastPInvokeError();
    }

    /// <summary>Raises it by one. False: it cannot count further.</summary>
    public static bool SignalEvent(int fd)
    {
        ulong one = 1;
        return write(fd, &one, sizeof(ulong)) == sizeof(ulong);
    }

    /// <summary>Sets it back to zero; true: it had been raised.</summary>
    public static bool ConsumeEvent(int fd)
    {
        ulong count;
        return read(fd, &count, sizeof(ulong)) == sizeof(ulong);
    }

    /// <summary>Unmaps them.</summary>
    public static void Unmap(byte* address, nuint length) => _ = munmap(address, length);

    /// <summary>Blocks the kick signal in the calling thread and answers the mask that KVM_RUN is to run with: the thread's own, with it open.</summary>
    public static ulong BlockKicks()
    {
        ulong block = KickBit, old = 0;
        _ = syscall4(SysSigprocmask, SigBlock, (nint)(&block), (nint)(&old), sizeof(ulong));
        return old & ~KickBit;
    }

    /// <summary>Takes the calling thread's pending kick signal, if there is one.</summary>
    public static void ConsumeKick()
    {
        ulong set = KickBit;
        long* now = stackalloc long[2];
        now[0] = now[1] = 0;
        _ = syscall4(SysSigtimedwait, (nint)(&set), 0, (nint)now, sizeof(ulong));
    }

    /// <summary>Sends the kick signal to a thread of this process that has it blocked.</summary>
    public static void Kick(int thread) => _ = syscall3(SysTgkill, Environment.ProcessId, thread, KickSignal);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int ioctl(int fd, nuint request, nint argument);

    [LibraryImport("libc", SetLastError = true, StringMarshalling = StringMarshalling.Utf8)]
    private static partial int open(string path, int flags);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int epoll_create1(int flags);

    [LibraryImport("libc")]
    private static partial int epoll_ctl(int poll, int operation, int fd, PollEvent* item);

    [LibraryImport("libc")]
    private static partial int epoll_wait(int poll, PollEvent* items, int most, int timeout);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int eventfd(uint initial, int flags);

    [LibraryImport("libc")]
    private static partial nint write(int fd, void* data, nint length);

    [LibraryImport("libc")]
    private static partial nint read(int fd, void* data, nint length);

    [LibraryImport("libc")]
    private static partial int close(int fd);

    [LibraryImport("libc")]
    private static partial byte* mmap(byte* address, nuint length, int protection, int flags, int fd, nint offset);

    [LibraryImport("libc")]
    private static partial int munmap(byte* address, nuint length);

    [LibraryImport("libc", EntryPoint = "syscall")]
    private static partial nint syscall3(nint number, nint a, nint b, nint c);

    [LibraryImport("libc", EntryPoint = "syscall")]
    private static partial nint syscall4(nint number, nint a, nint b, nint c, nint d);
}
