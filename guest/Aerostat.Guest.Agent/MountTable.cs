using System.Text;

namespace Aerostat.Guest.Agent;

/// <summary>A file system that is to be frozen.</summary>
/// <param name="Device">Major and minor number of its device, by which it is known.</param>
/// <param name="Type">Its type.</param>
/// <param name="Paths">Where it is mounted; the first one is where it was first.</param>
internal sealed record Freezable(string Device, string Type, IReadOnlyList<string> Paths);

/// <summary>
/// Which file systems are frozen, and in which order, after proc(5), "mountinfo": those on a block device (btrfs has no device number of its own),
/// mounted to be written, each once however often it is mounted; the last mounted first, and the root last. Not those on a loop device: what they
/// have to write goes to a file of a file system that would be frozen as well.
/// </summary>
internal static class MountTable
{
    private const string LoopMajor = "7:", NoDevice = "0:";

    public static List<Freezable> Read(IEnumerable<string> lines)
    {
        List<(string Device, string Type, List<string> Paths)> found = [];
        foreach (string line in lines)
        {
            // id, parent, device, root, path, options, optional fields, "-", type, source, options of the file system.
            string[] words = line.Split(' ', StringSplitOptions.RemoveEmptyEntries);
            int dash = Array.IndexOf(words, "-", Math.Min(6, words.Length));
            if (dash < 0 || words.Length < dash + 4)
                continue;
            string device = words[2], type = words[dash + 1];
            if (device.StartsWith(LoopMajor, StringComparison.Ordinal) || (device.StartsWith(NoDevice, StringComparison.Ordinal) && type != "btrfs")
                || type.StartsWith("fuse", StringComparison.Ordinal) || !words[dash + 3].Split(',').Contains("rw"))
                continue;
            // A device number without a device is another for each subvolume; the source is the same.
            string key = type == "btrfs" ? words[dash + 2] : device;
            int known = found.FindIndex(f => f.Device == key);
            if (known < 0)
                found.Add((key, type, [Unescape(words[4])]));
            else
                found[known].Paths.Add(Unescape(words[4]));
        }
        found.Reverse();
        return [.. found.Where(f => !f.Paths.Contains("/")).Concat(found.Where(f => f.Paths.Contains("/"))).Select(f => new Freezable(f.Device, f.Type, f.Paths))];
    }

    // Blanks and backslashes are octal.
    private static string Unescape(string path)
    {
        if (!path.Contains('\\', StringComparison.Ordinal))
            return path;
        byte[] bytes = Encoding.UTF8.GetBytes(path), result = new byte[bytes.Length];
        int length = 0;
        for (int i = 0; i < bytes.Length; i++)
        {
            if (bytes[i] == '\\' && i + 3 < bytes.Length && bytes.AsSpan(i + 1, 3).IndexOfAnyExceptInRange((byte)'0', (byte)'7') < 0)
            {
                result[length++] = (byte)((bytes[i + 1] - '0' << 6) | (bytes[i + 2] - '0' << 3) | (bytes[i + 3] - '0'));
                i += 3;
            }
            else
            {
                result[length++] = bytes[i];
            }
        }
        return Encoding.UTF8.GetString(result, 0, length);
    }
}
