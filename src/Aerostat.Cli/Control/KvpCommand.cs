using System.CommandLine;
using Aerostat.Control;

namespace Aerostat.Cli;

/// <summary><c>aerostat kvp</c>: key/value exchange with a guest.</summary>
internal static class KvpCommand
{
    public static Command Create()
    {
        Option<string?> set = new("--set") { HelpName = "KEY=VALUE", Description = "Give the guest a value; nothing behind the sign takes it away" };
        Option<string?> adapter = new("--adapter") { HelpName = "GUID", Description = "Set the addresses of this network adapter of the guest's" };
        Option<bool> dhcp = new("--dhcp") { Description = "With --adapter: it asks a DHCP server" };
        Option<string[]> address = Repeated("--address", "ADDRESS/LENGTH", "With --adapter: an address, such as 10.0.0.2/24"), gateway = Repeated("--gateway", "ADDRESS", "With --adapter: a gateway"),
            server = Repeated("--dns", "ADDRESS", "With --adapter: a name server");
        return MachineCommand.Create("kvp", "Show what a guest says of itself over Hyper-V's key/value exchange, give it values, or set its addresses.", call =>
            call.AskAsync(
                new KvpArguments(call.Result.GetValue(set), call.Result.GetValue(adapter), call.Result.GetValue(dhcp), call.Result.GetValue(address), call.Result.GetValue(gateway), call.Result.GetValue(server)),
                KvpJson.Default.KvpArguments, KvpJson.Default.KvpAnswer, Write, TimeSpan.FromSeconds(150)), extra: null, set, adapter, dhcp, address, gateway, server);
    }

    private static Option<string[]> Repeated(string name, string help, string description) => new(name) { HelpName = help, Description = description + "; repeatable", Arity = ArgumentArity.ZeroOrMore };

    private static void Write(TextWriter output, KvpAnswer answer)
    {
        if (!answer.Ready)
            output.WriteLine("no daemon answers in the guest");
        foreach ((string name, string value) in answer.Facts)
            output.WriteLine($"{name} = {value}");
    }
}
