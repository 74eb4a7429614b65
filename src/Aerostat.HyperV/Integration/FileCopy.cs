using System.Buffers.Binary;
using System.Text;
using Aerostat.Devices;

namespace Aerostat.HyperV;

/// <summary>A file could not be copied into a guest. The message is one line: what, why, and what to do.</summary>
public sealed class FileCopyException(string message) : Exception(message);

/// <summary>
/// Copying files into a guest that has hv_fcopy_daemon (Linux, include/uapi/linux/hyperv.h, hv_start_fcopy and hv_do_fcopy): a name, pieces of 6 KiB, and an
/// end, each answered before the next. One file at a time.
/// <para>The protocol has no attributes, no checksum and no word that a file is on the guest's disk; the daemon makes files with mode 0744.</para>
/// </summary>
public sealed class FileCopy : IntegrationComponent
{
    /// <summary>Bytes of a piece.</summary>
    public const int Piece = 6 * 1024;

    /// <summary>UTF-16 units of a folder's or a file's name with its end; the guest's driver has as many bytes for it in UTF-8.</summary>
    public const int LongestName = 260;

    private const uint Start = 0, Write = 1, Complete = 2, Cancel = 3;
    private const uint OverWrite = 1, CreatePath = 2;
    // An operation, and two identifiers that nobody uses.
    private const int Head = 36;
    private const int NameAt = Head, FolderAt = NameAt + (2 * LongestName), FlagsAt = FolderAt + (2 * LongestName), LengthAt = FlagsAt + 4, StartSize = LengthAt + 8;
    private const int OffsetAt = Head + 4, SizeAt = OffsetAt + 8, DataAt = SizeAt + 4, WriteSize = DataAt + Piece;
    private const uint AlreadyExists = 0x8007_0050, DiskFull = 0x8007_0070;

    // Linux's driver gives its daemon 30 s, and then refuses by itself.
    private static readonly TimeSpan s_patience = TimeSpan.FromSeconds(60);

    private TaskCompletionSource<uint>? pending;
    private byte[]? unsent;
    private IDisposable? deadline;
    // Of the request under way, and of one that was given up: until its answer comes the driver's only buffer is taken.
    private byte? waiting, late;
    private int copying;
    private bool isHeld, leftBegun;
    // Whether the guest's daemon has a file open, as far as is known.
    private volatile bool isBegun;

    /// <inheritdoc/>
    public override string Name => "fcopy";

    /// <inheritdoc/>
    public override ChannelOffer Offer { get; } = new(new("34d14be3-dee4-41c8-9ae7-6b174977c192"), new("eb765408-105f-49b6-b4aa-c123b64d17d4"));

    private protected override ushort MessageType => 7;

    private protected override IReadOnlyList<ComponentVersion> MessageVersions { get; } = [new(1, 0), new(1, 1)];

    /// <summary>Copies what is left of a stream. Answers how many bytes that was. Any thread.</summary>
    /// <param name="source">Read on the caller's side, a piece ahead of nothing: the guest sets the pace.</param>
    /// <param name="destination">Full path in the guest.</param>
    /// <param name="overwrite">Whether a file of that name may be replaced.</param>
    /// <param name="createFolders">Whether folders that are not there are made.</param>
    /// <param name="progress">Takes the bytes that have gone.</param>
    /// <param name="cancellation">Gives up between two pieces; the guest removes what it has.</param>
    /// <exception cref="FileCopyException">The guest cannot, or will not.</exception>
    /// <exception cref="ArgumentException">The destination is no full path of a file, or too long.</exception>
    public async Task<long> CopyAsync(Stream source, string destination, bool overwrite, bool createFolders, IProgress<long>? progress, CancellationToken cancellation)
    {
        ArgumentNullException.ThrowIfNull(source);
        byte[] start = Begin(destination, overwrite, createFolders, source.CanSeek ? source.Length - source.Position : 0);
        if (Interlocked.Exchange(ref copying, 1) != 0)
            throw new FileCopyException("another file is being copied into this guest; wait for it");
        try
        {
            Check(await SendAsync(start).ConfigureAwait(false), destination);
            isBegun = true;
            long copied = 0;
            byte[] piece = new byte[WriteSize];
            BinaryPrimitives.WriteUInt32LittleEndian(piece, Write);
            while (await source.ReadAtLeastAsync(piece.AsMemory(DataAt, Piece), Piece, throwOnEndOfStream: false, cancellation).ConfigureAwait(false) is > 0 and int count)
            {
                BinaryPrimitives.WriteInt64LittleEndian(piece.AsSpan(OffsetAt), copied);
                BinaryPrimitives.WriteInt32LittleEndian(piece.AsSpan(SizeAt), count);
                piece.AsSpan(DataAt + count).Clear();
                Check(await SendAsync(piece).ConfigureAwait(false), destination);
                copied += count;
                progress?.Report(copied);
            }
            cancellation.ThrowIfCancellationRequested();
            Check(await SendAsync(Operation(Complete)).ConfigureAwait(false), destination);
            isBegun = false;
            return copied;
        }
        finally
        {
            // The guest removes what it has of the file. Its answer changes nothing.
            if (isBegun)
                await SendAsync(Operation(Cancel)).ConfigureAwait(false);
            isBegun = false;
            Volatile.Write(ref copying, 0);
        }
    }

