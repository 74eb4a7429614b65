using Xunit;

// Signals and terminals belong to the whole process.
[assembly: CollectionBehavior(DisableTestParallelization = true)]
