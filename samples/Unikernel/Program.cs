// A guest of one's own: a machine that finds primes. `dotnet build samples/Unikernel`, then
// `out/aerostat run --kernel samples/Unikernel/bin/Debug/net10.0/Unikernel.elf --append most=100000`, or QEMU's -kernel.
using System.Runtime;
using Aerostat.Guest.Kernel;

namespace Unikernel;

internal static class Program
{
    [RuntimeExport("GuestMain")]
    private static void Main()
    {
        ulong most = BootInformation.HasOption("most", out ulong asked) ? asked : 1000;
        ulong begun = Clock.Nanoseconds;
        Sieve sieve = new((int)most);
        Console.Write("primes up to ");
        Console.Write(most);
        Console.Write(": ");
        Console.Write(sieve.Count);
        Console.Write(", the last one ");
        Console.Write(sieve.Last);
        Console.Write(", in ");
        Console.Write((Clock.Nanoseconds - begun) / 1000);
        Console.WriteLine(" us");
        // Returning powers the machine off.
    }
}

internal sealed class Sieve
{
    public Sieve(int most)
    {
        bool[] composite = new bool[most + 1];
        for (int i = 2; i <= most; i++)
        {
            if (composite[i])
                continue;
            Count++;
            Last = (ulong)i;
            for (long j = (long)i * i; j <= most; j += i)
                composite[j] = true;
        }
    }

    public ulong Count { get; }

    public ulong Last { get; }
}
