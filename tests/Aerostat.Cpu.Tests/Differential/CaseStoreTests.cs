using Xunit;

namespace Aerostat.Cpu.Tests;

/// <summary>A case that fails once is replayed from then on.</summary>
public sealed class CaseStoreTests : IDisposable
{
    private readonly string folder = Directory.CreateTempSubdirectory("aerostat-corpus-").FullName;

    public void Dispose() => Directory.Delete(folder, recursive: true);

    /// <summary>An executor that adds wrongly when there is a carry out: the form test finds it, and the replay finds it again.</summary>
    [Fact]
    public void AWrongExecutorLeavesACaseThatIsReplayed()
    {
        var store = new CaseStore(folder, Path.Combine(folder, "beside"));
        var rng = new Rng(1);
        TestCase? found = null;
        for (int k = 0; k < 1000 && found is null; k++)
        {
            var c = new TestCase { Bitness = 64, Code = [0x48, 0x01, 0xC8] };
            c.State = TestState.Clean();
            Operands(ref c.State, rng.Next(), rng.Next());
            if (Differs(c))
                found = c;
        }
        Assert.NotNull(found);
        Assert.Empty(store.Lines("forms"));
        Assert.Contains(folder, store.Save("forms", Corpus.Format(found), "add rax,rcx\nis wrong"), StringComparison.Ordinal);
        // Another run, with the same folder.
        var again = new CaseStore(folder, Path.Combine(folder, "beside"));
        (string file, string line) = Assert.Single(again.Lines("forms"));
        Assert.Equal("forms-found.txt", file);
        Assert.True(Differs(Corpus.Parse(line)));
        Assert.Equal("the corpus has it already", again.Save("forms", line, "again"));
        Assert.Single(again.Lines("forms"));
        Assert.Empty(again.Lines("noise"));
    }

    [Fact]
    public void WithoutASourceTreeTheProgramsFolderTakesIt()
    {
        string beside = Path.Combine(folder, "beside");
        var store = new CaseStore(Path.Combine(folder, "absent"), beside);
        Assert.Contains(beside, store.Save("noise", "74", "a stray access"), StringComparison.Ordinal);
        Assert.Equal([("noise-found.txt", "74")], store.Lines("noise"));
        Assert.False(Directory.Exists(Path.Combine(folder, "absent")));
    }

    private static unsafe void Operands(ref TestState state, ulong a, ulong b)
    {
        state.Gpr[0] = a;
        state.Gpr[1] = b;
    }

    private static unsafe bool Differs(TestCase c)
    {
        ulong a = c.State.Gpr[0], b = c.State.Gpr[1], right = a + b, wrong = right < a ? right - 1 : right;
        return right != wrong;
    }
}
