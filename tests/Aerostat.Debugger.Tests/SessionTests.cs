using System.Net.Sockets;
using System.Text;
using Aerostat.Machine;
using Xunit;

namespace Aerostat.Debugger.Tests;

/// <summary>The protocol against a real machine, without gdb: answers, errors, Ctrl-C, reconnect, and a hostile debugger.</summary>
public sealed class SessionTests
{
    private static CancellationToken Token => TestContext.Current.CancellationToken;

    /// <summary>A connection that speaks the protocol by hand.</summary>
    private sealed class Client : IDisposable
    {
        private readonly Socket socket = new(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
        private readonly PacketReader reader = new();

        public Client(DebuggedMachine machine) => socket.Connect(machine.Server!.Endpoint.Address);

        public async Task<string> Ask(string packet)
        {
            await Send(PacketWriter.Frame(packet));
            return await Next();
        }

        public async Task Send(byte[] bytes) => await socket.SendAsync(bytes, Token);

        public async Task<string> Next()
        {
            byte[] one = new byte[1];
            while (await socket.ReceiveAsync(one, Token) == 1)
                if (reader.Take(one[0], out GdbInput input) && input.Kind == GdbInputKind.Packet)
                    return Encoding.Latin1.GetString(input.Body);
            return "(closed)";
        }

        public async Task<bool> IsClosed()
        {
            byte[] one = new byte[1];
            return await socket.ReceiveAsync(one, Token) == 0;
        }

        public void Dispose() => socket.Dispose();
    }

    private static string Code(ulong offset) => (GuestElf.Code + offset).ToString("x");

    [Theory]
    [InlineData("interpreter")]
    [InlineData("translator")]
    public async Task AnswersAndErrors(string accelerator)
    {
        await using DebuggedMachine m = DebuggedMachine.Small(accelerator, cpus: 2);
        using Client gdb = new(m);
        Assert.Contains("vContSupported+", await gdb.Ask("qSupported:swbreak+;hwbreak+"), StringComparison.Ordinal);
        Assert.Equal("OK", await gdb.Ask("QStartNoAckMode"));
        Assert.Equal("T05thread:1;", await gdb.Ask("?"));
        Assert.Equal("m1,2", await gdb.Ask("qfThreadInfo"));
        Assert.Equal("l", await gdb.Ask("qsThreadInfo"));
        Assert.Equal("vCPU 1 [waiting to be started]", Encoding.ASCII.GetString(Convert.FromHexString(await gdb.Ask("qThreadExtraInfo,2"))));
        Assert.Equal(("OK", "OK", "E03"), (await gdb.Ask("T1"), await gdb.Ask("T2"), await gdb.Ask("T3")));
        Assert.Equal(("OK", "E03", "E03"), (await gdb.Ask("Hg2"), await gdb.Ask("Hg3"), await gdb.Ask("Hgzz")));
        Assert.Equal("OK", await gdb.Ask("Hg1"));
        // rip is register 16.
        Assert.Equal("0000100000000000", await gdb.Ask("p10"));
        Assert.Equal(("E01", "E01"), (await gdb.Ask("pffff"), await gdb.Ask("P10=00")));
        string all = await gdb.Ask("g");
        Assert.Equal("OK", await gdb.Ask("G" + all));
        Assert.Equal(all, await gdb.Ask("g"));
        Assert.Equal("E01", await gdb.Ask("G" + all[2..]));
        // Paging is off: what is not memory is an error, at the start; behind memory the answer is short.
        Assert.Equal("b820000000", await gdb.Ask("m100000,5"));
        Assert.Equal(("E0e", "E0e"), (await gdb.Ask("mf0000000,4"), await gdb.Ask("mffffffffffffffff,4")));
        Assert.Equal(32, (await gdb.Ask("mfffff0,40")).Length);
        Assert.Equal(("OK", "E0e", "E01"), (await gdb.Ask("M102040,2:1234"), await gdb.Ask("M1000000,1:00"), await gdb.Ask("M102040,3:1234")));
        Assert.Equal(("OK", "1234"), (await gdb.Ask("X102042,2:\u0012\u0034"), await gdb.Ask("m102042,2")));
        Assert.Equal("", await gdb.Ask("vMustReplyEmpty"));
        Assert.Equal("", await gdb.Ask("Z5,0,1"));
        foreach (int i in (int[])[0, 1, 2, 3])
            Assert.Equal("OK", await gdb.Ask($"Z2,10200{i * 4:x},4"));
        Assert.Equal(("E1c", "OK", "OK"), (await gdb.Ask("Z1,101000,1"), await gdb.Ask("z2,102000,4"), await gdb.Ask("Z1,101000,1")));
        foreach (string wrong in (string[])["Z0", "Z0,,", "Z0,xyz,1", "m1", "m1,", "M1,1", "X1,1", "P", "Hx1", "vCont;q", "vCont;c:9", "vCont;", "vCont;r1", "qRcmd,1", "qXfer:features:read:target.xml:1"])
            Assert.Equal("E01", await gdb.Ask(wrong));
        Assert.StartsWith("l", await gdb.Ask("qXfer:features:read:target.xml:fffff,100"), StringComparison.Ordinal);
    }

