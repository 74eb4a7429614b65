using Aerostat.Memory;
using Aerostat.X86;
using Xunit;

namespace Aerostat.Cpu.Tests;

/// <summary>Every bit of a page-table entry against every kind of access, in every paging mode, compared with <see cref="PagingOracle"/>.</summary>
public class PagingTests : ProcessorTests
{
    // The page under test is at the same offset in 4 KiB, 2 MiB, 4 MiB and 1 GiB pages: physical 0x200000.
    private const ulong Target = TestMachine.FreeGpa;

    private static ulong Linear(TestMode mode) => mode switch
    {
        TestMode.Long => 0x0000_7000_4000_0000 + Target,
        TestMode.Long5 => 0x00F0_7000_4000_0000 + Target,
        _ => 0x8000_0000 + Target,
    };

    private sealed class Bench : IDisposable
    {
        private readonly ulong[] _addresses;
        private readonly ulong[] _plain;

        public Bench(TestMachine machine, int leafLevel)
        {
            TestMode mode = machine.Mode;
            Machine = machine;
            LeafLevel = leafLevel;
            Levels = Machine.Tables.Levels;
            Oracle = new PagingOracle(Levels, 46);
            // MOV AL,[RBX]; MOV [RBX],AL; JMP RBX; each followed by INT3.
            Machine.Code(0, 0x8A, 0x03, 0xCC);
            Machine.Code(8, 0x88, 0x03, 0xCC);
            Machine.Code(16, 0xFF, 0xE3, 0xCC);
            Machine.Memory.Write(new GuestAddress(Target), Enumerable.Repeat((byte)0xCC, 4096).ToArray());
            _addresses = new ulong[Levels - leafLevel + 1];
            _plain = new ulong[_addresses.Length];
            for (int k = 0; k < _addresses.Length; k++)
                _addresses[k] = Machine.Tables.EntryAddress(Linear(mode), Levels - k);
            for (int k = 0; k + 1 < _addresses.Length; k++)
                _plain[k] = Machine.Tables.Read(_addresses[k]) & 0x000F_FFFF_FFFF_F000;
            ulong pageSize = leafLevel == 1 ? 4096 : Levels == 2 ? 1u << 22 : 1UL << (12 + 9 * (leafLevel - 1));
            _plain[^1] = (Target & ~(pageSize - 1)) | (leafLevel > 1 ? PageTableEntry.Ps : 0);
        }

        public TestMachine Machine { get; }

        public int Levels { get; }

        public int LeafLevel { get; }

        public int Depth => _addresses.Length;

        public PagingOracle Oracle { get; }

        public List<string> Failures { get; } = [];

        public int Count { get; private set; }

        /// <summary>Tries one access with these flags in the entries (top first) and compares with the oracle.</summary>
        public void Try(ReadOnlySpan<ulong> flags, AccessKind kind, bool user, PagingControls c)
        {
            Count++;
            Span<ulong> entries = stackalloc ulong[Depth];
            for (int k = 0; k < Depth; k++)
            {
                entries[k] = _plain[k] | flags[k];
                Machine.Tables.Write(_addresses[k], entries[k]);
            }

            var s = Machine.State;
            s.Cr0 = (s.Cr0 & ~Cr0.Wp) | (c.Wp ? Cr0.Wp : 0);
            s.Cr4 = (s.Cr4 & ~(Cr4.Smep | Cr4.Smap)) | (c.Smep ? Cr4.Smep : 0) | (c.Smap ? Cr4.Smap : 0);
            s.Efer = (s.Efer & ~Efer.Nxe) | (c.Nxe ? Efer.Nxe : 0);
            s.Rflags = 2 | (c.Ac ? RFlags.Ac : 0);
            s.Cr2 = 0;
            ulong linear = Linear(Machine.Mode);
            s.Gpr[3] = linear;
            s.Gpr[0] = 0xCC;
            // The tables' own path to code and stack is not under test: it is mapped for both privileges as each needs it.
            ulong code = (user ? TestMachine.UserCode : TestMachine.KernelCode) + (kind == AccessKind.Read ? 0UL : kind == AccessKind.Write ? 8UL : 16);
            TestResult r = Machine.Run(user ? 3 : 0, code);

            PagingVerdict expected = Oracle.Judge(entries, LeafLevel, kind, user, c);
            string? wrong = null;
            if (expected.Faults)
            {
                if (r.Vector != Vector.PageFault || r.Error != expected.Error || r.State.Cr2 != linear || r.Rip != (kind == AccessKind.Fetch ? linear : code))
                    wrong = $"expected #PF({expected.Error:x})";
                else if ((Machine.Tables.Read(_addresses[^1]) & ~PageTableEntry.A) != (entries[^1] & ~PageTableEntry.A))
                    wrong = "expected the leaf entry to stay as it is";
            }
            else
            {
                if (r.Vector != Vector.Breakpoint || r.Rip != (kind == AccessKind.Fetch ? linear + 1 : code + 3))
                    wrong = "expected no fault";
                for (int k = 0; k < Depth; k++)
                {
                    ulong want = entries[k] | (Levels == 3 && k == 0 ? 0 : PageTableEntry.A) | (k == Depth - 1 && expected.SetsDirty ? PageTableEntry.D : 0);
                    if (Machine.Tables.Read(_addresses[k]) != want)
                        wrong ??= $"expected entry {k} to become {want:x}, it is {Machine.Tables.Read(_addresses[k]):x}";
                }
            }

            if (wrong != null && Failures.Count < 20)
            {
                Failures.Add($"{Machine.Mode} level {LeafLevel} {kind} {(user ? "user" : "supervisor")} {c} entries {string.Join(' ', entries.ToArray().Select(e => e.ToString("x")))}: {wrong}; "
                    + $"vector {r.Vector} error {r.Error:x} cr2 {r.State.Cr2:x} rip {r.Rip:x} exit {r.Exit.Reason}");
            }
        }

