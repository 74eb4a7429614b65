using System.Text;
using Aerostat.Machine;
using Aerostat.Platform;

namespace Aerostat.Cli;

/// <summary>
/// Standard output or standard error for the program's own text. A full disk or a closed descriptor is the user's to hear about, not
/// an error inside the program; and when standard error cannot be written, there is nobody left to tell.
/// </summary>
/// <remarks>
/// Not <see cref="Console"/>: its first write puts a terminal's keypad into application mode and leaves it so, and costs start-up time.
/// </remarks>
internal sealed class StandardStream(bool isError) : Stream
{
    /// <summary>A writer on standard output, whose failure is a <see cref="HostException"/>, or on standard error, which never fails.</summary>
    public static TextWriter Open(bool error)
    {
        return TextWriter.Synchronized(new StreamWriter(new StandardStream(error), new UTF8Encoding(false), 1024) { AutoFlush = true });
    }

    /// <inheritdoc/>
    public override bool CanRead => false;

    /// <inheritdoc/>
    public override bool CanSeek => false;

    /// <inheritdoc/>
    public override bool CanWrite => true;

    /// <inheritdoc/>
    public override long Length => throw new NotSupportedException();

    /// <inheritdoc/>
    public override long Position
    {
        get => throw new NotSupportedException();
        set => throw new NotSupportedException();
    }

    /// <inheritdoc/>
    public override void Write(byte[] buffer, int offset, int count) => Write(buffer.AsSpan(offset, count));

    /// <inheritdoc/>
    public override void Write(ReadOnlySpan<byte> buffer)
    {
        if (HostFile.Write(isError ? 2 : 1, buffer) is { } failure && !isError)
            throw new HostException($"standard output cannot be written ({failure}); free some space or send it elsewhere");
    }

    /// <inheritdoc/>
    public override void Flush()
    {
    }

    /// <inheritdoc/>
    public override int Read(byte[] buffer, int offset, int count) => throw new NotSupportedException();

    /// <inheritdoc/>
    public override long Seek(long offset, SeekOrigin origin) => throw new NotSupportedException();

    /// <inheritdoc/>
    public override void SetLength(long value) => throw new NotSupportedException();
}