    /// <summary>Breakpoint, step and watchpoint by packets; then Ctrl-C, detach with the guest going on, and a second debugger.</summary>
    [Theory]
    [InlineData("interpreter")]
    [InlineData("translator")]
    public async Task Sessions(string accelerator)
    {
        await using DebuggedMachine m = DebuggedMachine.Small(accelerator);
        using (Client gdb = new(m))
        {
            await gdb.Ask("qSupported:swbreak+;hwbreak+");
            Assert.Equal("OK", await gdb.Ask($"Z0,{Code(0)},1"));
            Assert.Contains("swbreak:;", await gdb.Ask("vCont;c"), StringComparison.Ordinal);
            Assert.Equal("OK", await gdb.Ask($"z0,{Code(0)},1"));
            Assert.StartsWith("T05thread:1;06:", await gdb.Ask("vCont;s:1"), StringComparison.Ordinal);
            Assert.Equal("0510100000000000", await gdb.Ask("p10"));
            // To main, past the call; a range step ends outside its range.
            await gdb.Ask($"vCont;r{Code(5)},{Code(12)}:1");
            Assert.Equal("0c10100000000000", await gdb.Ask("p10"));
            Assert.Equal("OK", await gdb.Ask("Z2,102008,4"));
            Assert.Contains("watch:102008;", await gdb.Ask("vCont;c"), StringComparison.Ordinal);
            Assert.Equal("06000000", await gdb.Ask("m102008,4"));
            Assert.Contains("watch:102008;", await gdb.Ask("c"), StringComparison.Ordinal);
            Assert.Equal("09000000", await gdb.Ask("m102008,4"));
            Assert.Equal("OK", await gdb.Ask("z2,102008,4"));
            await gdb.Send(PacketWriter.Frame("vCont;c"));
            await gdb.Send([3]);
            Assert.StartsWith("T02thread:1;", await gdb.Next(), StringComparison.Ordinal);
            Assert.Equal(MachineState.Paused, m.Machine.State);
            Assert.Equal("OK", await gdb.Ask("Z2,102008,4"));
            Assert.Equal("OK", await gdb.Ask("D"));
            Assert.True(await gdb.IsClosed());
        }
        using (Client gdb = new(m))
        {
            // Attaching halts it again; nothing of the first debugger has stayed.
            Assert.Equal("T05thread:1;", await gdb.Ask("?"));
            uint before = Counter(await gdb.Ask("m102000,4"));
            await gdb.Send(PacketWriter.Frame("vCont;c"));
            await gdb.Send([3]);
            Assert.StartsWith("T02", await gdb.Next(), StringComparison.Ordinal);
            Assert.InRange(Counter(await gdb.Ask("m102000,4")), before, uint.MaxValue);
            // The connection breaks off: the guest goes on by itself, and ends when told to.
            Assert.Equal("OK", await gdb.Ask("M102018,4:05000000"));
        }
        Assert.Equal(new MachineExit(MachineExitKind.DebugExit, 11), await m.Machine.Exit.WaitAsync(TimeSpan.FromMinutes(2), Token));
    }

    private static uint Counter(string hex) => BitConverter.ToUInt32(Convert.FromHexString(hex));

    /// <summary>A triple fault is told before the run ends, and the end after it.</summary>
    [Fact]
    public async Task ACrashCanBeLookedAt()
    {
        await using DebuggedMachine m = DebuggedMachine.Small("interpreter");
        using Client gdb = new(m);
        await gdb.Ask($"Z1,{Code(0)},1");
        Assert.Contains("thread:1", await gdb.Ask("c"), StringComparison.Ordinal);
        // There is no IDT: the page fault at an unmapped address is a triple fault.
        Assert.Equal("OK", await gdb.Ask("P10=0000500000000000"));
        Assert.StartsWith("T0bthread:1;", await gdb.Ask("c"), StringComparison.Ordinal);
        Assert.Equal("0000500000000000", await gdb.Ask("p10"));
        Assert.Equal("X0b", await gdb.Ask("c"));
        Assert.Equal(MachineExitKind.Crashed, (await m.Machine.Exit.WaitAsync(TimeSpan.FromMinutes(1), Token)).Kind);
    }

