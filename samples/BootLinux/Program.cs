// Boots a kernel, reads its console, and leaves when it has said something:
// dotnet run -c Release --project samples/BootLinux -- KERNEL INITRD [TEXT]
using Aerostat.Hosting;
using Aerostat.Machine;

if (args is not [string kernel, string initrd, ..])
{
    Console.Error.WriteLine("usage: BootLinux KERNEL INITRD [TEXT]; TEXT is what to wait for, by default 'Run /init'");
    return 2;
}
string wanted = args.Length > 2 ? args[2] : "Run /init";
SerialTranscript console = new();
await using VirtualMachine machine = Machines.Create(new MachineOptions
{
    MemoryBytes = 512 << 20,
    Boot = new KernelBootOptions(kernel) { Initrd = initrd, CommandLine = "console=ttyS0 panic=-1" },
    NoReboot = true,
    Serial = console.Append,
});
await machine.StartAsync();
Task<bool> said = console.WaitForAsync(wanted);
await Task.WhenAny(said, machine.Exit);
console.Close();
Console.WriteLine(string.Join('\n', console.Text.Split('\n').Select(l => l.TrimEnd('\r')).TakeLast(10)));
bool found = await said;
Console.WriteLine(found ? $"The guest said '{wanted}' after {machine.GetStatistics().VmTime.TotalSeconds:0.0} s." : $"The guest ended without saying '{wanted}'.");
return found ? 0 : 1;
