using System.Diagnostics;

namespace Aerostat.Loader.Tests;

/// <summary>Programs of the host, as second opinions.</summary>
internal static class Tools
{
    /// <summary>Skips the test when the program is not installed.</summary>
    public static void Require(string program, string package)
    {
        string[] directories = (Environment.GetEnvironmentVariable("PATH") ?? "").Split(':');
        Assert.SkipUnless(directories.Any(d => File.Exists(Path.Combine(d, program))), $"{program} is not installed (Debian package {package})");
    }

    public static (int Status, string Output) Run(string directory, string program, string[] arguments, byte[]? input = null)
    {
        ProcessStartInfo start = new(program, arguments)
        {
            WorkingDirectory = directory,
            RedirectStandardInput = true,
            RedirectStandardOutput = true,
            RedirectStandardError = true,
        };
        using Process process = Process.Start(start)!;
        Task<string> output = process.StandardOutput.ReadToEndAsync(TestContext.Current.CancellationToken);
        Task<string> errors = process.StandardError.ReadToEndAsync(TestContext.Current.CancellationToken);
        if (input is not null)
            process.StandardInput.BaseStream.Write(input);
        process.StandardInput.Close();
        process.WaitForExit();
        return (process.ExitCode, output.GetAwaiter().GetResult() + errors.GetAwaiter().GetResult());
    }

    /// <summary>The unpacked Debian kernel package in the cache of ./dev with the newest name, or a skip.</summary>
    public static string DebianKernelPackage()
    {
        string cache = Environment.GetEnvironmentVariable("XDG_CACHE_HOME") is { Length: > 0 } set
            ? set
            : Path.Combine(Environment.GetFolderPath(Environment.SpecialFolder.UserProfile), ".cache");
        string root = Path.Combine(cache, "aerostat");
        string[] kernels = Directory.Exists(root)
            ? [.. Directory.EnumerateFiles(root, "vmlinuz-*", SearchOption.AllDirectories).Where(f => f.Contains("amd64", StringComparison.Ordinal)).Order(StringComparer.Ordinal)]
            : [];
        Assert.SkipWhen(kernels.Length == 0, $"no Debian kernel in {root} (./dev demo fetches one)");
        return Path.GetDirectoryName(Path.GetDirectoryName(kernels[^1]))!;
    }

    /// <summary>A fresh directory that is removed at the end.</summary>
    public sealed class Scratch : IDisposable
    {
        public string Path { get; } = Directory.CreateTempSubdirectory("aerostat-loader-").FullName;

        public string File(string name, byte[] content)
        {
            string path = System.IO.Path.Combine(Path, name);
            Directory.CreateDirectory(System.IO.Path.GetDirectoryName(path)!);
            System.IO.File.WriteAllBytes(path, content);
            return path;
        }

        public void Dispose() => Directory.Delete(Path, recursive: true);
    }
}
