using Aerostat.Loader;
using Aerostat.Machine;
using Xunit;

namespace Aerostat.Boot.Tests;

/// <summary>
/// Real programs from Debian's packages as a guest's user space: they meet what no generator thinks of (shared libraries, pages that come
/// and go, thousands of branches that share a place in a table).
/// </summary>
public sealed class ProgramTests
{
    private const string Script = """
        #!/bin/sh
        export PATH=/usr/bin:/usr/sbin HOME=/tmp LC_ALL=C
        busybox mount -t proc proc /proc
        busybox mount -t devtmpfs dev /dev
        busybox mount -t tmpfs tmpfs /tmp
        cd /tmp
        cat > sieve.c <<'END'
        #include <stdio.h>
        #include <stdlib.h>
        #include <string.h>
        int main(void)
        {
            int n = 200000, found = 0;
            char *composite = calloc(n + 1, 1);
            for (int i = 2; i <= n; i++) {
                if (composite[i])
                    continue;
                found++;
                for (long j = (long)i * i; j <= n; j += i)
                    composite[j] = 1;
            }
            printf("%d\n", found);
            return 0;
        }
        END
        for level in 0 2; do gcc -O$level sieve.c -o sieve$level & done
        wait
        echo GCC=$(./sieve0),$(./sieve2)
        echo PYTHON=$(python3 -c 'import json, re, decimal, hashlib
        print(json.dumps([sum(range(1000)), 2.5]), len(re.findall("a+b", "aab" * 500)), decimal.Decimal(2).sqrt(), hashlib.sha256(b"abc").hexdigest()[:8])')
        echo PERL=$(perl -e 'my %h; $h{$_ % 97} .= chr(65 + $_ % 26) for 1 .. 20000; my $n = 0; for (sort { $a <=> $b } keys %h) { $n += () = $h{$_} =~ /[AEIOU]/g } print $n')
        echo SQLITE=$(sqlite3 :memory: 'create table t(a integer primary key, b text); with recursive n(i) as (select 1 union all select i + 1 from n where i < 20000) insert into t select i, i % 100 from n; create index x on t(b); select count(*), sum(a) from t where b = 42')
        seq 1 100000 > numbers
        xz -k numbers && xz -dc numbers.xz | busybox cmp - numbers && echo XZ=same
        echo OPENSSL=$(openssl dgst -sha256 numbers | tail -c 65)
        echo HOST=$(busybox sha256sum numbers | head -c 64)
        openssl enc -aes-256-ctr -pbkdf2 -k secret -in numbers -out hidden && openssl enc -d -aes-256-ctr -pbkdf2 -k secret -in hidden | busybox cmp - numbers && echo AES=same
        stress-ng --cpu 2 --cpu-method all --cpu-ops 20 --verify --quiet --timeout 300 2>&1 && echo STRESS=good
        echo GUEST-DONE
        busybox poweroff -f
        """;

