using System.Text;
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

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    public async Task DebianProgramsOnTheTranslator(int cpus)
    {
        string root = Path.Combine(Guest.Cache, "programs");
        Assert.SkipUnless(Directory.Exists(Path.Combine(root, "usr", "bin")), $"no programs in {root}: './dev test' fetches them, and could not");
        string initramfs = Path.Combine(Path.GetTempPath(), $"aerostat-programs-{Environment.ProcessId}-{cpus}.cpio");
        try
        {
            await using (FileStream file = new(initramfs, FileMode.Create, FileAccess.Write, FileShare.None, 1 << 20))
            {
                CpioArchive archive = new(file);
                archive.AddFile("init", Encoding.UTF8.GetBytes(Script.Replace("\r", "", StringComparison.Ordinal) + "\n"), 0x1ED);
                foreach (string folder in (string[])["dev", "proc", "sys", "tmp"])
                    archive.AddDirectory(folder);
                archive.AddCharacterDevice("dev/console", 5, 1);
                archive.AddTree(root);
                archive.Finish();
            }
            BootOutcome outcome = await Guest.RunAsync("cloud", "quiet", cpus, 2UL << 30, "translator", new KernelBootOptions("") { Initrd = initramfs });
            Assert.True(outcome.Exit.Kind == MachineExitKind.PoweredOff && outcome.Console.Contains(Guest.Done, StringComparison.Ordinal), $"{outcome.Exit.Kind}: {outcome.Exit.Report}\n{outcome.Tail}");
            Assert.DoesNotContain("segfault", outcome.Console, StringComparison.Ordinal);
            Assert.Equal("17984,17984", outcome.Value("GCC"));
            Assert.Equal("[499500, 2.5] 500 1.414213562373095048801688724 ba7816bf", outcome.Value("PYTHON"));
            Assert.Equal("3846", outcome.Value("PERL"));
            Assert.Equal("200|1998400", outcome.Value("SQLITE"));
            Assert.Equal("same", outcome.Value("XZ"));
            Assert.Equal(outcome.Value("HOST"), outcome.Value("OPENSSL"));
            Assert.Equal("same", outcome.Value("AES"));
            Assert.Equal("good", outcome.Value("STRESS"));
        }
        finally
        {
            File.Delete(initramfs);
        }
    }
}
