using System.Text.Json;
using System.Text.Json.Serialization;
using Aerostat.Devices;
using Aerostat.Machine;

namespace Aerostat.Control;

/// <summary>
/// A file beside a machine's control socket that is there while the guest's file systems are, or may be, frozen. A monitor that is killed then leaves it; the
/// next one for this machine says so, and has a guest that goes on from a snapshot thawed. A guest that boots has nothing frozen.
/// </summary>
public sealed class FreezeMark : IDisposable
{
    private const string Suffix = ".frozen";

    private readonly string path;
    private readonly VirtualMachine machine;
    private readonly Lock gate = new();
    private bool isThere, isOver;

    /// <summary>Honours a mark that is left, and keeps one from now on.</summary>
    /// <param name="endpoint">Whose machine.</param>
    /// <param name="machine">The machine, before it runs.</param>
    /// <param name="isRestored">Whether its guest goes on from a snapshot.</param>
    public FreezeMark(ControlEndpoint endpoint, VirtualMachine machine, bool isRestored)
    {
        ArgumentNullException.ThrowIfNull(endpoint);
        ArgumentNullException.ThrowIfNull(machine);
        this.machine = machine;
        path = PathOf(endpoint);
        if (Read() is { } left)
        {
            machine.Journal.Write("freeze", $"process {left.Pid}, which ran this machine before, ended while its guest's file systems were frozen (since {left.Since:u}); {(isRestored ? "they are thawed" : "a guest that boots has nothing frozen")}");
            if (isRestored && machine.Freezer is { } volumes)
            {
                isThere = true;
                volumes.ThawLeftovers();
            }
            else
            {
                Remove();
            }
        }
        if (machine.Freezer is { } freezer)
            freezer.PhaseChanged += Changed;
    }

    /// <summary>Where the mark of a machine is.</summary>
    public static string PathOf(ControlEndpoint endpoint)
    {
        ArgumentNullException.ThrowIfNull(endpoint);
        return endpoint.Path + Suffix;
    }

    private void Changed(FreezePhase phase)
    {
        lock (gate)
        {
            if (isOver)
                return;
            switch (phase)
            {
                case FreezePhase.Freezing or FreezePhase.Frozen or FreezePhase.Thawing when !isThere:
                    Write();
                    break;
                case FreezePhase.Idle when isThere:
                    Remove();
                    break;
            }
        }
    }

    // A mark that cannot be made must not keep a backup from being made: the watchdog is there all the same.
    private void Write()
    {
        isThere = true;
        try
        {
            using FileStream file = File.Create(path);
            JsonSerializer.Serialize(file, new FrozenBy(Environment.ProcessId, TimeProvider.System.GetUtcNow()), FreezeMarkJson.Default.FrozenBy);
            file.Flush(flushToDisk: true);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            machine.Journal.Write("freeze", $"cannot be marked as frozen: {e.Message.ReplaceLineEndings(" ")}");
        }
    }

    private void Remove()
    {
        isThere = false;
        try
        {
            File.Delete(path);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            machine.Journal.Write("freeze", $"is marked as frozen although it is not: {e.Message.ReplaceLineEndings(" ")}");
        }
    }

    // One that was cut is one all the same.
    private FrozenBy? Read()
    {
        try
        {
            byte[] bytes = File.ReadAllBytes(path);
            return JsonSerializer.Deserialize(bytes, FreezeMarkJson.Default.FrozenBy) ?? new FrozenBy(0, default);
        }
        catch (JsonException)
        {
            return new FrozenBy(0, default);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            return null;
        }
    }

    /// <summary>The machine is over in good order, and its guest with it: nothing is frozen.</summary>
    public void Dispose()
    {
        lock (gate)
        {
            if (isOver)
                return;
            isOver = true;
            if (machine.Freezer is { } freezer)
                freezer.PhaseChanged -= Changed;
            if (isThere)
                Remove();
        }
    }
}

/// <summary>What a mark says.</summary>
/// <param name="Pid">Process that had the guest frozen.</param>
/// <param name="Since">When it began.</param>
internal sealed record FrozenBy(int Pid, DateTimeOffset Since);

/// <summary>How it is written.</summary>
[JsonSourceGenerationOptions(PropertyNamingPolicy = JsonKnownNamingPolicy.CamelCase)]
[JsonSerializable(typeof(FrozenBy))]
internal sealed partial class FreezeMarkJson : JsonSerializerContext;
