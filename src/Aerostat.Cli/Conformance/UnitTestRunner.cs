using System.Diagnostics;
using System.Text;
using Aerostat.Loader;
using Aerostat.Machine;

namespace Aerostat.Cli;

/// <summary>How an entry ended.</summary>
internal enum UnitTestStatus
{
    Pass,
    Fail,
    Skip,
    TimedOut,
}

/// <summary>What came of one entry.</summary>
internal sealed record UnitTestResult(string Name, UnitTestStatus Status, int Passed, int Failed, int Skipped, double Seconds, string Remark)
{
    /// <summary>The last part of what the guest printed.</summary>
    public string Output { get; init; } = "";

    /// <summary>What the monitor says of a crash.</summary>
    public string? Report { get; init; }
}

/// <summary>Runs entries of a kvm-unit-tests build, each in a machine of its own.</summary>
internal sealed class UnitTestRunner
{
    private const string HyperVTestDevice = "hyperv-testdev";
    private const int ExitPass = 1, ExitSkip = 77, ExitAbort = (127 << 1) | 1;

    /// <summary>The build.</summary>
    public required string Directory { get; init; }

    /// <summary>A 32-bit build for the entries that are for i386 only, or null.</summary>
    public string? Directory32 { get; init; }

    /// <summary>What runs the guests, with its usual CPU model.</summary>
    public required Accelerator Accelerator { get; init; }

    /// <summary>The same with its widest CPU model.</summary>
    public required Accelerator Widest { get; init; }

    /// <summary>As <see cref="Widest"/>, with local APICs that the machine keeps: for entries about a hypervisor that reaches into them.</summary>
    public required Accelerator WithOwnApics { get; init; }

    /// <summary>The name of the personality the guests see.</summary>
    public string Personality { get; init; } = "none";

    /// <summary>Takes the place of the limits in the file, whatever the processor.</summary>
    public TimeSpan? Timeout { get; init; }

    /// <summary>Whether entries outside the suite's default run are run.</summary>
    public bool All { get; init; }

    /// <summary>Runs one entry.</summary>
    public async Task<UnitTestResult> RunAsync(UnitTest test, CancellationToken cancellation)
    {
        bool legacy = test.Architecture == "i386";
        string kernel = Path.Combine(legacy ? Directory32 ?? Directory : Directory, "x86", test.File);
        if (Unmet(test) is { } reason)
            return Skipped(test, reason);
        if (legacy && Directory32 is null)
            return Skipped(test, "is for a 32-bit build: give one with --i386");
        if (!File.Exists(kernel))
            return Skipped(test, $"{test.File} has not been built");

        GuestOutput output = new();
        Stopwatch watch = Stopwatch.StartNew();
        MachineExit exit;
        try
        {
            MachineOptions options = new()
            {
                Name = "conformance",
                MemoryBytes = test.MemoryBytes,
                Cpus = test.Cpus,
                Boot = new KernelBootOptions(kernel)
                {
                    CommandLine = test.ArgumentsAt(DateTimeOffset.UtcNow),
                    InitrdBytes = Encoding.ASCII.GetBytes($"NR_CPUS={test.Cpus}\nMEMSIZE={test.MemoryBytes >> 20}\nMEMLIMIT=0\nTEST_DEVICE=1\n"),
                },
                Devices = [new DebugExitOptions(), new TestDeviceOptions(), .. test.Devices.Contains(HyperVTestDevice) ? [new HyperVTestDeviceOptions()] : Array.Empty<DeviceOptions>()],
                NoReboot = true,
                Personality = PersonalityFor(test),
                Serial = output.Write,
            };
            Accelerator widest = WantsHyperV(test) ? WithOwnApics : Widest;
            VirtualMachine machine = new(options, CpuFlags.Apply(test, WantsHyperV(test) ? WithOwnApics : Accelerator, widest, pseudoCounters: WantsVmware(test)));
            await using (machine.ConfigureAwait(false))
            {
                await machine.StartAsync().ConfigureAwait(false);
                using CancellationTokenRegistration stop = cancellation.Register(() => _ = machine.StopAsync());
                exit = await machine.WaitForExitAsync(Timeout ?? LimitOf(test, Accelerator.Name)).ConfigureAwait(false);
            }
        }
        catch (BootException e)
        {
            exit = new MachineExit(MachineExitKind.VmmFailed, 0, e.Message);
        }
        cancellation.ThrowIfCancellationRequested();
        return output.Judge(test.Name, exit, watch.Elapsed.TotalSeconds);
    }

    /// <summary>
    /// How long an entry may take: its own limit, or the suite's usual one. Those are for processors that run at the host's speed; the software
    /// processors get more of it.
    /// </summary>
    internal static TimeSpan LimitOf(UnitTest test, string accelerator) => (test.Timeout ?? UnitTest.DefaultTimeout) * accelerator switch
    {
        "translator" => 10,
        "interpreter" => 40,
        _ => 1,
    };