    /// <summary>While it is held, nothing is sent: the guest's file systems are frozen.</summary>
    internal void Hold(bool held)
    {
        isHeld = held;
        if (!held)
            Next();
    }

    private static byte[] Begin(string destination, bool overwrite, bool createFolders, long length)
    {
        int slash = destination.LastIndexOf('/');
        if (!destination.StartsWith('/') || slash == destination.Length - 1 || destination.Any(char.IsControl))
            throw new ArgumentException($"'{string.Concat(destination.Where(c => !char.IsControl(c)))}' is not the full path of a file in the guest");
        // The daemon looks at each folder that ends with a slash.
        string folder = destination[..(slash + 1)], name = destination[(slash + 1)..];
        if (Encoding.UTF8.GetByteCount(folder) >= LongestName || Encoding.UTF8.GetByteCount(name) >= LongestName)
            throw new ArgumentException($"'{destination}' is too long: {LongestName - 1} bytes for the folder and as many for the name are what the guest takes");
        byte[] body = Operation(Start, StartSize);
        Encoding.Unicode.GetBytes(name, body.AsSpan(NameAt));
        Encoding.Unicode.GetBytes(folder, body.AsSpan(FolderAt));
        BinaryPrimitives.WriteUInt32LittleEndian(body.AsSpan(FlagsAt), (overwrite ? OverWrite : 0) | (createFolders ? CreatePath : 0));
        BinaryPrimitives.WriteInt64LittleEndian(body.AsSpan(LengthAt), length);
        return body;
    }

    private static byte[] Operation(uint operation, int size = StartSize)
    {
        byte[] body = new byte[size];
        BinaryPrimitives.WriteUInt32LittleEndian(body, operation);
        return body;
    }

    private void Check(uint status, string destination)
    {
        if (status == Succeeded)
            return;
        throw new FileCopyException((status, isBegun) switch
        {
            (NoChannel, _) => State == ComponentState.Incompatible
                ? "the guest's driver speaks no version of file copy that is spoken here"
                : "the guest has no channel for it, or it was closed: it needs hv_utils (Linux up to 6.9) and hv_fcopy_daemon (Debian: package hyperv-daemons)",
            (NoAnswer, _) => $"the guest has not answered in {s_patience.TotalSeconds:0} s",
            (AlreadyExists, _) => $"the guest has a file {destination} already; give --overwrite to replace it",
            (DiskFull, _) => "the guest's disk is full; what was copied is removed again",
            (Failed, false) => $"the guest refuses it: hv_fcopy_daemon does not run there (Debian: package hyperv-daemons), or the folder of {destination} is not there (--create-folders makes it) or cannot be written",
            _ => $"the guest could not write {destination} (status 0x{status:x8})",
        });
    }

    // No HRESULTs of a guest's: bit 29 makes them ours.
    private const uint NoChannel = 0xA000_0001, NoAnswer = 0xA000_0002;

    // One at a time: the driver has one buffer, and who copies waits for each answer.
    private Task<uint> SendAsync(byte[] body)
    {
        TaskCompletionSource<uint> done = new(TaskCreationOptions.RunContinuationsAsynchronously);
        Bus.Post(() =>
        {
            if (State != ComponentState.Ready || pending is not null || late is not null)
            {
                done.TrySetResult(late is not null ? NoAnswer : NoChannel);
                return;
            }
            pending = done;
            unsent = body;
            Next();
        });
        return done.Task;
    }

    private void Next()
    {
        if (unsent is null || isHeld)
            return;
        waiting = Request(unsent);
        unsent = null;
        if (waiting is null)
            Finish(NoChannel);
        else
            deadline = Bus.After(s_patience, () =>
            {
                late = waiting;
                Finish(NoAnswer);
            });
    }

    private protected override void Lost()
    {
        // With the channel the guest's driver and daemon forget what they had begun.
        isBegun = false;
        late = null;
        Finish(NoChannel);
    }

    private protected override void Answered(byte number, uint status, ReadOnlySpan<byte> body)
    {
        if (number == late)
            late = null;
        else if (number != waiting)
            NoteSpurious();
        else
            Finish(status is NoChannel or NoAnswer ? Failed : status);
    }

    private void Finish(uint status)
    {
        deadline?.Dispose();
        deadline = null;
        waiting = null;
        unsent = null;
        pending?.TrySetResult(status);
        pending = null;
    }

    /// <inheritdoc/>
    protected internal override string Save() => $"{base.Save()} {(isBegun ? 1 : 0)}";

    /// <inheritdoc/>
    protected internal override void Restore(string? saved)
    {
        base.Restore(saved);
        // Who copied is not here: the guest that this one is a copy of removes what it has of the file.
        leftBegun = (saved ?? "").Split(' ') is [_, _, _, _, _, _, "1"];
    }

    /// <inheritdoc/>
    protected internal override void Resumed()
    {
        if (!leftBegun)
            return;
        leftBegun = false;
        // Not at once: an answer may be under way to a request of before.
        Bus.After(TimeSpan.FromSeconds(1), () => _ = SendAsync(Operation(Cancel)));
    }
}
