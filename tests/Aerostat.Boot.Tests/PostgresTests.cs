using System.Globalization;
using Aerostat.Backup;
using Aerostat.Loader;
using Aerostat.Machine;
using Xunit;

namespace Aerostat.Boot.Tests;

/// <summary>
/// Debian's PostgreSQL in a guest, its log on a disk of its own, under pgbench: backed up as it works, with a hook of the agent's that has it write a checkpoint,
/// and brought up from what is restored. Takes minutes: <c>./dev test --postgres</c> fetches the packages and runs it.
/// </summary>
public sealed class PostgresTests(ITestOutputHelper output)
{
    private const int Backups = 3;

    private static readonly string[] s_modules = ["virtio_pci", "virtio_blk", "hv_utils"];

    // Both guests. PostgreSQL does not run as root; the tree has been unpacked only, so that nobody has made its user.
    private const string Start = $$"""
        #!/bin/sh
        export PATH=/usr/bin:/usr/sbin LC_ALL=C PGHOST=/tmp PGUSER=postgres PGDATABASE=postgres
        for fs in proc:/proc sysfs:/sys devtmpfs:/dev tmpfs:/tmp; do busybox mount -t ${fs%%:*} ${fs%%:*} ${fs##*:}; done
        mkdir /dev/shm && busybox mount -t tmpfs tmpfs /dev/shm
        export PATH=$(echo /usr/lib/postgresql/*/bin):$PATH
        {{ProgramGuest.LoadModules}}
        busybox stty -echo
        echo 'root:x:0:0::/tmp:/bin/sh' > /etc/passwd
        echo 'postgres:x:70:70::/tmp:/bin/sh' >> /etc/passwd
        echo 'postgres:x:70:' > /etc/group
        mkdir -p /data /wal
        busybox mount -t ext4 /dev/vda /data && busybox mount -t ext4 /dev/vdb /wal || echo FAILED=mount
        as() { chroot --userspec=70:70 / "$@"; }
        server() { as postgres -D /data/db -k /tmp -c listen_addresses= -c jit=off -c shared_buffers=32MB -c max_wal_size=64MB -c checkpoint_timeout=30s > /tmp/server.log 2>&1 & until as pg_isready -q; do sleep 0.2; done; }
        sql() { as psql -X -A -t -q -c "$1"; }
        trouble() { cat /tmp/server.log /tmp/bench.log /tmp/checksums.log 2> /dev/null | grep -iE 'error|panic|fatal|corrupt|fail' | grep -vE 'the database system is|number of failed transactions: 0|Bad checksums:  0'; }
        digest() { sql "select count(*), md5(string_agg(n || text, ',' order by n)) from log where n <= $1"; }

        """;

    // A line of the log is told when its transaction is durable, by PostgreSQL's own word.
    private const string Work = """
        mkdir -p /data/db /wal/log /etc/aerostat-agent/hooks
        busybox chown 70:70 /data/db /wal/log
        as initdb -D /data/db -X /wal/log -k -A trust -E UTF8 --no-locale --no-sync > /tmp/initdb.log 2>&1 || { cat /tmp/initdb.log; echo FAILED=initdb; }
        server
        as pgbench -i -s 2 -q > /tmp/init.log 2>&1 || { cat /tmp/init.log; echo FAILED=pgbench; }
        sql 'create table log(n bigint primary key, text text); create table hooks(word text); create extension amcheck'
        cat > /etc/aerostat-agent/hooks/postgres <<'END'
        #!/bin/sh
        exec chroot --userspec=70:70 / psql -X -q -c "insert into hooks values ('$1')" -c checkpoint
        END
        chmod 755 /etc/aerostat-agent/hooks/postgres
        until [ -e /dev/vmbus/hv_vss ]; do sleep 0.1; done
        aerostat-agent &
        until busybox dmesg | grep -q 'aerostat-agent.*registered'; do sleep 0.1; done
        as pgbench -n -c 3 -T 100000 > /tmp/bench.log 2>&1 &
        (n=0; while :; do n=$((n + 1)); printf '%s\n' "insert into log values ($n, md5(random()::text));" "\\echo WROTE=$n"; sleep 0.05; done) | as psql -X -q &
        while read -r word n; do
            [ "$word" = digest ] || break
            echo DIGEST-$n=$(digest $n)
            echo HISTORY-$n=$(sql 'select count(*) from pgbench_history')
        done
        trouble
        echo TROUBLE=$(trouble | wc -l)
        echo GUEST-DONE
        busybox poweroff -f
        """;

