using System.CommandLine;
using System.Text.Json;
using Aerostat.Hosting;
using Aerostat.Platform;

namespace Aerostat.Cli;

/// <summary><c>aerostat doctor</c>: what this host offers, what is missing, and why.</summary>
internal static class DoctorCommand
{
    // What a software processor on this host makes use of, where it is there.
    private static readonly string[] s_usefulFlags = ["sse4_2", "avx2", "bmi2", "adx", "aes", "pclmulqdq", "sha_ni", "invtsc", "constant_tsc", "nonstop_tsc"];

    public static Command Create()
    {
        Option<bool> asJson = new("--json") { Description = "Machine-readable output" };
        Command command = new("doctor", "Say what this host offers, what is missing, and which accelerator 'auto' picks.") { asJson };
        command.SetAction(result =>
        {
            HostFacts host = HostFacts.Read();
            TextWriter output = result.InvocationConfiguration.Output;
            if (result.GetValue(asJson))
                WriteJson(host, Accelerators.Kvm, output);
            else
                WriteText(host, Accelerators.Kvm, output);
            return ExitStatus.Success;
        });
        return command;
    }

    private static void WriteText(HostFacts host, KvmReport kvm, TextWriter output)
    {
        (string automatic, string reason) = Accelerators.Automatic(kvm);
        output.WriteLine($"aerostat {Program.Version} on {host.Distribution}, Linux {host.KernelRelease}, {host.Architecture}{(host.IsVirtual ? ", itself a virtual machine" : "")}");
        output.WriteLine($"processor     {host.ProcessorModel}, {host.Processors} usable{(host.ProcessorQuota is { } quota ? $", limited to {quota:0.##} by the control group" : "")}");
        output.WriteLine($"features      {string.Join(' ', s_usefulFlags.Where(host.ProcessorFlags.Contains))}");
        output.WriteLine($"memory        {host.Memory.TotalBytes >> 20} MiB, {host.Memory.UsableBytes >> 20} MiB free for guests{(host.Memory.LimitBytes is { } limit ? $" (control group limit {limit >> 20} MiB)" : "")}");
        output.WriteLine($"huge pages    {(host.TransparentHugePages is { } huge ? $"transparent, for guest memory: {huge}" : "none")}");
        output.WriteLine($"clock source  {host.ClockSource}");
        output.WriteLine($"/dev/kvm      {kvm.Verdict}: {kvm.Explanation}");
        if (kvm.Capabilities.Count > 0)
            foreach (string line in Wrap(kvm.Capabilities))
                output.WriteLine($"              {line}");
        output.WriteLine();
        foreach (AcceleratorStatus a in Accelerators.All(kvm))
            output.WriteLine($"{(a.Usable ? "[yes]" : "[no] ")} --accel {a.Name,-12} {a.Reason}");
        output.WriteLine($"      --accel auto         {automatic}: {reason}");
        foreach (string advice in Advice(host))
            output.WriteLine($"note: {advice}");
    }

    private static IEnumerable<string> Wrap(IEnumerable<(string Name, string Value)> facts)
    {
        string line = "";
        foreach ((string name, string value) in facts)
        {
            string item = $"{name} {value}";
            if (line.Length > 0 && line.Length + item.Length > 90)
            {
                yield return line;
                line = "";
            }
            line += line.Length == 0 ? item : $", {item}";
        }
        yield return line;
    }

    private static IEnumerable<string> Advice(HostFacts host)
    {
        if (host.Architecture != "x64")
            yield return "this version is built and tested for x86-64 hosts only";
        if (host.ClockSource is not ("tsc" or "kvm-clock" or "hyperv_clocksource_tsc_page" or "unknown"))
            yield return $"the host's clock source is {host.ClockSource}: reading the time is slow, and guests read it often";
        if (host.Overcommit == 2)
            yield return "vm.overcommit_memory is 2: large guests may be refused; set it to 0 or 1";
        if (host.Memory.UsableBytes < 768UL << 20)
            yield return "less than 768 MiB are free: give guests --memory 256M";
    }

    private static void WriteKvm(Utf8JsonWriter json, KvmReport kvm)
    {
        json.WriteStartObject("kvm");
        json.WriteBoolean("usable", kvm.Usable);
        json.WriteString("verdict", kvm.Verdict);
        json.WriteString("explanation", kvm.Explanation);
        json.WriteNumber("probeMips", Math.Round(kvm.MillionInstructionsPerSecond, 1));
        json.WriteStartObject("capabilities");
        foreach ((string name, string value) in kvm.Capabilities)
            json.WriteString(name, value);
        json.WriteEndObject();
        json.WriteEndObject();
    }

    private static void WriteJson(HostFacts host, KvmReport kvm, TextWriter output)
    {
        using MemoryStream buffer = new();
        using (Utf8JsonWriter json = new(buffer, new JsonWriterOptions { Indented = true }))
        {
            (string automatic, string reason) = Accelerators.Automatic(kvm);
            json.WriteStartObject();
            json.WriteString("version", Program.Version);
            json.WriteString("distribution", host.Distribution);
            json.WriteString("kernel", host.KernelRelease);
            json.WriteString("architecture", host.Architecture);
            json.WriteBoolean("virtual", host.IsVirtual);
            json.WriteString("processor", host.ProcessorModel);
            json.WriteNumber("processors", host.Processors);
            if (host.ProcessorQuota is { } quota)
                json.WriteNumber("processorQuota", quota);
            json.WriteStartArray("features");
            foreach (string flag in s_usefulFlags.Where(host.ProcessorFlags.Contains))
                json.WriteStringValue(flag);
            json.WriteEndArray();
            json.WriteNumber("memoryBytes", host.Memory.TotalBytes);
            json.WriteNumber("usableMemoryBytes", host.Memory.UsableBytes);
            json.WriteString("clockSource", host.ClockSource);
            WriteKvm(json, kvm);
            json.WriteStartArray("accelerators");
            foreach (AcceleratorStatus a in Accelerators.All(kvm))
            {
                json.WriteStartObject();
                json.WriteString("name", a.Name);
                json.WriteBoolean("usable", a.Usable);
                json.WriteString("reason", a.Reason);
                json.WriteEndObject();
            }
            json.WriteEndArray();
            json.WriteStartObject("auto");
            json.WriteString("name", automatic);
            json.WriteString("reason", reason);
            json.WriteEndObject();
            json.WriteStartArray("notes");
            foreach (string advice in Advice(host))
                json.WriteStringValue(advice);
            json.WriteEndArray();
            json.WriteEndObject();
        }
        output.WriteLine(System.Text.Encoding.UTF8.GetString(buffer.ToArray()));
    }
}
