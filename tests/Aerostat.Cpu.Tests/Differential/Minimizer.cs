namespace Aerostat.Cpu.Tests;

/// <summary>Makes a failing case small enough to read: whatever can be zero becomes zero.</summary>
internal static unsafe class Minimizer
{
    /// <param name="c">A case that fails.</param>
    /// <param name="fails">Whether a case is safe to run and fails still.</param>
    public static TestCase Minimize(TestCase c, Func<TestCase, bool> fails)
    {
        TestCase best = c.Copy();
        Try(x => x.State.Rflags = 0x202);
        Try(x => x.State.Mxcsr = 0x1F80);
        Try(x => (x.State.Fcw, x.State.Fsw) = (0x37F, (ushort)(x.State.Fsw & 0x7F7F)));
        Try(x => x.State.Fsw = 0);
        Try(x => x.State.Ftw = 0);
        Try(x => x.State.FsBase = 0);
        Try(x => x.State.GsBase = 0);
        for (int bit = 0; bit < 12; bit++)
        {
            ulong mask = 1UL << bit;
            if (bit is 0 or 2 or 4 or 6 or 7 or 10 or 11)
                Try(x => x.State.Rflags &= ~mask);
        }

        for (int k = 0; k < 16; k++)
        {
            int n = k;
            Try(x => x.State.Gpr[n] = n == 4 ? x.WindowBase + Layout.StackOffset : 0);
            Try(x => x.State.Xmm(n).Clear());
            Try(x => x.State.YmmHigh(n).Clear());
            if (k < 8)
                Try(x => x.State.St(n).Clear());
        }

        for (int size = 0x1000; size >= 16; size /= 4)
        {
            for (int at = 0; at < Layout.WindowSize; at += size)
            {
                int first = at, length = size;
                if (best.Window.AsSpan(first, length).ContainsAnyExcept((byte)0))
                    Try(x => x.Window.AsSpan(first, length).Clear());
            }
        }

        return best;

        void Try(Action<TestCase> change)
        {
            TestCase next = best.Copy();
            change(next);
            if (fails(next))
                best = next;
        }
    }
}