    private const string Check = """
        server
        echo RECOVERY=$(grep -c 'automatic recovery in progress' /tmp/server.log)
        last=$(sql 'select max(n) from log')
        echo LAST=$last
        echo DIGEST=$(digest $last)
        echo HISTORY=$(sql 'select count(*) from pgbench_history')
        echo SUMS=$(sql 'select (select sum(abalance) from pgbench_accounts), (select sum(tbalance) from pgbench_tellers), (select sum(bbalance) from pgbench_branches), (select sum(delta) from pgbench_history)')
        echo HOOKS=$(sql "select string_agg(word, ',') from hooks")
        as pg_amcheck --heapallindexed postgres > /tmp/amcheck.log 2>&1; echo AMCHECK=$?
        cat /tmp/amcheck.log
        as pg_ctl -s -D /data/db -m fast stop; echo STOP=$?
        as pg_checksums -c -D /data/db > /tmp/checksums.log 2>&1; echo CHECKSUMS=$?
        trouble
        echo TROUBLE=$(trouble | wc -l)
        echo GUEST-DONE
        busybox poweroff -f
        """;

    [Fact(Explicit = true)]
    public async Task WhatWasCommittedIsInTheBackup()
    {
        CancellationToken token = TestContext.Current.CancellationToken;
        string root = Path.Combine(Guest.Cache, "postgres");
        Assert.SkipUnless(Directory.Exists(Path.Combine(root, "usr", "lib", "postgresql")), $"no PostgreSQL in {root}");
        Assert.SkipUnless(File.Exists(FrozenGuest.AgentPath), $"there is no agent {FrozenGuest.AgentPath}; './dev build' makes one");
        string? check = FrozenGuest.Find("e2fsck");
        Assert.SkipWhen(check is null, "no e2fsck: install e2fsprogs");
        DirectoryInfo folder = Directory.CreateTempSubdirectory("aerostat-postgres-");
        try
        {
            string initramfs = Path.Combine(folder.FullName, "initramfs.cpio"), store = Path.Combine(folder.FullName, "store");
            string[] disks = [Path.Combine(folder.FullName, "data.img"), Path.Combine(folder.FullName, "wal.img")];
            foreach (string disk in disks)
                await FrozenGuest.MakeExt4Async(disk, 512 << 20);
            await ProgramGuest.WriteInitramfsAsync(initramfs, Start + Work, [root], s_modules, [new InitramfsFile("usr/bin/aerostat-agent", FrozenGuest.AgentPath, true)]);
            List<(BackupResult Result, long Before, long After)> backups = [];
            BootOutcome source = await RunAsync(initramfs, disks, async (machine, console) =>
            {
                MachineBackups save = new(machine, "test");
                for (int i = 0; i < Backups; i++)
                {
                    await MoreAsync(machine, console);
                    long before = LastWritten(console);
                    BackupResult result = await save.SaveAsync(store, new BackupOptions { Incremental = i > 0 }, token);
                    backups.Add((result, before, LastWritten(console)));
                }
                // Later than all of them: what is in the copies is still what is in the database that went on.
                await MoreAsync(machine, console);
                Assert.DoesNotContain("ERROR", console.Text, StringComparison.Ordinal);
                foreach (BackupResult result in backups.Select(b => b.Result))
                    Assert.Equal(BackupConsistency.Guest, result.Backup.Manifest.Consistency);
                await CheckAsync(machine, console);
            });
            Assert.True(source.Value("TROUBLE") == "0", source.Tail);

            async Task CheckAsync(VirtualMachine machine, SerialTranscript console)
            {
                BackupStore made = BackupStore.Open(store);
                string[] copies = [Path.Combine(folder.FullName, "data-copy.img"), Path.Combine(folder.FullName, "wal-copy.img")];
                string reader = Path.Combine(folder.FullName, "reader.cpio");
                await ProgramGuest.WriteInitramfsAsync(reader, Start + Check, [root], s_modules);
                for (int i = 0; i < Backups; i++)
                {
                    (BackupResult result, long before, long after) = backups[i];
                    // What went on must not take the time of what is looked at.
                    await machine.PauseAsync();
                    Assert.Empty(BackupReader.Verify(made, result.Backup.Name, null, token));
                    for (int d = 0; d < disks.Length; d++)
                    {
                        BackupReader.Restore(made, result.Backup, $"disk{d}", copies[d], replace: true, BackupReader.CreateRaw, null, token);
                        (int status, string said) = await FrozenGuest.RunAsync(check!, "-f", "-n", copies[d]);
                        Assert.True(status == 0 && !said.Contains("recover", StringComparison.OrdinalIgnoreCase), said);
                    }
                    BootOutcome copy = await RunAsync(reader, copies, companion: null);
                    long last = long.Parse(copy.Value("LAST"), CultureInfo.InvariantCulture);
                    output.WriteLine($"backup {i + 1}: frozen for {result.Backup.Manifest.FrozenMilliseconds:0.0} ms; {last} lines of the log ({before} promised), {copy.Value("HISTORY")} transactions of pgbench, balances {copy.Value("SUMS")}");
                    // Nothing that was committed is missing; the console may be a line behind.
                    Assert.InRange(last, before, after + 2);
                    Assert.StartsWith($"{last}|", copy.Value("DIGEST"), StringComparison.Ordinal);
                    string[] sums = copy.Value("SUMS").Split('|');
                    Assert.Equal(4, sums.Length);
                    Assert.All(sums, s => Assert.Equal(sums[0], s));
                    Assert.Equal(string.Join(',', Enumerable.Repeat("freeze,thaw", i).Append("freeze")), copy.Value("HOOKS"));
                    Assert.True(copy.Value("TROUBLE") == "0", copy.Tail);
                    Assert.Equal(("1", "0", "0", "0"), (copy.Value("RECOVERY"), copy.Value("AMCHECK"), copy.Value("STOP"), copy.Value("CHECKSUMS")));
                    await machine.ResumeAsync();
                    await machine.SendSerialAsync(System.Text.Encoding.ASCII.GetBytes($"digest {last}\n"), token);
                    Assert.True(await console.WaitForAsync($"DIGEST-{last}=", token) && await console.WaitForAsync($"HISTORY-{last}=", token), console.Text);
                    Assert.Contains($"DIGEST-{last}={copy.Value("DIGEST")}\r", console.Text, StringComparison.Ordinal);
                }
                await machine.SendSerialAsync("end\n"u8.ToArray(), token);
            }
        }
        finally
        {
            folder.Delete(recursive: true);
        }
    }

    private static async Task<BootOutcome> RunAsync(string initramfs, string[] disks, Func<VirtualMachine, SerialTranscript, Task>? companion)
    {
        BootOutcome outcome = await Guest.RunAsync(
            "cloud", "quiet", 2, 2UL << 30, "translator", new KernelBootOptions("") { Initrd = initramfs }, companion, [.. disks.Select(d => new DiskOptions(d))], "hyperv", TimeSpan.FromHours(1));
        Assert.True(outcome.Exit.Kind == MachineExitKind.PoweredOff && outcome.Console.Contains(Guest.Done, StringComparison.Ordinal), $"{outcome.Exit.Kind}: {outcome.Exit.Report}\n{outcome.Tail}");
        Assert.DoesNotContain("FAILED=", outcome.Console, StringComparison.Ordinal);
        return outcome;
    }

    private static long LastWritten(SerialTranscript console) => BackupTests.LastWritten(console);

    private static Task MoreAsync(VirtualMachine machine, SerialTranscript console)
    {
        long wanted = LastWritten(console) + 20;
        return DrivenGuest.Until(machine, () => LastWritten(console) >= wanted || console.Text.Contains("ERROR", StringComparison.Ordinal));
    }
}