    [Fact]
    public async Task MonitorCommands()
    {
        await using DebuggedMachine m = DebuggedMachine.Small("interpreter");
        using Client gdb = new(m);
        Assert.Contains("info tlb", await Monitor(gdb, "help"), StringComparison.Ordinal);
        Assert.Contains("paging is off", await Monitor(gdb, "info tlb"), StringComparison.Ordinal);
        await gdb.Ask($"Z1,{Code(0)},1");
        await gdb.Ask("c");
        Assert.Equal("0000000000000000 -> 000000000000       200000 rwx supervisor\n", await Monitor(gdb, "info tlb"));
        Assert.Contains("RIP=0000000000101000", await Monitor(gdb, "info  registers"), StringComparison.Ordinal);
        Assert.Contains(" debug\n", await Monitor(gdb, "info exits"), StringComparison.Ordinal);
        Assert.Contains("no command 'xyzzy'", await Monitor(gdb, "xyzzy"), StringComparison.Ordinal);
        Assert.Equal("", await Monitor(gdb, "reset"));
        Assert.Equal("0000100000000000", await gdb.Ask("p10"));
        // The breakpoint is met again after the reset.
        Assert.StartsWith("T05", await gdb.Ask("c"), StringComparison.Ordinal);
        Assert.Equal("", await Monitor(gdb, "quit"));
        Assert.Equal(MachineExitKind.Stopped, (await m.Machine.Exit.WaitAsync(TimeSpan.FromMinutes(1), Token)).Kind);
        Assert.Equal("W00", await gdb.Ask("c"));
    }

    private static async Task<string> Monitor(Client gdb, string command)
    {
        StringBuilder text = new();
        string answer = await gdb.Ask("qRcmd," + Convert.ToHexString(Encoding.ASCII.GetBytes(command)));
        for (; answer.StartsWith('O') && answer != "OK"; answer = await gdb.Next())
            text.Append(Encoding.ASCII.GetString(Convert.FromHexString(answer.AsSpan(1))));
        Assert.Equal("OK", answer);
        return text.ToString();
    }

    /// <summary>
    /// Packets that are nearly right, from fixed seeds, with registers and memory overwritten by noise: no answer but the protocol's, and the
    /// monitor lives. The guest may not.
    /// </summary>
    [Theory]
    [InlineData(1, "interpreter")]
    [InlineData(2, "translator")]
    [InlineData(3, "interpreter")]
    public async Task AHostileDebugger(int seed, string accelerator)
    {
        Random random = new(seed);
        DebuggedMachine m = DebuggedMachine.Small(accelerator, cpus: 2, serve: false);
        try
        {
            MachineDebugger debugger = m.Machine.AttachDebugger();
            GdbSession session = new(debugger, new MemoryStream());
            string[] starts = ["m", "M", "X", "g", "G", "p", "P", "Z0,", "Z1,", "Z2,", "Z4,", "z0,", "z2,", "Hg", "Hc", "T", "qSupported:", "qXfer:features:read:target.xml:", "qRcmd,", "qThreadExtraInfo,", "vCont;s:", "vCont;c", "vCont;r", "s", "?", "QStart"];
            for (int i = 0; i < 3000; i++)
            {
                StringBuilder text = new(starts[random.Next(starts.Length)]);
                for (int n = random.Next(random.Next(40) == 0 ? 200 : 6); n > 0; n--)
                    text.Append(random.Next(4) switch { 0 => random.NextInt64().ToString("x"), 1 => ",", 2 => random.Next(20).ToString("x"), _ => ":=;-z\0"[random.Next(6)].ToString() });
                if (random.Next(3) == 0)
                    text.Clear().Append($"P{random.Next(64):x}=").Append(Convert.ToHexString(Noise(random, 8)));
                else if (random.Next(6) == 0)
                    text.Clear().Append($"M{0x100000 + random.Next(0x8000):x},4:").Append(Convert.ToHexString(Noise(random, 4)));
                string? answer = await session.Answer(Encoding.Latin1.GetBytes(text.ToString()));
                Assert.True(answer is null || answer.Length <= PacketReader.MostBytes);
                if (answer is null)
                    await session.HaltForTest();
                if (!m.Machine.Exit.IsCompleted)
                    continue;
                MachineExit exit = await m.Machine.Exit;
                Assert.True(exit.Kind is MachineExitKind.Crashed or MachineExitKind.DebugExit or MachineExitKind.Reset or MachineExitKind.PoweredOff, $"{exit.Kind} after {text}: {exit.Report}");
                await m.DisposeAsync();
                m = DebuggedMachine.Small(accelerator, cpus: 2, serve: false);
                debugger = m.Machine.AttachDebugger();
                session = new(debugger, new MemoryStream());
            }
        }
        finally
        {
            await m.DisposeAsync();
        }
    }

    private static byte[] Noise(Random random, int count)
    {
        byte[] bytes = new byte[count];
        random.NextBytes(bytes);
        return bytes;
    }
}
