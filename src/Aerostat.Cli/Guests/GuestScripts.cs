namespace Aerostat.Cli;

/// <summary>The /init scripts of the guests that this program brings up itself. They end with power-off.</summary>
internal static class GuestScripts
{
    /// <summary>The prompt of <see cref="Demo"/>'s shell.</summary>
    public const string Prompt = "aerostat# ";

    /// <summary>What <see cref="Benchmark"/> and <see cref="Soak"/> print when all went well.</summary>
    public const string Done = "GUEST-DONE";

    private const string Head = """
        #!/bin/sh
        export PATH=/bin HOME=/root
        mount -t proc proc /proc
        mount -t sysfs sysfs /sys
        mount -t devtmpfs dev /dev

        """;

    private const string Tail = """

        poweroff -f

        """;

    // A loop of its own instead of an interactive shell: no line editing, so the console stays plain text.
    /// <summary>Loads the modules if there are any, then carries out what is typed.</summary>
    public const string Demo = Head + """
        hostname aerostat
        [ ! -f /etc/modules ] || while read -r module; do insmod $module; done < /etc/modules
        echo
        echo "This is a shell inside the guest, on its serial console."
        while printf 'aerostat# ' && read -r line; do
            eval "$line"
        done
        """ + Tail;

    /// <summary>A boot and nothing else.</summary>
    public const string Benchmark = Head + $"echo {Done}\n" + Tail;

    /// <summary>Processes, pipes, memory and arithmetic; the results of the rounds must agree.</summary>
    public const string Soak = Head + $$"""
        mount -t tmpfs tmpfs /tmp
        cd /tmp
        work() {
            seq 1 20000 > numbers.$1
            sort -r numbers.$1 | sort -n | sha256sum | cut -c1-64 > sum.$1
            tar -cf - numbers.$1 | tar -tf - > /dev/null
            awk '{ s += $1 * $1 % 7 } END { print s }' numbers.$1 >> sum.$1
            rm numbers.$1
        }
        for round in 1 2 3; do
            for job in 1 2 3 4; do work $job & done
            wait
            for job in 2 3 4; do [ "$(cat sum.$job)" = "$(cat sum.1)" ] || exec poweroff -f; done
            [ -z "$last" ] || [ "$last" = "$(cat sum.1)" ] || exec poweroff -f
            last=$(cat sum.1)
        done
        for i in $(seq 1 100); do true & done; wait
        echo {{Done}}
        """ + Tail;
}
