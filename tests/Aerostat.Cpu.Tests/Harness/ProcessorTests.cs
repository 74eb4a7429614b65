namespace Aerostat.Cpu.Tests;

/// <summary>Tests of the architecture that run on the interpreter; a class derived from each runs them through the translator.</summary>
public abstract class ProcessorTests
{
    private protected virtual bool Translated => false;

    private protected SystemGuest Guest(GuestMode mode, string model = "max") => new(mode, model, Translated);

    private protected TestMachine Machine(TestMode mode, string? model = null, int processors = 1) =>
        new(mode, model, processors, memory => TestMachine.Open(memory, Translated));
}
