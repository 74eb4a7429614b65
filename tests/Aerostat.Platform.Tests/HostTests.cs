using System.ComponentModel;
using System.Runtime.InteropServices;
using Xunit;

namespace Aerostat.Platform.Tests;

public sealed unsafe partial class HostTests : IDisposable
{
    private readonly string root = Directory.CreateTempSubdirectory("aerostat-host-").FullName;

    public void Dispose() => Directory.Delete(root, recursive: true);

    private void Put(string path, string text)
    {
        string full = Path.Combine(root, path);
        Directory.CreateDirectory(Path.GetDirectoryName(full)!);
        File.WriteAllText(full, text);
    }

    [Fact]
    public void A_host_that_tells_nothing_is_unknown()
    {
        HostFacts facts = HostFacts.Read(root);
        Assert.Equal("unknown", facts.KernelRelease);
        Assert.Equal("unknown", facts.ProcessorModel);
        Assert.Empty(facts.ProcessorFlags);
        Assert.Equal(KvmDevice.Missing, facts.Kvm);
        Assert.Null(facts.TransparentHugePages);
        Assert.Null(facts.ProcessorQuota);
        Assert.Equal(new HostMemory(0, 0, 0, null, null), facts.Memory);
    }

    [Fact]
    public void Facts_are_read()
    {
        Put("proc/sys/kernel/osrelease", "6.1.0-18-amd64\n");
        Put("etc/os-release", "ID=debian\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n");
        Put("proc/cpuinfo", "processor\t: 0\nmodel name\t: Some CPU @ 2.00GHz\nflags\t\t: fpu sse2 hypervisor\n\nprocessor\t: 1\n");
        Put("proc/meminfo", "MemTotal:       16384000 kB\nMemAvailable:   8192000 kB\nSwapFree: 1024 kB\nHugePages_Free:        3\nHugepagesize:       2048 kB\n");
        Put("dev/kvm", "");
        Put("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n");
        Put("sys/kernel/mm/transparent_hugepage/shmem_enabled", "always within_size advise [never] deny force\n");
        Put("proc/sys/vm/overcommit_memory", "2\n");
        Put("sys/fs/cgroup/cpu.max", "150000 100000\n");
        Put("sys/devices/system/clocksource/clocksource0/current_clocksource", "tsc\n");
        HostFacts facts = HostFacts.Read(root);
        Assert.Equal("6.1.0-18-amd64", facts.KernelRelease);
        Assert.Equal("Debian GNU/Linux 12 (bookworm)", facts.Distribution);
        Assert.Equal("Some CPU @ 2.00GHz", facts.ProcessorModel);
        Assert.True(facts.IsVirtual);
        Assert.Equal(KvmDevice.Present, facts.Kvm);
        Assert.Equal("madvise", facts.TransparentHugePages);
        Assert.Equal("never", facts.SharedHugePages);
        Assert.Equal((3UL, 2UL << 20, 2, 1.5, "tsc"), (facts.FreeHugePages, facts.HugePageSize, facts.Overcommit, facts.ProcessorQuota, facts.ClockSource));
        Assert.Equal(new HostMemory(16384000UL << 10, 8192000UL << 10, 1 << 20, null, null), facts.Memory);
        Assert.Equal(8192000UL << 10, facts.Memory.UsableBytes);
    }

    [Fact]
    public void The_tightest_group_of_version_2_counts()
    {
        Put("proc/meminfo", "MemTotal: 16384000 kB\nMemAvailable: 8192000 kB\n");
        Put("proc/self/cgroup", "0::/user.slice/app.scope\n");
        Put("sys/fs/cgroup/user.slice/app.scope/memory.max", "max\n");
        Put("sys/fs/cgroup/user.slice/app.scope/memory.current", "5\n");
        Put("sys/fs/cgroup/user.slice/memory.max", "1073741824\n");
        Put("sys/fs/cgroup/user.slice/memory.current", "536870912\n");
        Put("sys/fs/cgroup/user.slice/memory.stat", "anon 1\ninactive_file 268435456\n");
        HostMemory memory = HostMemory.Read(root);
        Assert.Equal((1UL << 30, 3UL << 28), (memory.LimitBytes, memory.LimitLeftBytes));
        Assert.Equal(3UL << 28, memory.UsableBytes);
    }

    [Fact]
    public void A_container_sees_its_own_group_at_the_root()
    {
        Put("proc/self/cgroup", "0::/\n");
        Put("sys/fs/cgroup/memory.max", "1048576\n");
        Put("sys/fs/cgroup/memory.current", "2097152\n");
        Assert.Equal(0UL, HostMemory.Read(root).LimitLeftBytes);
    }

