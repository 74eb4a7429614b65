using Aerostat.Chipset;

namespace Aerostat.Machine;

/// <summary>The host's end of a serial line.</summary>
internal sealed class SerialPort(SerialOutput? output) : ICharacterBackend
{
    private readonly Lock gate = new();
    private Serial16550? device;
    private TaskCompletionSource space = new(TaskCreationOptions.RunContinuationsAsynchronously);

    /// <summary>Connects the line to the guest's end.</summary>
    public void Connect(Serial16550 uart)
    {
        device = uart;
        uart.SpaceAvailable += () =>
        {
            lock (gate)
                space.TrySetResult();
        };
    }

    /// <summary>After a reset of the guest's end there is room again.</summary>
    public void Reset()
    {
        lock (gate)
            space.TrySetResult();
    }

    /// <inheritdoc/>
    public void Write(ReadOnlySpan<byte> data) => output?.Invoke(data);

    /// <summary>Types into the line, as fast as the guest takes it.</summary>
    public async Task SendAsync(ReadOnlyMemory<byte> data, CancellationToken cancellation)
    {
        while (!data.IsEmpty)
        {
            Task room;
            lock (gate)
            {
                if (space.Task.IsCompleted)
                    space = new TaskCompletionSource(TaskCreationOptions.RunContinuationsAsynchronously);
                room = space.Task;
            }
            data = data[device!.Receive(data.Span)..];
            if (!data.IsEmpty)
                await room.WaitAsync(cancellation).ConfigureAwait(false);
        }
    }
}
