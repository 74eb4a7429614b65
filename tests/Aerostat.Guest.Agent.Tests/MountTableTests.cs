namespace Aerostat.Guest.Agent.Tests;

/// <summary>What is frozen, and in which order.</summary>
public sealed class MountTableTests
{
    [Fact]
    public void ReverseMountOrderWithTheRootLastAndEachOnce()
    {
        Assert.Equal(
            ["/srv/a b btrfs /dev/vdd", "/var xfs 254:32", "/data ext4 254:16", "/ ext4 254:1"],
            Read("""
                20 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro
                21 20 254:16 / /data rw,relatime shared:2 - ext4 /dev/vdb rw
                22 20 254:32 / /var rw,relatime - xfs /dev/vdc rw,attr2
                23 22 254:16 /sub /var/bind rw,relatime shared:2 master:3 - ext4 /dev/vdb rw
                24 20 0:35 /one /srv/a\040b rw,relatime - btrfs /dev/vdd rw,subvol=/one
                25 20 0:36 /two /srv/two rw,relatime - btrfs /dev/vdd rw,subvol=/two
                """));
    }

    /// <summary>Never a network, pseudo or read-only one, nor one whose writes go to a file of another.</summary>
    [Fact]
    public void WhatIsLeftAlone()
    {
        Assert.Equal(
            ["/ ext4 254:1"],
            Read("""
                19 1 0:2 / /old rw - rootfs none rw
                20 1 254:1 / / rw,relatime - ext4 /dev/vda1 rw
                30 20 0:20 / /proc rw - proc proc rw
                31 20 0:5 / /dev rw - devtmpfs udev rw
                32 20 0:40 / /tmp rw - tmpfs tmpfs rw
                33 20 0:41 / /net rw - nfs4 host:/export rw
                34 20 0:42 / /win rw - cifs //host/share rw
                35 20 0:43 / /home/u/mnt rw - fuse.sshfs u@host: rw
                36 20 254:50 / /fuseblk rw - fuseblk /dev/vdf rw
                37 20 11:0 / /media ro - iso9660 /dev/sr0 ro
                38 20 254:48 / /archive rw - ext4 /dev/vde ro
                39 20 7:0 / /snap/x rw - ext4 /dev/loop0 rw
                40 20 0:44 / /merged rw - overlay overlay rw,lowerdir=/a
                not a line
                41 20 254:60 / /cut rw -
                """));
    }

    /// <summary>A root that is bind-mounted elsewhere is still the root.</summary>
    [Fact]
    public void TheRootIsLastWhereverElseItIs() => Assert.Equal(
        ["/b ext4 8:2", "/chroot ext4 8:1"],
        Read("""
            20 1 8:1 / /chroot rw - ext4 /dev/sda1 rw
            21 20 8:1 / / rw - ext4 /dev/sda1 rw
            22 20 8:2 / /b rw - ext4 /dev/sda2 rw
            """));

    private static IEnumerable<string> Read(string lines) => MountTable.Read(lines.Split('\n')).Select(f => $"{f.Paths[0]} {f.Type} {f.Device}");
}
