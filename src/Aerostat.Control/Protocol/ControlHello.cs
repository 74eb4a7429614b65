namespace Aerostat.Control;

/// <summary>What a machine says to a client that has connected.</summary>
/// <param name="Protocol"><see cref="ControlProtocol.Name"/>.</param>
/// <param name="Version"><see cref="ControlProtocol.Version"/>.</param>
/// <param name="Name">The machine's name.</param>
/// <param name="Pid">Process that runs it.</param>
/// <param name="Product">The program's version.</param>
/// <param name="Verbs">What can be asked of it.</param>
public sealed record ControlHello(string Protocol, int Version, string Name, int Pid, string Product, IReadOnlyList<string> Verbs);

/// <summary>The hello's line.</summary>
/// <param name="Hello">It.</param>
internal sealed record HelloLine(ControlHello Hello);

/// <summary>An answer that is an error.</summary>
/// <param name="Id">That of the request, if it had one that could be read.</param>
/// <param name="Ok">False.</param>
/// <param name="Error">What.</param>
internal sealed record ErrorLine(long? Id, bool Ok, ErrorBody Error);

/// <summary>What went wrong.</summary>
/// <param name="Kind">Name of a <see cref="ControlErrorKind"/>.</param>
/// <param name="Message">One line.</param>
internal sealed record ErrorBody(string Kind, string Message);

/// <summary>Arguments of verbs that take none.</summary>
public sealed record NoArguments;