        public void Dispose() => Machine.Dispose();
    }

    public static TheoryData<string, int> Pages => new()
    {
        { nameof(TestMode.Long), 1 }, { nameof(TestMode.Long), 2 }, { nameof(TestMode.Long), 3 },
        { nameof(TestMode.Long5), 1 }, { nameof(TestMode.Long5), 2 }, { nameof(TestMode.Long5), 3 },
        { nameof(TestMode.Pae), 1 }, { nameof(TestMode.Pae), 2 },
        { nameof(TestMode.TwoLevel), 1 }, { nameof(TestMode.TwoLevel), 2 },
    };

    private static IEnumerable<PagingControls> Controls(bool nx)
    {
        for (int k = 0; k < 32; k++)
        {
            var c = new PagingControls((k & 1) != 0, (k & 2) != 0, (k & 4) != 0, (k & 8) != 0, (k & 16) != 0);
            if (nx || !c.Nxe)
                yield return c;
        }
    }

    /// <summary>W, U and NX of the leaf and of each table above it, for all accesses under all controls.</summary>
    [Theory]
    [MemberData(nameof(Pages))]
    public void AccessRights(string modeName, int leafLevel)
    {
        using var b = new Bench(Machine(Enum.Parse<TestMode>(modeName)), leafLevel);
        bool nx = b.Levels != 2;
        ulong[] flags = new ulong[b.Depth];
        foreach (PagingControls c in Controls(nx))
        {
            for (int leaf = 0; leaf < 8; leaf++)
            {
                // The table entry that says less than the rest: none, or one of them.
                for (int weak = 0; weak < b.Depth; weak++)
                {
                    for (int upper = 0; upper < (weak == 0 ? 1 : 8); upper++)
                    {
                        for (int k = 0; k < b.Depth; k++)
                        {
                            int bits = k == b.Depth - 1 ? leaf : weak != 0 && k == weak - 1 ? upper : 3;
                            ulong f = PageTableEntry.P | ((bits & 1) != 0 ? PageTableEntry.W : 0) | ((bits & 2) != 0 ? PageTableEntry.U : 0);
                            if ((bits & 4) != 0 && nx && c.Nxe)
                                f |= PageTableEntry.Nx;
                            if (b.Levels == 3 && k == 0)
                                f = PageTableEntry.P;
                            flags[k] = f;
                        }

                        foreach (AccessKind kind in Enum.GetValues<AccessKind>())
                        {
                            b.Try(flags, kind, user: false, c);
                            b.Try(flags, kind, user: true, c);
                        }
                    }
                }
            }
        }

        Assert.True(b.Failures.Count == 0, $"{b.Count} tries\n" + string.Join('\n', b.Failures));
    }

    /// <summary>Each single bit of each entry, flipped in an otherwise open mapping: not present, reserved, PS, accessed, dirty, address bits, NX.</summary>
    [Theory]
    [MemberData(nameof(Pages))]
    public void EveryBitOfEveryEntry(string modeName, int leafLevel)
    {
        using var b = new Bench(Machine(Enum.Parse<TestMode>(modeName)), leafLevel);
        ulong[] flags = new ulong[b.Depth];
        foreach (bool nxe in (bool[])[false, true])
        {
            for (int k = 0; k < b.Depth; k++)
            {
                int level = b.Levels - k;
                for (int bit = 0; bit < (b.Levels == 2 ? 32 : 64); bit++)
                {
                    // Legal address bits would lead elsewhere, and PS in a directory entry would make it a page.
                    ulong reserved = b.Oracle.Reserved(level, leafLevel, nxe);
                    bool isAddress = bit is >= 12 and < 46 && (reserved >> bit & 1) == 0 && !(bit == 12 && k == b.Depth - 1 && leafLevel > 1);
                    bool makesPage = bit == 7 && level is 2 or 3 && level != leafLevel && !(b.Levels == 3 && level == 3);
                    if (isAddress || makesPage)
                        continue;
                    for (int j = 0; j < b.Depth; j++)
                        flags[j] = b.Levels == 3 && j == 0 ? PageTableEntry.P : PageTableEntry.P | PageTableEntry.W | PageTableEntry.U;
                    if (bit == 7 && level == leafLevel && level > 1)
                        continue;
                    flags[k] ^= 1UL << bit;
                    foreach (AccessKind kind in Enum.GetValues<AccessKind>())
                    {
                        b.Try(flags, kind, user: false, new PagingControls(true, false, false, nxe && b.Levels != 2, false));
                        b.Try(flags, kind, user: true, new PagingControls(true, true, true, nxe && b.Levels != 2, false));
                    }
                }
            }
        }

        Assert.True(b.Failures.Count == 0, $"{b.Count} tries\n" + string.Join('\n', b.Failures));
    }
}

/// <summary>The same through the translator.</summary>
public sealed class TranslatedPagingTests : PagingTests
{
    private protected override bool Translated => true;
}
