using Xunit;

namespace Aerostat.Guest.Tests;

/// <summary>The kernel starts, says what is wrong and where, and ends, on our processors and on QEMU's.</summary>
public sealed class KernelTests
{
    // (31 << 1) | 1.
    private const int Status31 = 63;

    // (0x7F << 1) | 1.
    private const int Panicked = 255;

    public static TheoryData<string> Judges => ["interpreter", "translator", "qemu"];

    public static TheoryData<string, string> JudgesAndLoaders => new MatrixTheoryData<string, string>(["interpreter", "translator", "qemu"], ["PVH", "multiboot"]);

    public static TheoryData<string, string, string> Faults
    {
        get
        {
            TheoryData<string, string, string> data = [];
            foreach (string judge in (string[])["interpreter", "translator", "qemu"])
            {
                data.Add(judge, "fault=0", "PANIC: page fault (exception 14, error code 0x2) at rip=0x");
                data.Add(judge, "fault=1", "PANIC: invalid opcode (exception 6, error code 0x0) at rip=0x");
                data.Add(judge, "fault=2", "PANIC: index out of range");
                data.Add(judge, "fault=3", "on address 0x0000000000100000");
                data.Add(judge, "fault=4", "PANIC: double fault (exception 8, error code 0x0) at rip=0x");
                data.Add(judge, "poison fault=5", "PANIC: somebody wrote to a free page");
            }
            return data;
        }
    }

    internal static Task<GuestOutcome> RunAsync(string judge, string commandLine, string loader = "PVH") =>
        judge == "qemu" ? Qemu.RunAsync(commandLine, loader) : GuestKernel.RunAsync(judge, commandLine, loader);

    [Theory]
    [MemberData(nameof(JudgesAndLoaders))]
    public async Task BootsAndPowersOff(string judge, string loader)
    {
        GuestOutcome outcome = await RunAsync(judge, "off", loader);
        Assert.StartsWith("Aerostat guest kernel\r\n", outcome.Console, StringComparison.Ordinal);
        // What a machine of 64 MiB has above its first.
        Assert.Contains($"loader {loader}, memory 62 MiB, ACPI tables 4, processors 1", outcome.Console, StringComparison.Ordinal);
        Assert.Equal(0, outcome.Status);
    }

    [Theory]
    [MemberData(nameof(Judges))]
    public async Task EndsByDebugExit(string judge) => Assert.Equal(Status31, (await RunAsync(judge, "exit=31")).Status);

    [Theory]
    [MemberData(nameof(Faults))]
    public async Task AFaultSaysWhere(string judge, string commandLine, string expected)
    {
        GuestOutcome outcome = await RunAsync(judge, commandLine);
        Assert.Contains(expected, outcome.Console, StringComparison.Ordinal);
        Assert.Matches("called from( 0x1[0-9a-f]{5})+\r\n", outcome.Console);
        Assert.Equal(Panicked, outcome.Status);
    }

    /// <summary>The sample of docs/guests.md.</summary>
    [Theory]
    [MemberData(nameof(Judges))]
    public async Task AGuestOfOnesOwnRuns(string judge)
    {
        GuestOutcome outcome = judge == "qemu" ? await Qemu.RunAsync("most=100000", image: "Unikernel") : await GuestKernel.RunAsync(judge, "most=100000", image: "Unikernel");
        Assert.Contains("primes up to 100000: 9592, the last one 99991, in ", outcome.Console, StringComparison.Ordinal);
        Assert.Equal(0, outcome.Status);
    }

    [Fact]
    public void TheImageIsSmall() => Assert.InRange(GuestKernel.Image().Length, 1, 256 << 10);
}