    private const string LongScript = """
        #!/bin/sh
        export PATH=/usr/bin:/usr/sbin HOME=/tmp LC_ALL=C.UTF-8
        busybox mount -t proc proc /proc
        busybox mount -t sysfs sys /sys
        busybox mount -t devtmpfs dev /dev
        busybox mount -t tmpfs tmpfs /tmp
        busybox ip link set lo up
        cd /tmp
        python3 -m test -q --timeout 600 test_json test_re test_struct test_math test_cmath test_decimal test_fractions test_float test_int test_long test_complex \
            test_hashlib test_zlib test_bz2 test_lzma test_random test_statistics test_itertools test_collections test_dict test_set test_list test_sort test_heapq \
            test_unicode test_bytes test_codecs test_array test_memoryview test_pickle test_generators test_coroutines test_exceptions test_thread test_queue test_mmap \
            test_binascii test_base64 test_bisect test_functools test_operator test_string test_textwrap test_difflib test_ast test_compile test_dis test_gc test_weakref \
            > python.log 2>&1
        tail -n 12 python.log
        echo PYTHON=$(sed -n 's/^.*Tests result: \([A-Z]*\).*/\1/p' python.log | tail -n 1)
        openssl speed -seconds 1 sha256 aes-256-cbc > /dev/null 2>&1 && openssl speed -seconds 1 -evp aes-256-gcm > /dev/null 2>&1 && echo SPEED=good
        seq 1 300000 > numbers
        for digest in md5 sha1 sha256 sha512; do
            echo OPENSSL-$digest=$(openssl dgst -r -$digest numbers | cut -d ' ' -f 1)
            echo HOST-$digest=$(${digest}sum numbers | cut -d ' ' -f 1)
        done
        stress() {
            if stress-ng --$1 2 --$1-ops $2 $3 --verify --timeout 900 > stress.log 2>&1; then echo STRESS-$1=good; else cat stress.log; fi
        }
        stress cpu 100 "--cpu-method all"
        stress vecmath 50
        stress vm 3000 "--vm-bytes 64M"
        stress memcpy 100
        stress atomic 50
        stress fault 20000
        stress fork 500
        stress context 500
        stress mmap 20 "--mmap-bytes 16M"
        echo GUEST-DONE
        busybox poweroff -f
        """;

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(4)]
    public async Task DebianProgramsOnTheTranslator(int cpus)
    {
        BootOutcome outcome = await RunAsync(Script, cpus, Path.Combine(Guest.Cache, "programs"));
        Assert.Equal("17984,17984", outcome.Value("GCC"));
        Assert.Equal("[499500, 2.5] 500 1.414213562373095048801688724 ba7816bf", outcome.Value("PYTHON"));
        Assert.Equal("3846", outcome.Value("PERL"));
        Assert.Equal("200|1998400", outcome.Value("SQLITE"));
        Assert.Equal("same", outcome.Value("XZ"));
        Assert.Equal(outcome.Value("HOST"), outcome.Value("OPENSSL"));
        Assert.Equal("same", outcome.Value("AES"));
        Assert.Equal("good", outcome.Value("STRESS"));
    }

    /// <summary>What takes minutes: <c>./dev test --programs</c>.</summary>
    [Theory(Explicit = true)]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(4)]
    public async Task TestSuitesAndStressorsOnTheTranslator(int cpus)
    {
        BootOutcome outcome = await RunAsync(LongScript, cpus, Path.Combine(Guest.Cache, "programs"), Path.Combine(Guest.Cache, "programs-python"));
        Assert.Equal("SUCCESS", outcome.Value("PYTHON"));
        Assert.Equal("good", outcome.Value("SPEED"));
        foreach (string digest in (string[])["md5", "sha1", "sha256", "sha512"])
            Assert.Equal(outcome.Value($"HOST-{digest}"), outcome.Value($"OPENSSL-{digest}"));
        foreach (string stressor in (string[])["cpu", "vecmath", "vm", "memcpy", "atomic", "fault", "fork", "context", "mmap"])
            Assert.Equal("good", outcome.Value($"STRESS-{stressor}"));
    }

    private static async Task<BootOutcome> RunAsync(string script, int cpus, params string[] roots)
    {
        foreach (string root in roots)
            Assert.SkipUnless(Directory.Exists(Path.Combine(root, "usr")), $"no programs in {root}: './dev test' fetches them, and could not");
        string initramfs = Path.Combine(Path.GetTempPath(), $"aerostat-programs-{Environment.ProcessId}-{cpus}.cpio");
        try
        {
            await ProgramGuest.WriteInitramfsAsync(initramfs, script, roots);
            BootOutcome outcome = await Guest.RunAsync("cloud", "quiet", cpus, 3UL << 30, "translator", new KernelBootOptions("") { Initrd = initramfs }, limit: TimeSpan.FromHours(1));
            Assert.True(outcome.Exit.Kind == MachineExitKind.PoweredOff && outcome.Console.Contains(Guest.Done, StringComparison.Ordinal), $"{outcome.Exit.Kind}: {outcome.Exit.Report}\n{outcome.Tail}");
            Assert.DoesNotContain("segfault", outcome.Console, StringComparison.Ordinal);
            return outcome;
        }
        finally
        {
            File.Delete(initramfs);
        }
    }
}
