using System.Text;

namespace Aerostat.Machine;

/// <summary>
/// Keeps what a guest writes to its serial console, for programs that read it: give <see cref="Append"/> to
/// <see cref="MachineOptions.Serial"/>, then wait for texts. Any thread.
/// </summary>
/// <param name="limit">Bytes kept; the oldest go first.</param>
public sealed class SerialTranscript(int limit = 4 << 20)
{
    private readonly record struct Waiter(byte[] Wanted, TaskCompletionSource<bool> Found);

    private readonly Lock gate = new();
    private readonly Queue<Waiter> waiters = [];
    private byte[] buffer = new byte[4096];
    private int count;
    // Where the first waiter's search goes on: behind the text found last, and behind what has been searched in vain.
    private int next;
    private bool closed;

    /// <summary>Everything kept so far, one character a byte (ISO 8859-1).</summary>
    public string Text
    {
        get
        {
            lock (gate)
                return Encoding.Latin1.GetString(buffer, 0, count);
        }
    }

    /// <summary>Takes what the guest wrote.</summary>
    public void Append(ReadOnlySpan<byte> bytes)
    {
        lock (gate)
        {
            if (bytes.Length > limit)
                bytes = bytes[^limit..];
            if (count + bytes.Length > limit)
                Forget(Math.Min(count, count + bytes.Length - limit + (limit / 4)));
            if (count + bytes.Length > buffer.Length)
                Array.Resize(ref buffer, Math.Max(buffer.Length * 2, count + bytes.Length));
            bytes.CopyTo(buffer.AsSpan(count));
            count += bytes.Length;
            Search();
        }
    }

    /// <summary>
    /// Waits for a text after the one that was found last. False: the console was closed before it came. Waits are served in the
    /// order they were made.
    /// </summary>
    public Task<bool> WaitForAsync(string wanted, CancellationToken cancellation = default)
    {
        ArgumentException.ThrowIfNullOrEmpty(wanted);
        Waiter waiter = new(Encoding.UTF8.GetBytes(wanted), new TaskCompletionSource<bool>(TaskCreationOptions.RunContinuationsAsynchronously));
        lock (gate)
        {
            waiters.Enqueue(waiter);
            Search();
        }
        return waiter.Found.Task.WaitAsync(cancellation);
    }

    /// <summary>Nothing more will come: waits that are not met answer false.</summary>
    public void Close()
    {
        lock (gate)
        {
            closed = true;
            Search();
        }
    }

    private void Forget(int bytes)
    {
        buffer.AsSpan(bytes, count - bytes).CopyTo(buffer);
        count -= bytes;
        next = Math.Max(0, next - bytes);
    }

    private void Search()
    {
        while (waiters.TryPeek(out Waiter waiter))
        {
            int at = buffer.AsSpan(next, count - next).IndexOf(waiter.Wanted);
            if (at >= 0)
                next += at + waiter.Wanted.Length;
            else if (!closed)
            {
                next = Math.Max(next, count - waiter.Wanted.Length + 1);
                return;
            }
            waiters.Dequeue();
            waiter.Found.TrySetResult(at >= 0);
        }
    }
}
