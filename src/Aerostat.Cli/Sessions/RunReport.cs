using System.Text.Json;
using Aerostat.Machine;
using Aerostat.Platform;

namespace Aerostat.Cli;

/// <summary>What a run cost and did: the document that <c>--stats</c> writes.</summary>
/// <param name="Options">What was asked for.</param>
/// <param name="Exit">How it ended.</param>
/// <param name="Status">The process' exit status.</param>
/// <param name="Statistics">The machine's own figures.</param>
/// <param name="Wall">Wall-clock time from the start of the guest to its end.</param>
/// <param name="Usage">The process' use of the host at the end.</param>
/// <param name="PeakOwnBytes">Peak resident memory of the monitor, guest memory not counted.</param>
/// <param name="GuestHeldBytes">What the host held for the guest at its end.</param>
internal sealed record RunReport(
    MachineOptions Options, MachineExit Exit, int Status, MachineStatistics Statistics, TimeSpan Wall, ProcessUsage Usage, long PeakOwnBytes, ulong GuestHeldBytes)
{
    // Counters of single instructions, by mnemonic.
    private const string InstructionPrefix = "interpreted/";
    private const int MostInstructions = 40;

    /// <summary>CPU time of the whole process, start-up included.</summary>
    public TimeSpan Cpu => Usage.UserTime + Usage.SystemTime;

    /// <summary>Million guest instructions a second of wall-clock time.</summary>
    public double Mips => Wall > TimeSpan.Zero ? Statistics.Instructions / Wall.TotalSeconds / 1e6 : 0;

    /// <summary>Throws when the document could not be written there in the end.</summary>
    /// <exception cref="ConfigurationException">Not writable.</exception>
    public static void CheckPath(string path)
    {
        if (path.Length == 0)
            throw new ConfigurationException("--stats: the path is empty; give one in a folder that can be written");
        try
        {
            if (HostFile.KindOf(path) == HostFileKind.Directory)
                throw new IOException("it is a directory");
            if (IsWrittenInPlace(path))
            {
                if (!HostFile.IsWritable(path))
                    throw new IOException("permission denied");
                return;
            }
            string probe = TemporaryPath(FinalPath(path));
            File.Create(probe).Dispose();
            File.Delete(probe);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException or ArgumentException)
        {
            throw new ConfigurationException($"--stats: {path} cannot be written ({Reason(e)}); give a path in a folder that can", e);
        }
    }

    /// <summary>Writes the document; a file appears only when it is complete.</summary>
    /// <exception cref="HostException">It cannot be written.</exception>
    public void Write(string path)
    {
        string? unfinished = null;
        try
        {
            if (IsWrittenInPlace(path))
            {
                using FileStream there = new(path, FileMode.Append, FileAccess.Write);
                WriteTo(there);
                return;
            }
            string final = FinalPath(path);
            unfinished = TemporaryPath(final);
            using (FileStream file = File.Create(unfinished))
                WriteTo(file);
            File.Move(unfinished, final, overwrite: true);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            if (unfinished is not null)
                File.Delete(unfinished);
            throw new HostException($"--stats: {path} could not be written ({Reason(e)}); free some space or give another path", e);
        }
    }

    // Devices and pipes, and standard output by name, which may be a file that holds the console's text.
    private static bool IsWrittenInPlace(string path) =>
        HostFile.KindOf(path) == HostFileKind.Special
        || (File.Exists(path) && (Path.GetFullPath(path).StartsWith("/dev/", StringComparison.Ordinal) || Path.GetFullPath(path).StartsWith("/proc/", StringComparison.Ordinal)));

    // A link stays a link: what it leads to is replaced.
    private static string FinalPath(string path)
    {
        // The runtime gets the target of a link that is named without its folder wrong when that does not exist.
        string full = Path.GetFullPath(path);
        return new FileInfo(full).LinkTarget is null ? full : File.ResolveLinkTarget(full, returnFinalTarget: true)!.FullName;
    }

    private static string Reason(Exception e) => e switch
    {
        DirectoryNotFoundException or FileNotFoundException => "there is no such folder",
        UnauthorizedAccessException => "permission denied",
        _ => e.Message.Split(" : '")[0].Split('\n')[0].TrimEnd('.'),
    };

    private static string TemporaryPath(string path) => $"{path}.{Environment.ProcessId}.new";

    private void WriteTo(FileStream file)
    {
        using Utf8JsonWriter json = new(file, new JsonWriterOptions { Indented = true });
        WriteDocument(json);
        json.Flush();
        file.WriteByte((byte)'\n');
    }

    private void WriteDocument(Utf8JsonWriter json)
    {
        json.WriteStartObject();
        json.WriteString("version", Program.Version);
        json.WriteString("name", Options.Name);
        json.WriteString("accelerator", Statistics.Accelerator);
        json.WriteString("cpuModel", Statistics.CpuModel);
        json.WriteNumber("cpus", Options.Cpus);
        json.WriteNumber("memoryBytes", Options.MemoryBytes);
        json.WriteString("exit", Exit.KindName);
        json.WriteNumber("exitStatus", Status);
        json.WriteNumber("resets", Statistics.Resets);
        json.WriteNumber("wallSeconds", Math.Round(Wall.TotalSeconds, 6));
        json.WriteNumber("vmSeconds", Math.Round(Statistics.VmTime.TotalSeconds, 6));
        json.WriteNumber("cpuSeconds", Math.Round(Cpu.TotalSeconds, 2));
        json.WriteNumber("userSeconds", Math.Round(Usage.UserTime.TotalSeconds, 2));
        json.WriteNumber("systemSeconds", Math.Round(Usage.SystemTime.TotalSeconds, 2));
        json.WriteNumber("instructions", Statistics.Instructions);
        json.WriteNumber("mips", Math.Round(Mips, 3));
        json.WriteNumber("peakVmmBytes", PeakOwnBytes);
        json.WriteNumber("peakResidentBytes", Usage.PeakResidentBytes);
        json.WriteNumber("guestResidentBytes", GuestHeldBytes);
        WriteMap(json, "exits", Statistics.Exits);
        WriteMap(json, "exitSeconds", Statistics.ExitTimes);
        WriteMap(json, "handled", Statistics.Handled);
        WriteMap(json, "handledSeconds", Statistics.HandledTimes);
        json.WriteNumber("unclaimedPortAccesses", Statistics.UnclaimedPortAccesses);
        json.WriteNumber("unclaimedMmioAccesses", Statistics.UnclaimedMmioAccesses);
        WriteMap(json, "counters", Statistics.Counters.Where(c => !IsInstruction(c.Key)).ToDictionary());
        WriteInstructions(json);
        json.WriteEndObject();
    }

    private static bool IsInstruction(string counter) => counter.StartsWith(InstructionPrefix, StringComparison.Ordinal);

    // What translated code left to the interpreter, one instruction at a time: the most frequent first, the rest in one figure.
    private void WriteInstructions(Utf8JsonWriter json)
    {
        List<KeyValuePair<string, long>> all = [.. Statistics.Counters.Where(c => IsInstruction(c.Key)).OrderByDescending(c => c.Value).ThenBy(c => c.Key, StringComparer.Ordinal)];
        if (all.Count == 0)
            return;
        json.WriteStartObject("interpretedInstructions");
        foreach ((string name, long count) in all.Take(MostInstructions))
            json.WriteNumber(name[InstructionPrefix.Length..], count);
        if (all.Count > MostInstructions)
            json.WriteNumber("others", all.Skip(MostInstructions).Sum(c => c.Value));
        json.WriteEndObject();
    }

    private static void WriteMap(Utf8JsonWriter json, string name, IReadOnlyDictionary<string, TimeSpan> map)
    {
        json.WriteStartObject(name);
        foreach ((string key, TimeSpan value) in map.OrderBy(e => e.Key, StringComparer.Ordinal))
            json.WriteNumber(key, Math.Round(value.TotalSeconds, 6));
        json.WriteEndObject();
    }

    private static void WriteMap(Utf8JsonWriter json, string name, IReadOnlyDictionary<string, long> map)
    {
        json.WriteStartObject(name);
        foreach ((string key, long value) in map.OrderBy(e => e.Key, StringComparer.Ordinal))
            json.WriteNumber(key, value);
        json.WriteEndObject();
    }
}
