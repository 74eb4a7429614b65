using Aerostat.Memory;
using Aerostat.Platform;
using Aerostat.Processors;

namespace Aerostat.Cpu;

/// <summary>
/// Runs guest code as translated host code: 64-bit code becomes x86-64 host code, everything else steps in the interpreter on the same
/// state. x86-64 hosts only. See docs/translator.md.
/// </summary>
public sealed class TranslatorHypervisor : IHypervisor
{
    // Host code of all vCPUs together, in bytes, and what each has at least and at most.
    private const int CodeBudget = 256 << 20, SmallestCode = 16 << 20, LargestCode = 64 << 20;

    private readonly InterpreterHypervisor interpreters;
    private readonly GuestMemory memory;
    private readonly int threshold, hotThreshold;
    private readonly IBlockObserver? observer;
    private volatile Interpreter[] translating = [];

    /// <summary>Binds a translator to a machine's memory, which must outlive it.</summary>
    /// <exception cref="PlatformNotSupportedException">The host is not x86-64.</exception>
    public TranslatorHypervisor(GuestMemory memory)
        : this(memory, TranslationState.DefaultThreshold)
    {
    }

    /// <summary>As the other; writes down what it translates.</summary>
    /// <exception cref="PlatformNotSupportedException">The host is not x86-64.</exception>
    /// <exception cref="IOException">A file of the record cannot be written or read.</exception>
    /// <exception cref="UnauthorizedAccessException">The same.</exception>
    public TranslatorHypervisor(GuestMemory memory, TranslationRecordOptions record)
        : this(memory, TranslationState.DefaultThreshold, new TranslationRecorder(record))
    {
    }

    /// <summary>As the other, with the number of executions after which code is translated; for tests.</summary>
    internal TranslatorHypervisor(GuestMemory memory, int threshold, IBlockObserver? observer = null, int hotThreshold = TranslationState.DefaultHotThreshold)
    {
        this.hotThreshold = hotThreshold;
        this.threshold = threshold;
        this.observer = observer;
        if (!IsSupported)
            throw new PlatformNotSupportedException("the translator needs an x86-64 host; use the interpreter");
        this.memory = memory;
        interpreters = new InterpreterHypervisor(memory, coldCodeOnly: true);
        memory.CodeChanged += NoteCodeChange;
    }

    /// <summary>Whether this host can run translated code.</summary>
    public static bool IsSupported => ExecutableMemory.IsSupported;

    /// <inheritdoc/>
    public string Name => "translator";

    /// <inheritdoc/>
    /// <exception cref="ArgumentOutOfRangeException">The index is not below the count, or has been made before.</exception>
    public IVirtualProcessor CreateProcessor(VirtualProcessorOptions options)
    {
        var processor = (SoftwareProcessor)interpreters.CreateProcessor(options);
        processor.Interpreter.EnableTranslation(Math.Clamp(CodeBudget / options.Count, SmallestCode, LargestCode), threshold, observer, hotThreshold);
        translating = [.. translating, processor.Interpreter];
        return processor;
    }

    /// <inheritdoc/>
    public Action<ulong>? FlushTranslations => interpreters.FlushTranslations;

    private void NoteCodeChange(ulong page)
    {
        foreach (Interpreter interpreter in translating)
            interpreter.NoteCodeChange(page);
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        memory.CodeChanged -= NoteCodeChange;
        interpreters.Dispose();
        (observer as IDisposable)?.Dispose();
    }
}
