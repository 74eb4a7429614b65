using System.Runtime.InteropServices;
using Aerostat.Platform;

namespace Aerostat.Storage.Tests;

/// <summary>Disks read and written by arrays.</summary>
internal static class Bytes
{
    public static byte[] Read(this IDisk disk, ulong offset, int length)
    {
        byte[] bytes = GC.AllocateArray<byte>(length, pinned: true);
        Assert.Equal(DiskResult.Done, disk.Read(offset, [Buffer(bytes, 0, length)]));
        return bytes;
    }

    public static DiskResult Write(this IDisk disk, ulong offset, ReadOnlySpan<byte> bytes)
    {
        byte[] pinned = GC.AllocateUninitializedArray<byte>(bytes.Length, pinned: true);
        bytes.CopyTo(pinned);
        // In two pieces that do not end with a sector, as a guest may have it.
        int cut = bytes.Length / 3;
        DiskResult result = disk.Write(offset, [Buffer(pinned, 0, cut), Buffer(pinned, cut, bytes.Length - cut)]);
        GC.KeepAlive(pinned);
        return result;
    }

    public static HostBuffer Buffer(byte[] pinned, int at, int length) => new(Marshal.UnsafeAddrOfPinnedArrayElement(pinned, 0) + at, (nuint)length);
}
