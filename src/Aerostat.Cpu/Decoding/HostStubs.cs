namespace Aerostat.Cpu;

/// <summary>Small pieces of host code that run an instruction as itself (x87, SSE and the like), made once per form and kept.</summary>
internal sealed class HostStubs;
