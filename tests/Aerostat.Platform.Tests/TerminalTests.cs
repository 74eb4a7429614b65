using System.Runtime.InteropServices;
using System.Text;
using Xunit;

namespace Aerostat.Platform.Tests;

public sealed unsafe partial class TerminalTests : IDisposable
{
    private const int ReadWrite = 2, NoControllingTerminal = 0x100, CloseOnExec = 0x80000;
    private const uint Echo = 8, LineMode = 2, Signals = 1, PostProcess = 1;

    private readonly int master;
    private readonly int slave;

    public TerminalTests()
    {
        master = posix_openpt(ReadWrite | NoControllingTerminal | CloseOnExec);
        Assert.True(master >= 0 && grantpt(master) == 0 && unlockpt(master) == 0);
        slave = open(Marshal.PtrToStringUTF8(ptsname(master))!, ReadWrite | NoControllingTerminal | CloseOnExec);
        Assert.True(slave >= 0);
    }

    public void Dispose()
    {
        _ = close(slave);
        _ = close(master);
    }

    private uint[] Flags()
    {
        uint* t = stackalloc uint[32];
        Assert.Equal(0, tcgetattr(slave, t));
        return [t[0], t[1], t[2], t[3]];
    }

    private void Type(string text)
    {
        byte[] bytes = Encoding.UTF8.GetBytes(text);
        fixed (byte* p = bytes)
            Assert.Equal(bytes.Length, write(master, p, (nuint)bytes.Length));
    }

    [Fact]
    public void Raw_mode_hands_keys_over_at_once_and_is_undone()
    {
        uint[] before = Flags();
        Assert.Equal(Echo | LineMode | Signals, before[3] & (Echo | LineMode | Signals));
        using (Terminal terminal = new(slave, slave))
        {
            Assert.True(terminal.InputIsTerminal && terminal.OutputIsTerminal);
            Assert.True(terminal.EnterRawMode());
            Assert.True(terminal.EnterRawMode());
            Assert.True(terminal.IsRaw);
            Assert.Equal(0u, Flags()[3] & (Echo | LineMode | Signals));
            Assert.Equal(PostProcess, Flags()[1] & PostProcess);
            Type("\u0003x");
            byte[] buffer = new byte[16];
            int count = 0;
            while (count < 2)
                count += terminal.Read(buffer.AsSpan(count));
            Assert.Equal([3, (byte)'x'], buffer[..count]);
            terminal.LeaveRawMode();
            Assert.Equal(before, Flags());
            terminal.LeaveRawMode();
            terminal.EnterRawMode();
        }
        Assert.Equal(before, Flags());
    }

    [Fact]
    public void A_signal_restores_even_when_the_program_goes_on()
    {
        uint[] before = Flags();
        using HostSignals signals = new(_ => { });
        using Terminal terminal = new(slave, slave);
        terminal.EnterRawMode();
        Assert.Equal(0, kill(Environment.ProcessId, 1));
        Assert.True(SpinWait.SpinUntil(() => !terminal.IsRaw && signals.Stopping.IsCancellationRequested, TimeSpan.FromSeconds(30)));
        Assert.Equal(before, Flags());
    }

    [Fact]
    public void A_read_can_be_ended_from_another_thread()
    {
        using Terminal terminal = new(slave, slave);
        int result = 0;
        Thread reader = new(() => result = terminal.Read(new byte[1]));
        reader.Start();
        terminal.CancelRead();
        Assert.True(reader.Join(TimeSpan.FromSeconds(30)));
        Assert.Equal(-1, result);
        Assert.Equal(-1, terminal.Read(new byte[1]));
        Assert.Equal(0, terminal.Read([]));
    }

    [Fact]
    public void A_write_to_a_stopped_terminal_can_be_ended()
    {
        using Terminal terminal = new(slave, slave);
        Assert.True(terminal.Write("hello\n"u8));
        byte* buffer = stackalloc byte[64];
        Assert.Equal("hello\r\n", Encoding.UTF8.GetString(buffer, (int)read(master, buffer, 64)));
        bool? result = null;
        Thread writer = new(() => result = terminal.Write(new byte[1 << 20]));
        writer.Start();
        // Usually enough to fill the terminal's buffer and wait; ending it earlier must work as well.
        Thread.Sleep(20);
        terminal.CancelWrite();
        Assert.True(writer.Join(TimeSpan.FromSeconds(30)));
        Assert.False(result);
    }

    [Fact]
    public void Pipes_end_and_break()
    {
        int* pipes = stackalloc int[2];
        Assert.Equal(0, pipe2(pipes, CloseOnExec));
        using Terminal terminal = new(pipes[0], pipes[1]);
        Assert.False(terminal.InputIsTerminal || terminal.OutputIsTerminal || Terminal.IsTerminal(pipes[0]));
        Assert.False(terminal.EnterRawMode());
        byte[] data = new byte[20_000];
        new Random(1).NextBytes(data);
        byte[] got = new byte[data.Length];
        Thread reader = new(() =>
        {
            for (int n = 0; n < got.Length;)
                n += terminal.Read(got.AsSpan(n));
        });
        reader.Start();
        Assert.True(terminal.Write(data));
        reader.Join();
        Assert.Equal(data, got);
        _ = close(pipes[1]);
        Assert.Equal(0, terminal.Read(got));
        _ = close(pipes[0]);

        Assert.Equal(0, pipe2(pipes, CloseOnExec));
        using Terminal broken = new(pipes[0], pipes[1]);
        _ = close(pipes[0]);
        Assert.False(broken.Write(data));
        _ = close(pipes[1]);
    }

    [Fact]
    public void A_hung_up_terminal_is_the_end_of_input()
    {
        using Terminal terminal = new(slave, slave);
        terminal.EnterRawMode();
        _ = close(master);
        Assert.Equal(0, terminal.Read(new byte[8]));
        Assert.False(terminal.Write(new byte[8]));
    }

    [LibraryImport("libc")]
    private static partial int posix_openpt(int flags);

    [LibraryImport("libc")]
    private static partial int grantpt(int fd);

    [LibraryImport("libc")]
    private static partial int unlockpt(int fd);

    [LibraryImport("libc")]
    private static partial nint ptsname(int fd);

    [LibraryImport("libc", StringMarshalling = StringMarshalling.Utf8)]
    private static partial int open(string path, int flags);

    [LibraryImport("libc")]
    private static partial int close(int fd);

    [LibraryImport("libc")]
    private static partial nint read(int fd, byte* buffer, nuint count);

    [LibraryImport("libc")]
    private static partial nint write(int fd, byte* buffer, nuint count);

    [LibraryImport("libc")]
    private static partial int tcgetattr(int fd, uint* termios);

    [LibraryImport("libc")]
    private static partial int kill(int process, int signal);

    [LibraryImport("libc")]
    private static partial int pipe2(int* descriptors, int flags);
}
