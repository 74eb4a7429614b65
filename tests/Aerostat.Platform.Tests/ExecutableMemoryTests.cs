using Xunit;

namespace Aerostat.Platform.Tests;

public sealed unsafe class ExecutableMemoryTests
{
    // mov eax, imm32; ret
    private static byte[] Return(int value) => [0xB8, (byte)value, (byte)(value >> 8), (byte)(value >> 16), (byte)(value >> 24), 0xC3];

    private static int Call(nint address) => ((delegate* unmanaged<int>)address)();

    private static string Rights(nint address)
    {
        foreach (string line in File.ReadLines("/proc/self/maps"))
        {
            string[] parts = line.Split(' ', StringSplitOptions.RemoveEmptyEntries);
            string[] range = parts[0].Split('-');
            if ((ulong)address >= Convert.ToUInt64(range[0], 16) && (ulong)address < Convert.ToUInt64(range[1], 16))
                return parts[1];
        }
        return "";
    }

    [Theory]
    [InlineData(CodePlacement.Anywhere)]
    [InlineData(CodePlacement.Below2GiB)]
    public void Code_runs_and_no_view_is_writable_and_executable(CodePlacement placement)
    {
        using ExecutableMemory memory = new(1 << 20, placement);
        nint one = memory.Write(Return(1)), two = memory.Write(Return(0x12345678));
        Assert.Equal(1, Call(one));
        Assert.Equal(0x12345678, Call(two));
        Assert.Equal("r-xs", Rights(one));
        Assert.Equal("rw-s", Rights((nint)memory.ToWritable(one)));
        Assert.DoesNotContain(File.ReadLines("/proc/self/maps"), l => l.Contains("aerostat-code") && l.Contains("rwx"));
        if (placement == CodePlacement.Below2GiB)
            Assert.InRange(memory.Base + memory.Capacity, 0, int.MaxValue);
    }

    /// <summary>perf looks names up in its map for code in anonymous memory only; shared, that is called /dev/zero.</summary>
    [Fact]
    public void Code_for_profilers_has_no_file()
    {
        using ExecutableMemory memory = new(1 << 20, visibleToProfilers: true);
        nint code = memory.Write(Return(5));
        Assert.Equal(5, Call(code));
        Assert.Equal("r-xs", Rights(code));
        Assert.Equal("rw-s", Rights((nint)memory.ToWritable(code)));
        Assert.Contains(File.ReadLines("/proc/self/maps"), l => l.StartsWith($"{memory.Base:x}-", StringComparison.Ordinal) && l.Contains("/dev/zero"));
        memory.Clear();
        Assert.Equal(0, *memory.ToWritable(code));
        Assert.Equal(6, Call(memory.Write(Return(6))));
    }

    /// <summary>Huge pages or not, which is the host's to say.</summary>
    [Theory]
    [InlineData(CodePlacement.Anywhere, false)]
    [InlineData(CodePlacement.Below2GiB, false)]
    [InlineData(CodePlacement.Anywhere, true)]
    public void Settled_code_runs_and_changes_as_before(CodePlacement placement, bool visibleToProfilers)
    {
        using ExecutableMemory memory = new(6 << 20, placement, visibleToProfilers);
        for (int round = 0; round < 2; round++)
        {
            List<nint> code = [];
            while (memory.TryWrite(Return(code.Count + round), 4096, out nint address))
            {
                code.Add(address);
                memory.Settle(address);
            }
            Assert.Equal(6 << 8, code.Count);
            Assert.Equal("r-xs", Rights(code[0]));
            Assert.Equal("rw-s", Rights((nint)memory.ToWritable(code[0])));
            for (int i = 0; i < code.Count; i++)
                Assert.Equal(i + round, Call(code[i]));
            *memory.ToWritable(code[3] + 1) = 77;
            Assert.Equal(77, Call(code[3]));
            memory.Clear();
            Assert.Equal(0, *memory.ToWritable(code[3]));
        }
        memory.Write(Return(1));
        Assert.Throws<ArgumentOutOfRangeException>(() => memory.Settle(memory.Base + (4 << 20)));
    }

    [Fact]
    public void Blocks_are_aligned_apart_and_bounded()
    {
        using ExecutableMemory memory = new(4096);
        nint a = memory.Write([0xC3], 1);
        nint expected = memory.NextAddress(64);
        nint b = memory.Write([0xC3], 64);
        Assert.Equal(memory.Base, a);
        Assert.Equal(memory.Base + 64, b);
        Assert.Equal(expected, b);
        Assert.Equal(0xCC, *memory.ToWritable(a + 1));
        Assert.False(memory.TryWrite(new byte[4096], 16, out _));
        Assert.True(memory.TryAllocate(4096 - 65, 1, out nint rest));
        Assert.Equal(b + 1, rest);
        Assert.Contains("full", Assert.Throws<InvalidOperationException>(() => memory.Write([0xC3], 1)).Message);
        Assert.Throws<ArgumentOutOfRangeException>(() => memory.Write([0xC3], 3));
        Assert.Throws<ArgumentOutOfRangeException>(() => { memory.ToWritable(memory.Base + 4096); });
        Assert.False(memory.Contains(memory.Base - 1));
        memory.Clear();
        Assert.Equal(0, memory.Used);
        Assert.Equal(7, Call(memory.Write(Return(7))));
    }

    [Fact]
    public void A_patch_is_seen_by_running_threads()
    {
        using ExecutableMemory memory = new(4096);
        // jmp self: threads loop in it until the patch turns it into two NOPs.
        nint code = memory.Write([0xEB, 0xFE, 0xC3], 16);
        Thread[] threads = Enumerable.Range(0, 2).Select(_ => new Thread(() => ((delegate* unmanaged<void>)code)())).ToArray();
        foreach (Thread t in threads)
            t.Start();
        memory.Patch(code, [0x90, 0x90]);
        foreach (Thread t in threads)
            Assert.True(t.Join(TimeSpan.FromSeconds(30)));
        Assert.Throws<ArgumentException>(() => memory.Patch(code + 1, [0x90, 0x90]));
        Assert.Throws<ArgumentException>(() => memory.Patch(code, [0x90, 0x90, 0x90]));
    }

    [Fact]
    public void Many_threads_get_blocks_of_their_own()
    {
        using ExecutableMemory memory = new(1 << 20);
        (nint Address, int Value)[][] all = new (nint, int)[4][];
        Parallel.For(0, 4, t => all[t] = Enumerable.Range(0, 500).Select(i => (memory.Write(Return(t * 1000 + i)), t * 1000 + i)).ToArray());
        Assert.Equal(2000, all.SelectMany(a => a).Select(a => a.Address).Distinct().Count());
        foreach ((nint address, int value) in all.SelectMany(a => a))
            Assert.Equal(value, Call(address));
    }

    [Fact]
    public void Nothing_is_left_behind()
    {
        ExecutableMemory memory = new(1 << 20);
        nint code = memory.Write(Return(1)), data = (nint)memory.ToWritable(code);
        memory.Dispose();
        memory.Dispose();
        Assert.DoesNotContain("x", Rights(code));
        Assert.Throws<ObjectDisposedException>(() => memory.Write([0xC3]));
        Assert.Throws<ArgumentOutOfRangeException>(() => new ExecutableMemory(0));
        Assert.Throws<ArgumentOutOfRangeException>(() => new ExecutableMemory(int.MaxValue));
    }
}
