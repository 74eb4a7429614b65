using System.Globalization;
using System.Runtime.InteropServices;
using Aerostat.Guest.Agent;

// What is not known here is an error, one line.
TimeSpan limit = TimeSpan.FromSeconds(300), hookLimit = TimeSpan.FromSeconds(30);
string hookFolder = "/etc/aerostat-agent/hooks";
bool netlink = false, console = false, list = false, thaw = false, keyValues = true;
for (int i = 0; i < args.Length; i++)
{
    string? value = i + 1 < args.Length ? args[i + 1] : null;
    switch (args[i])
    {
        case "--netlink":
            netlink = true;
            break;
        case "--console":
            console = true;
            break;
        case "--no-kvp":
            keyValues = false;
            break;
        case "--list":
            list = true;
            break;
        case "--thaw":
            thaw = true;
            break;
        case "--limit" or "--hook-limit" when int.TryParse(value, NumberStyles.None, CultureInfo.InvariantCulture, out int seconds) && seconds is > 0 and <= 86400:
            if (args[i++] == "--limit")
                limit = TimeSpan.FromSeconds(seconds);
            else
                hookLimit = TimeSpan.FromSeconds(seconds);
            break;
        case "--hooks" when value is not null:
            hookFolder = value;
            i++;
            break;
        case "--help":
            Console.WriteLine("""
                usage: aerostat-agent [options]
                Freezes this guest's file systems when the host asks for it (Hyper-V volume snapshots),
                and tells the host what the guest is (key/value exchange).
                  --netlink             use the netlink connector in place of /dev/vmbus/hv_vss
                  --limit SECONDS       thaw after that long, whatever happens (300)
                  --hooks FOLDER        run its programs with 'freeze' before and with 'thaw' after (/etc/aerostat-agent/hooks)
                  --hook-limit SECONDS  for each of them (30)
                  --no-kvp              no key/value exchange: hv_kvp_daemon does that
                  --console             messages to standard error too
                  --thaw                only thaw what an agent left frozen that was killed
                  --list                only say what would be frozen, in order
                """);
            return 0;
        default:
            Console.Error.WriteLine($"aerostat-agent: '{args[i]}' is not an option, or lacks its value; --help lists them");
            return 2;
    }
}

GuestFileSystems fileSystems = new();
if (list)
{
    foreach (Freezable f in fileSystems.List())
        Console.WriteLine($"{f.Paths[0]} {f.Type} {f.Device}");
    return 0;
}

SystemLog log = new(console);
using Freezer freezer = new(fileSystems, log);
// One before this one could not.
if (thaw || GuestFileSystems.IsMarked)
    freezer.ThawLeftovers();
if (thaw)
    return 0;
Agent agent = new(freezer, new Hooks(hookFolder, hookLimit, log), limit, log);
using ManualResetEventSlim stopped = new();
void Stop(PosixSignalContext context)
{
    context.Cancel = true;
    agent.Stop();
    stopped.Set();
}

using PosixSignalRegistration terminate = PosixSignalRegistration.Create(PosixSignal.SIGTERM, Stop), interrupt = PosixSignalRegistration.Create(PosixSignal.SIGINT, Stop),
    hangUp = PosixSignalRegistration.Create(PosixSignal.SIGHUP, Stop);
AppDomain.CurrentDomain.UnhandledException += (_, _) => freezer.Abandon("the agent has failed");

if (Host.LockMemory() is < 0 and var refused)
    log.Write(LogLevel.Notice, $"memory cannot be locked: {Host.Text(refused)}");
// What must not need a disk later, nor be compiled while everything waits.
Rehearsal.Run(fileSystems, limit);
log.Write(LogLevel.Info, "ready");

using CancellationTokenSource ending = new();
if (keyValues)
    new Thread(() => new KeyValues("/var/lib/hyperv", KeyValues.GuestFacts, log).Run(ending.Token)) { IsBackground = true }.Start();
int said = 0;
while (!stopped.IsSet)
{
    using IChannel? channel = netlink ? NetlinkChannel.Open(out int error) : DeviceChannel.Open(out error);
    if (channel is null)
    {
        // No host that asks, or not yet; said once.
        if (said != error)
            log.Write(LogLevel.Notice, $"the kernel's side is not there: {Host.Text(error)}");
        said = error;
        stopped.Wait(1000);
        continue;
    }
    said = 0;
    log.Write(LogLevel.Info, "registered");
    if (agent.Serve(channel) is < 0 and var gone)
        log.Write(LogLevel.Notice, $"the kernel's side has gone: {Host.Text(gone)}; registering again");
}
ending.Cancel();
return 0;
