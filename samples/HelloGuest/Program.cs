// Twenty bytes of real mode in a machine of their own: `dotnet run --project samples/HelloGuest [-- ACCELERATOR]`
using System.Text;
using Aerostat.Hosting;
using Aerostat.Machine;

byte[] code =
[
    0xBE, 0x10, 0x7C,       // mov si, text
    0xBA, 0xF8, 0x03,       // mov dx, COM1
    0xAC,                   // next: lodsb
    0x84, 0xC0, 0x74, 0x03, // test al, al; jz done
    0xEE, 0xEB, 0xF8,       // out dx, al; jmp next
    0xE6, 0xF4,             // done: out 0xF4, al
    .. "Hi!\0"u8,           // text
];
await using VirtualMachine machine = Machines.Create(new MachineOptions
{
    MemoryBytes = 2 << 20,
    Accelerator = args is [var name] ? name : "auto",
    Boot = new RealModeBootOptions(code),
    Devices = [new DebugExitOptions()],
    Serial = bytes => Console.Write(Encoding.ASCII.GetString(bytes)),
});
await machine.StartAsync();
MachineExit exit = await machine.WaitForExitAsync(TimeSpan.FromSeconds(10));
Console.WriteLine($"\nThe guest ended with {exit.Kind} {exit.Code} after {machine.GetStatistics().Instructions} instructions.");
return exit.Kind == MachineExitKind.DebugExit ? 0 : exit.ExitStatus;
