using System.Globalization;
using System.Text;

namespace Aerostat.Cli;

/// <summary>One real program that <c>bench programs</c> runs in a guest.</summary>
/// <param name="Name">What --only takes.</param>
/// <param name="Description">What it does, for the table.</param>
/// <param name="Prepare">Shell commands that are not measured.</param>
/// <param name="Run">The shell command that is measured.</param>
/// <param name="Check">A shell command whose output is the same wherever the program computed right.</param>
internal sealed record GuestProgram(string Name, string Description, string Prepare, string Run, string Check);

/// <summary>
/// Programs from Debian packages, each with a fixed amount of work, and the /init that runs them. The guest prints
/// <c>@begin NAME</c> and <c>@end NAME STATUS</c> around each, and <c>@check NAME TEXT</c> after it.
/// </summary>
internal static class GuestPrograms
{
    private const string PythonWork = """
        import collections, json, math, re

        def sieve(n):
            flags = bytearray([1]) * (n + 1)
            for i in range(2, int(n ** 0.5) + 1):
                if flags[i]:
                    flags[i * i::i] = bytes(len(range(i * i, n + 1, i)))
            return sum(flags) - 2

        class Body:
            def __init__(self, x, y, vx, vy, m):
                self.x, self.y, self.vx, self.vy, self.m = x, y, vx, vy, m

        def orbit(steps):
            bodies = [Body(math.cos(i) * (i + 1), math.sin(i) * (i + 1), -math.sin(i), math.cos(i), 1.0 / (i + 1)) for i in range(5)]
            for _ in range(steps):
                for a in bodies:
                    for b in bodies:
                        if a is not b:
                            dx, dy = b.x - a.x, b.y - a.y
                            d = (dx * dx + dy * dy + 0.01) ** 1.5
                            a.vx += dx * b.m / d * 0.001
                            a.vy += dy * b.m / d * 0.001
                for a in bodies:
                    a.x += a.vx * 0.001
                    a.y += a.vy * 0.001
            return round(sum(b.x + b.y for b in bodies), 6)

        def fib(n):
            return n if n < 2 else fib(n - 1) + fib(n - 2)

        def words(rounds):
            text = " ".join("w%d" % (i * 7919 % 1009) for i in range(20000))
            count = collections.Counter()
            for _ in range(rounds):
                count.update(re.findall(r"w(\d+)", text))
            return json.loads(json.dumps(count.most_common(20)))

        print(sieve(2000000), orbit(4000), fib(24), words(10))
        """;

    /// <summary>All of them.</summary>
    public static IReadOnlyList<GuestProgram> All { get; } =
    [
        new("gcc", "gcc -O2 of a file of 10,000 lines",
            """
            awk 'BEGIN {
                for (i = 0; i < 1000; i++) {
                    printf "int f%d(int *a, int n)\n{\n    int s = %d;\n", i, i
                    printf "    for (int i = 0; i < n; i++) {\n        s += a[i] * %d;\n", i * 7 % 1000 + 1
                    printf "        if (s & %d)\n            s ^= a[(i + %d) %% n];\n    }\n", i % 64 + 1, i % 13
                    printf "    return s + (n > 3 ? f%d(a, n - 1) : n);\n}\n", (i > 0 ? i - 1 : 0)
                }
            }' > big.c
            """,
            "gcc -O2 -c big.c -o big.o", "sha256sum < big.o"),
        new("xz", "xz -6 of 20 MB",
            "find /usr/lib/python3.11 /usr/share/perl /usr/lib/x86_64-linux-gnu -type f -size +8k | LC_ALL=C sort | xargs cat 2>/dev/null | head -c 20000000 > plain",
            "xz -6 -T1 -k plain", "sha256sum < plain.xz"),
        new("python3", "python3: sieve, floats and objects, calls, regular expressions, JSON", $"cat > work.py <<'END'\n{PythonWork}\nEND", "python3 work.py > work.out", "cat work.out"),
        new("sha256", "openssl: SHA-256 of 256 MB", "head -c 64000000 /dev/zero > zeros", "openssl dgst -sha256 zeros zeros zeros zeros > digest", "cut -d' ' -f2 digest | uniq"),
        new("aes-gcm", "openssl speed: AES-256-GCM (time for 1 GB)", ":", "openssl speed -mr -seconds 3 -bytes 16384 -evp aes-256-gcm > speed.out 2>/dev/null", "sed -n 's/^+F:.*:\\([0-9.]*\\)$/rate=\\1/p' speed.out"),
        new("sqlite3", "sqlite3: 300,000 rows in bulk, an index, a query", ":",
            """
            sqlite3 test.db "create table t(a integer primary key, b text, c real);
            with recursive n(i) as (select 1 union all select i + 1 from n where i < 300000)
            insert into t select i, hex(i * 40503 % 65536), i * 0.5 from n;
            create index t_b on t(b); select count(*), sum(a), max(b), total(c) from t where b > '35';" > rows
            """,
            "cat rows"),
        new("perl", "perl: hashes, sorting and pattern matching",
            """
            cat > work.pl <<'END'
            my (%h, $s); my $x = 12345;
            for my $i (1 .. 300000) { $x = ($x * 1103515245 + 12345) & 0x7fffffff; $h{$x % 50021} .= chr(97 + $x % 26); }
            for my $k (sort { $a <=> $b } keys %h) { $s += $k * ($h{$k} =~ tr/a-m//); $s++ while $h{$k} =~ /[aeiou][^aeiou]/g; }
            print "$s\n";
            END
            """,
            "perl work.pl > perl.out", "cat perl.out"),
    ];

    /// <summary>Programs by name.</summary>
    /// <exception cref="Machine.ConfigurationException">There is none of that name.</exception>
    public static IReadOnlyList<GuestProgram> Select(string? names) => names is null ? All
        : [.. names.Split(',', StringSplitOptions.RemoveEmptyEntries).Select(n => All.FirstOrDefault(p => p.Name == n)
            ?? throw new Machine.ConfigurationException($"--only: there is no program '{n}'; there are {string.Join(", ", All.Select(p => p.Name))}"))];

    /// <summary>/init of a guest that runs the programs one after the other and powers off.</summary>
    public static string Init(IEnumerable<GuestProgram> programs)
    {
        StringBuilder script = new("""
            #!/bin/sh
            export PATH=/usr/bin:/usr/sbin HOME=/tmp LC_ALL=C
            busybox mount -t proc proc /proc
            busybox mount -t sysfs sysfs /sys
            busybox mount -t devtmpfs dev /dev
            busybox mount -t tmpfs tmpfs /tmp
            cd /tmp

            """);
        foreach (GuestProgram program in programs)
        {
            script.Append(CultureInfo.InvariantCulture, $"{program.Prepare}\necho @begin {program.Name}\n{program.Run}\necho @end {program.Name} $?\n");
            script.Append(CultureInfo.InvariantCulture, $"echo @check {program.Name} $({program.Check})\nrm -rf /tmp/*\n");
        }
        return script.Append(CultureInfo.InvariantCulture, $"echo {GuestScripts.Done}\nbusybox poweroff -f\n").ToString().Replace("\r", "", StringComparison.Ordinal);
    }
}
