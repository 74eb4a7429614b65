using System.Net.Sockets;

namespace Aerostat.Control;

/// <summary>Takes lines off a socket through a buffer that never grows beyond one line. Not for two callers at once.</summary>
internal sealed class LineReader(Socket socket, int longest)
{
    private const int FirstSize = 4096;

    private byte[] buffer = new byte[FirstSize];
    // What is in the buffer: from start to end; up to searched there is no line end.
    private int start, searched, end;
    private Task<int>? filling;

    /// <summary>
    /// The next line without its end, valid until the next call; null when the other side has closed. What stands before the close without a line
    /// end counts as a line.
    /// </summary>
    /// <exception cref="ControlException">The line is too long: nothing more can be read.</exception>
    public async Task<ReadOnlyMemory<byte>?> ReadAsync(CancellationToken cancellation)
    {
        while (true)
        {
            int at = buffer.AsSpan(searched, end - searched).IndexOf((byte)'\n');
            if (at >= 0)
                return Take(searched + at, searched + at + 1);
            searched = end;
            if (end - start > longest)
                throw new ControlException(ControlErrorKind.Usage, $"a line has at most {longest} bytes; send less at a time");
            if (await FillAsync(cancellation).ConfigureAwait(false))
                continue;
            // Not in one expression: null would become an empty line.
            if (start == end)
                return null;
            return Take(end, end);
        }
    }

    /// <summary>Waits until there is something to read; false when the other side has closed.</summary>
    public async Task<bool> WaitAsync(CancellationToken cancellation) =>
        end > start || await FillAsync(cancellation).ConfigureAwait(false);

    private ReadOnlyMemory<byte> Take(int lineEnd, int next)
    {
        ReadOnlyMemory<byte> line = buffer.AsMemory(start, lineEnd - start);
        start = searched = next;
        return line.Length > longest ? throw new ControlException(ControlErrorKind.Usage, $"a line has at most {longest} bytes; send less at a time") : line;
    }

    // A receive that somebody no longer waits for goes on, and the next one to ask gets what it brings.
    private async Task<bool> FillAsync(CancellationToken cancellation)
    {
        if (filling is null)
        {
            MakeRoom();
            filling = socket.ReceiveAsync(buffer.AsMemory(end), SocketFlags.None).AsTask();
        }
        int count = await filling.WaitAsync(cancellation).ConfigureAwait(false);
        filling = null;
        end += count;
        return count > 0;
    }

    private void MakeRoom()
    {
        if (start > 0)
        {
            buffer.AsSpan(start, end - start).CopyTo(buffer);
            (end, searched, start) = (end - start, searched - start, 0);
        }
        if (end == buffer.Length)
            Array.Resize(ref buffer, Math.Min(buffer.Length * 2, longest + FirstSize));
    }
}
