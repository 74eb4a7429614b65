namespace Aerostat.Storage.Tests;

/// <summary>QEMU's own tools as judges of images.</summary>
internal static class QemuImage
{
    public static void Require() => Tools.Require("qemu-img", "qemu-utils");

    public static string Run(Tools.Scratch scratch, string program, params string[] arguments)
    {
        (int status, string output) = Tools.Run(scratch.Path, program, arguments);
        Assert.True(status == 0, $"{program} {string.Join(' ', arguments)}: {status}\n{output}");
        return output;
    }

    /// <summary>No errors; and no clusters that nothing names, unless that is allowed.</summary>
    public static void Check(Tools.Scratch scratch, string image, bool mayLeak = false)
    {
        (int status, string output) = Tools.Run(scratch.Path, "qemu-img", ["check", "-f", "qcow2", image]);
        Assert.True(status == 0 || (mayLeak && status == 3), $"qemu-img check: {status}\n{output}");
    }

    /// <summary>QEMU reads these bytes in the image.</summary>
    public static void AssertContents(Tools.Scratch scratch, string image, byte[] expected)
    {
        string raw = scratch.File("expected.raw", expected);
        Run(scratch, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", raw, image);
    }
}
