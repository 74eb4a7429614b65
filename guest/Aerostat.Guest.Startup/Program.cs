// Writes start.bin and link.ld into the folder that it is given: the part of a C# kernel that cannot be C#, and the linker script that puts it first.
using Aerostat.Guest.Startup;

if (args is not [var folder])
{
    Console.Error.WriteLine("usage: Aerostat.Guest.Startup FOLDER");
    return 2;
}
StartupCode code = StartupCode.Assemble();
Directory.CreateDirectory(folder);
File.WriteAllBytes(Path.Combine(folder, "start.bin"), code.Bytes);
File.WriteAllText(Path.Combine(folder, "link.ld"), LinkerScript.Write(code));
return 0;