    [Fact]
    public void Version_1_is_understood()
    {
        Put("proc/self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/docker/abc\n0::/\n");
        Put("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
        Put("sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes", "1000000\n");
        Put("sys/fs/cgroup/memory/docker/abc/memory.usage_in_bytes", "400000\n");
        HostMemory memory = HostMemory.Read(root);
        Assert.Equal((1000000UL, 600000UL), (memory.LimitBytes, memory.LimitLeftBytes));
    }

    [Fact]
    public void This_host_can_be_read()
    {
        HostFacts facts = HostFacts.Read();
        Assert.NotEqual("unknown", facts.KernelRelease);
        Assert.InRange(facts.Memory.UsableBytes, 1UL, facts.Memory.TotalBytes);
        Assert.True(facts.Processors > 0);
    }

    [Fact]
    public void Usage_is_parsed_with_odd_process_names()
    {
        ProcessUsage usage = ProcessUsage.Parse(
            "Name:\tx\nVmHWM:\t    2000 kB\nVmRSS:\t    1000 kB\nRssAnon:\t 300 kB\nRssFile:\t 200 kB\nRssShmem:\t 500 kB\nThreads:\t7\n",
            "12 (a ) (b) S 1 12 12 0 -1 4194560 100 0 0 0 150 25 0 0 20 0 7 0 100 0 0");
        Assert.Equal((1000UL << 10, 2000UL << 10, 500UL << 10, 500UL << 10), (usage.ResidentBytes, usage.PeakResidentBytes, usage.OwnAbove(0), usage.SharedBytes));
        Assert.Equal((TimeSpan.FromSeconds(1.5), TimeSpan.FromSeconds(0.25), 7), (usage.UserTime, usage.SystemTime, usage.Threads));
        Assert.Equal(TimeSpan.Zero, ProcessUsage.Parse("", "").UserTime);
        ProcessUsage now = ProcessUsage.Read();
        Assert.InRange(now.ResidentBytes, 1UL, now.PeakResidentBytes);
        Assert.InRange(now.OwnAbove(0), 1UL, now.ResidentBytes);
    }

    [Fact]
    public void Threads_have_numbers_times_and_processors()
    {
        Assert.True(HostThread.CurrentId > 0);
        Assert.Equal(TimeSpan.Zero, HostThread.CpuTimeOf(int.MaxValue));
        bool only0 = false, none = true;
        Thread thread = new(() =>
        {
            only0 = HostThread.SetAffinity(0);
            none = HostThread.SetAffinity(1023);
        });
        thread.Start();
        thread.Join();
        Assert.True(only0);
        Assert.False(none);
        Assert.Throws<ArgumentOutOfRangeException>(() => HostThread.SetAffinity(1024));
        Assert.Throws<ArgumentOutOfRangeException>(() => HostThread.SetAffinity(-1));
        TimeSpan before = HostThread.CpuTime;
        Assert.True(SpinWait.SpinUntil(() => HostThread.CpuTime > before, TimeSpan.FromSeconds(30)));
    }

    [Fact]
    public void The_first_signal_asks_and_the_second_ends()
    {
        List<int> ended = [];
        using HostSignals signals = new(code => { lock (ended) ended.Add(code); });
        Assert.Equal((0, 0), (signals.Received, signals.ExitStatus));
        Assert.Equal(0, kill(Environment.ProcessId, 15));
        Assert.True(signals.Stopping.WaitHandle.WaitOne(TimeSpan.FromSeconds(30)));
        Assert.Equal((15, 143), (signals.Received, signals.ExitStatus));
        Assert.Empty(ended);
        Assert.Equal(0, kill(Environment.ProcessId, 1));
        Assert.True(SpinWait.SpinUntil(() => { lock (ended) return ended.Count > 0; }, TimeSpan.FromSeconds(30)));
        Assert.Equal([129], ended);
    }

    [Fact]
    public void A_memory_file_is_counted_walked_and_discarded()
    {
        using MemoryFile file = new("test", 1UL << 30);
        Assert.Equal((1UL << 30, 0UL), (file.Length, file.AllocatedBytes));
        Assert.False(file.NextData(0, out _, out _));
        byte* p = HostMapping.Reserve(1 << 30);
        HostMapping.MapSharedAt(p, 1 << 30, file.Descriptor, 0);
        p[5 << 12] = p[6 << 12] = p[(1 << 30) - 1] = 1;
        Assert.Equal(3UL << 12, file.AllocatedBytes);
        Assert.Equal(3UL << 12, HostMapping.ResidentBytes(p, 1 << 30));
        Assert.True(file.NextData(0, out ulong start, out ulong stop));
        Assert.Equal((5UL << 12, 7UL << 12), (start, stop));
        Assert.True(file.NextData(6 << 12, out start, out stop));
        Assert.Equal((6UL << 12, 7UL << 12), (start, stop));
        Assert.True(file.NextData(7 << 12, out start, out stop));
        Assert.Equal(((1UL << 30) - 4096, 1UL << 30), (start, stop));
        Assert.False(file.NextData(1UL << 30, out _, out _));
        file.Discard(5 << 12, 1 << 12);
        Assert.Equal((0, 1), (p[5 << 12], p[6 << 12]));
        Assert.Throws<Win32Exception>(() => file.Discard(0, 0));
        HostMapping.Unmap(p, 1 << 30);
    }

    [Fact]
    public void Lazy_memory_is_zero_free_and_discardable()
    {
        const ulong Size = 64UL << 30;
        byte* p = HostMapping.AllocateLazy(Size);
        Assert.Equal(0, p[Size - 1]);
        p[Size / 2] = 1;
        Assert.True(HostMapping.Discard(p, Size));
        Assert.Equal(0, p[Size / 2]);
        HostMapping.AdviseHugePages(p, Size, wanted: false);
        HostMapping.Unmap(p, Size);
    }

    [LibraryImport("libc")]
    private static partial int kill(int process, int signal);
}
