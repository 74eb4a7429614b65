using System.Diagnostics;
using Xunit;

namespace Aerostat.Guest.Tests;

/// <summary>
/// The guest's VMBus driver on QEMU's bridge (hw/hyperv), a host side that we did not write. The bridge stands on KVM's synthetic interrupts: on QEMU's own processor,
/// and on a KVM that lacks them, it says so and there is no bus.
/// </summary>
public sealed class QemuVmbusTests
{
    private const string Enlightenments = "host,hv-relaxed,hv-vapic,hv-time,hv-vpindex,hv-runtime,hv-synic,hv-stimer";

    [Fact]
    public async Task AgreesOnAVersionWithQemusBridge()
    {
        List<string> refusals = [];
        foreach ((string accelerator, string cpu) in ((string, string)[])[("kvm", Enlightenments), ("tcg", "max")])
        {
            string[] arguments = ["-accel", accelerator, "-cpu", cpu, "-device", "vmbus-bridge"];
            using (TemporaryFile image = GuestKernel.WriteImage("multiboot"))
            using (Process probe = Qemu.Start(image.Path, "off", arguments))
            {
                string error = await probe.StandardError.ReadToEndAsync(TestContext.Current.CancellationToken);
                await probe.WaitForExitAsync(TestContext.Current.CancellationToken);
                if (probe.ExitCode != 0 || error.Contains("VMBus requires", StringComparison.Ordinal))
                {
                    refusals.Add($"{accelerator}: {error.Trim()}");
                    continue;
                }
            }
            await QemuBalloonTests.RunAsync("", arguments, async (_, shell) =>
            {
                string text = "";
                for (int i = 0; i < 200 && !text.Contains("major=", StringComparison.Ordinal); i++)
                {
                    text = await shell.AskAsync("vmbus");
                    await Task.Delay(20, TestContext.Current.CancellationToken);
                }
                Assert.Contains("major=", text, StringComparison.Ordinal);
            });
            return;
        }
        Assert.Skip($"QEMU has no VMBus here ({string.Join("; ", refusals)})");
    }
}
