using Aerostat.Processors;

namespace Aerostat.Machine.Tests;

/// <summary>Hands out scripted processors, so that a machine can be driven step by step.</summary>
internal sealed class FakeHypervisor : IHypervisor
{
    public List<FakeProcessor> Processors { get; } = [];

    public bool Disposed { get; private set; }

    public string Name => "fake";

    public byte? HypercallPort { get; init; }

    public Accelerator Accelerator => new("fake", "fake-1", _ => this, (_, _) => new CpuidTable());

    public IVirtualProcessor CreateProcessor(VirtualProcessorOptions options)
    {
        FakeProcessor processor = new(options.Index);
        Processors.Add(processor);
        return processor;
    }

    public void Dispose() => Disposed = true;
}