    private static bool WantsVmware(UnitTest test) => test.Machine.Contains("vmport=on");

    // An entry that is about a hypervisor gets to see that one.
    private string PersonalityFor(UnitTest test) => WantsVmware(test) ? "vmware" : WantsHyperV(test) && Personality == "kvm" ? "hyperv" : Personality;

    private static bool WantsHyperV(UnitTest test) => test.CpuFlags.Contains("hv_passthrough");

    // Without it the host's kernel does not let programs of the guest near the port.
    private static bool VmwareBackdoorInKernel
    {
        get
        {
            try
            {
                return File.ReadAllText("/sys/module/kvm/parameters/enable_vmware_backdoor").StartsWith('Y');
            }
            catch (Exception e) when (e is IOException or UnauthorizedAccessException)
            {
                return false;
            }
        }
    }

    private static UnitTestResult Skipped(UnitTest test, string reason) => new(test.Name, UnitTestStatus.Skip, 0, 0, 0, 0, reason);

    // What the entry needs and no machine of ours has.
    private string? Unmet(UnitTest test)
    {
        if (!All && test.Groups.Contains("nodefault"))
            return "is not in the default run: give --all";
        if (test.CpuFlags.Contains("+vmx") || test.CpuFlags.Contains("+svm") || test.File is "svm.flat" or "vmx.flat" or "svm_npt.flat")
            return "needs nested virtualization";
        if (WantsHyperV(test) && PersonalityFor(test) != "hyperv")
            return "needs the Hyper-V personality";
        // Its test of the kernel's module parameter comes down to this.
        if (WantsVmware(test))
            return Accelerator.Name != "kvm" || VmwareBackdoorInKernel ? null : "needs kvm's module parameter enable_vmware_backdoor=Y";
        if (test.Devices.FirstOrDefault(d => d is not (HyperVTestDevice or "pc-testdev" or "isa-debug-exit")) is { } device)
            return $"needs the device {device}";
        if (test.Accelerator is { } accelerator && accelerator != Accelerator.Name)
            return $"is for {accelerator} only";
        return null;
    }

    /// <summary>The guest's serial output: counted as it comes, its end kept.</summary>
    private sealed class GuestOutput
    {
        private const int Kept = 1 << 20, LongestLine = 4096;
        private readonly Lock gate = new();
        private readonly StringBuilder text = new();
        private readonly StringBuilder line = new();
        private string lastFailure = "", lastSkip = "";
        private int passed, failed, skipped;

        public void Write(ReadOnlySpan<byte> bytes)
        {
            lock (gate)
            {
                foreach (byte b in bytes)
                {
                    char c = b is (byte)'\n' or (byte)'\t' or (>= 32 and < 127) ? (char)b : b == '\r' ? '\0' : '?';
                    if (c == '\0')
                        continue;
                    text.Append(c);
                    if (c == '\n')
                    {
                        Count(line.ToString());
                        line.Clear();
                    }
                    else if (line.Length < LongestLine)
                    {
                        line.Append(c);
                    }
                }
                if (text.Length > 2 * Kept)
                    text.Remove(0, text.Length - Kept);
            }
        }

        private void Count(string s)
        {
            if (s.StartsWith("PASS", StringComparison.Ordinal))
            {
                passed++;
            }
            else if (s.StartsWith("FAIL", StringComparison.Ordinal))
            {
                failed++;
                lastFailure = s;
            }
            else if (s.StartsWith("SKIP", StringComparison.Ordinal))
            {
                skipped++;
                lastSkip = s;
            }
        }

        public UnitTestResult Judge(string name, MachineExit exit, double seconds)
        {
            lock (gate)
            {
                (UnitTestStatus status, string remark) = exit switch
                {
                    { Kind: MachineExitKind.DebugExit, Code: ExitPass } => failed == 0 ? (UnitTestStatus.Pass, "") : (UnitTestStatus.Fail, lastFailure),
                    { Kind: MachineExitKind.DebugExit, Code: ExitSkip } => (UnitTestStatus.Skip, lastSkip),
                    { Kind: MachineExitKind.DebugExit, Code: ExitAbort } => (UnitTestStatus.Fail, "the guest aborted"),
                    { Kind: MachineExitKind.DebugExit } => (UnitTestStatus.Fail, lastFailure),
                    { Kind: MachineExitKind.TimedOut } => (UnitTestStatus.TimedOut, lastFailure),
                    { Kind: MachineExitKind.Crashed } => (UnitTestStatus.Fail, "triple fault"),
                    _ => (UnitTestStatus.Fail, $"{exit.Kind}: {exit.Report?.Split('\n')[0]}"),
                };
                return new UnitTestResult(name, status, passed, failed, skipped, seconds, remark) { Output = text.ToString(), Report = exit.Report };
            }
        }
    }
}
