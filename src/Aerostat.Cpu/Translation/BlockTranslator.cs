using System.Diagnostics;
using System.Runtime.Intrinsics.X86;
using Aerostat.Memory;
using Iced.Intel;

namespace Aerostat.Cpu;

/// <summary>
/// Turns guest instructions of one page into host code: decodes forward from an address through untaken branches, works out which status
/// flags are needed where, and emits. See docs/translator.md.
/// </summary>
internal sealed unsafe partial class BlockTranslator
{
    /// <summary>Longest block, in instructions.</summary>
    public const int MaxInstructions = 48;
    private const int LongestInstruction = 15, LookAheadInstructions = 16, LookAheadDepth = 3;
    /// <summary>How many blocks are made at once at most: the first, and what calls return to.</summary>
    public const int MostInARow = 8;
    // Past so many bytes no other follows, each slow path counted as so many; and what one takes at most.
    private const int MostBytes = 16 << 10, ColdBytes = 64, MostColdBytes = 128;

    private readonly CpuState* state;
    private readonly CodeCache cache;
    private readonly FeatureGate features;
    private readonly HostAssembler a = new();
    private readonly Encoder encoder;
    private readonly PageReader reader = new();
    private readonly Decoder decoder;
    private readonly InstructionInfoFactory infos = new();
    // The page, and what an instruction at its end may have in the next one.
    private readonly byte[] page = new byte[4096 + LongestInstruction];
    private readonly byte[] pageEnd = new byte[LongestInstruction];
    private readonly Instruction[] code = new Instruction[MaxInstructions];
    private readonly Treatment[] treatments = new Treatment[MaxInstructions];
    private readonly int[] live = new int[MaxInstructions + 1];
    private readonly Dictionary<int, int> lookAhead = [];
    private readonly List<(int Start, int Length)> ranges = [];
    private readonly List<Cold> cold = [];
    private readonly List<nint> linksToSelf = [];
    // Blocks that others take the place of.
    private readonly List<(nint Old, nint Other)> superseded = [];
    private readonly Func<ulong, bool> isWarm;
    // The call that the block ends with, if it has a landing pad of its own.
    private CallSite callSite;
    // Where that call returns to, if the code there comes next; else 0.
    private ulong follower;
    private int count;
    // What follows the last instruction: an address to go on at, or nothing (it was a branch).
    private bool fallsThrough, loops;
    private ulong linear, pageLinear, gpa, end;
    private int variant;
    private bool vectors, ungrouped, crossing, exact;
    // What RSP has yet to be moved by.
    private int stackMoves;
    private nint entry;
    private Temperature temperature;
    private TranslatedBlock* replaced;

    /// <param name="state">The processor's registers.</param>
    /// <param name="cache">Where code is put.</param>
    /// <param name="features">Which instructions it has.</param>
    /// <param name="isWarm">Whether code at an address will soon have run often enough to be translated, if it is not.</param>
    public BlockTranslator(CpuState* state, CodeCache cache, FeatureGate features, Func<ulong, bool> isWarm)
    {
        this.isWarm = isWarm;
        this.state = state;
        this.cache = cache;
        this.features = features;
        encoder = Encoder.Create(64, new AssemblerWriter(a));
        decoder = Decoder.Create(64, reader);
    }

    public long BlocksTranslated { get; private set; }

    /// <summary>Offsets in a page, a bit each, of instructions that begin a block and before which all flags are true: breakpoints.</summary>
    public ulong[]? BlockEnds { get; set; }

    /// <summary>Numbers of physical pages whose code has written to themselves: there all flags are true before every instruction.</summary>
    public HashSet<ulong> SelfModifying { get; } = [];

    /// <summary>See <see cref="TranslationState.HotThreshold"/> and <see cref="TranslationState.Trial"/>.</summary>
    public int HotThreshold { get; init; }

    public int Trial { get; init; }

    private const int MostSearching = 1 << 16;

    /// <summary>Physical addresses of instructions that access too many pages for a slot of their own.</summary>
    private HashSet<ulong> Searching { get; } = [];

    /// <summary>From now on an instruction's check searches, wherever it is translated.</summary>
    public void Search(ulong instruction)
    {
        if (Searching.Count >= MostSearching)
            Searching.Clear();
        Searching.Add(instruction);
    }

    public long InstructionsTranslated { get; private set; }

    /// <summary>Time spent in <see cref="Translate"/>, in units of <see cref="Stopwatch.Frequency"/>.</summary>
    public long Ticks { get; private set; }

    /// <summary>
    /// Translates the block at an address whose page has been found, and what its last instruction, if that is a call, returns to. The caller has made room in the cache.
    /// </summary>
    /// <param name="memory">Guest memory.</param>
    /// <param name="watch">Makes sure that writes to bytes of code are noticed.</param>
    /// <param name="linearAddress">Where the guest sees the code.</param>
    /// <param name="physicalAddress">Where it lies.</param>
    /// <param name="codeVariant">TLB set, + 3 with XMM registers loaded, + 6 with YMM registers loaded.</param>
    /// <param name="second">Where the page behind lies, if the first instruction goes on there: then it is translated alone.</param>
    /// <param name="withoutGroups">Each access on its own: for where a group's check has failed.</param>
    /// <param name="temperature">How often it runs.</param>
    /// <param name="replacing">The block whose place it takes: who comes to that goes on to the new one.</param>
    public TranslatedBlock* Translate(GuestMemory memory, Action<ulong, uint> watch, ulong linearAddress, ulong physicalAddress, int codeVariant, ulong second = TranslatedBlock.OnePage, bool withoutGroups = false,
        Temperature temperature = Temperature.Warm, TranslatedBlock* replacing = null)
    {
        long begin = Stopwatch.GetTimestamp();
        ungrouped = withoutGroups;
        variant = codeVariant;
        vectors = VectorLevel.Of(variant) >= VectorLevel.Xmm;
        this.temperature = temperature;
        replaced = replacing;
        cache.BeginCode(a);
        nint start = a.Here;
        TranslatedBlock* block = TranslatePart(memory, watch, linearAddress, physicalAddress, second);
        for (int n = 1; n < MostInARow && follower != 0 && a.Here - start + (cold.Count * ColdBytes) < MostBytes; n++)
        {
            replaced = cache.Find(follower, Physical(follower), variant);
            // What has been found out about its checks stays.
            this.temperature = replaced != null && replaced->Temperature > temperature ? replaced->Temperature : temperature;
            TranslatePart(memory, watch, follower, Physical(follower), TranslatedBlock.OnePage);
        }
        if (follower != 0)
            EmitLandingPad(follower);
        follower = 0;
        EmitColds(near: true);
        cache.BeginSlowPaths(a, cold.Count * MostColdBytes);
        EmitColds(near: false);
        cold.Clear();
        cache.EndSlowPaths(a);
        Observe();
        foreach ((nint old, nint other) in superseded)
            cache.Replace(a, (TranslatedBlock*)old, (TranslatedBlock*)other);
        superseded.Clear();
        Ticks += Stopwatch.GetTimestamp() - begin;
        return block;
    }

    // The next block, right behind what has been emitted; if it is not the first, it follows the call that returns to it.
    private TranslatedBlock* TranslatePart(GuestMemory memory, Action<ulong, uint> watch, ulong linearAddress, ulong physicalAddress, ulong second)
    {
        bool follows = follower != 0;
        follower = 0;
        linear = linearAddress;
        gpa = physicalAddress;
        pageLinear = linear & ~4095UL;
        crossing = second != TranslatedBlock.OnePage;
        exact = SelfModifying.Count != 0 && SelfModifying.Contains(gpa >> 12);
        ulong gpaPage = gpa & ~4095UL;
        var source = new ReadOnlySpan<byte>(memory.HostBase + gpaPage, 4096);
        uint* generation = memory.CodeGeneration + (gpa >> 12), secondGeneration = crossing ? memory.CodeGeneration + (second >> 12) : generation;
        ReadOnlySpan<byte> secondSource = crossing ? new(memory.HostBase + (second & ~4095UL), LongestInstruction) : default;
        uint decoded, secondDecoded;
        // In the order of Interpreter.DecodeBlock: watch, copy and decode, mark, take the generation, compare.
        while (true)
        {
            watch(gpa, 1);
            if (crossing)
                watch(second, LongestInstruction);
            source.CopyTo(page);
            secondSource.CopyTo(page.AsSpan(4096));
            Decode();
            foreach ((int start, int length) in ranges)
                watch(gpaPage + (ulong)start, (uint)Math.Min(length, 4096 - start));
            decoded = Volatile.Read(ref *generation);
            secondDecoded = Volatile.Read(ref *secondGeneration);
            Interlocked.MemoryBarrier();
            bool same = true;
            foreach ((int start, int length) in ranges)
                same &= source.Slice(start, Math.Min(length, 4096 - start)).SequenceEqual(new ReadOnlySpan<byte>(page, start, Math.Min(length, 4096 - start)));
            same &= secondSource.SequenceEqual(new ReadOnlySpan<byte>(page, 4096, secondSource.Length));
            if (same)
                break;
        }
        BlocksTranslated++;
        InstructionsTranslated += count;
        PlanGroups();
        nint begin = a.Here;
        int firstRecord = cache.RecordCount, firstCheck = cache.NextCheck, firstCold = cold.Count;
        bool check = follows || (replaced != null && replaced->KnownBySum);
        if (check)
            cache.EmitEntryCheck(a, linear, variant);
        // Calls return right into it, so no-operations would be executed.
        if (!follows)
            a.AlignCode(16);
        entry = a.Here;
        int countdown = EmitCountdown(), countdownBytes = (int)(a.Here - entry);
        EmitCount(0);
        EmitBody();
        NoteBlock(begin, firstRecord, firstCold);
        TranslatedBlock* block = cache.AddBlock(new TranslatedBlock
        {
            Linear = linear,
            Gpa = gpa,
            Second = second,
            Variant = ungrouped ? variant | CodeCache.Ungrouped : variant,
            Generation = generation,
            DecodedGeneration = decoded,
            SecondGeneration = secondGeneration,
            SecondDecodedGeneration = secondDecoded,
            Entry = entry,
            CheckedEntry = check ? begin : 0,
            Temperature = temperature,
            Countdown = countdown,
            CountdownBytes = countdownBytes,
            FirstCheck = firstCheck,
            Checks = cache.NextCheck - firstCheck,
        });
        if (countdown != 0)
        {
            cache.Record((uint)firstRecord)->Retry = (nint)block;
            foreach (nint site in linksToSelf)
                cache.NoteLink(site, block);
        }
        linksToSelf.Clear();
        // From now on it is found like any other.
        entry = 0;
        if (callSite.Pad != 0)
        {
            callSite.Block = block;
            cache.AddCallSite(callSite);
        }
        callSite = default;
        if (replaced != null)
            superseded.Add(((nint)replaced, (nint)block));
        return block;
    }

    private void EmitColds(bool near)
    {
        for (int i = 0; i < cold.Count; i++)
        {
            if (IsNear(cold[i].Kind) != near)
                continue;
            NoteCold(i, near);
            EmitCold(cold[i]);
        }
        NoteCold(cold.Count, near);
    }

    private void Decode()
    {
        ranges.Clear();
        lookAhead.Clear();
        count = 0;
        fallsThrough = true;
        ulong ip = linear;
        int most = crossing ? 1 : MaxInstructions;
        while (count < most)
        {
            if ((count != 0 && Interpreter.EndsBlocks(BlockEnds, ip)) || !DecodeAt(ip, out Instruction i, out Treatment treatment))
                break;
            code[count] = i;
            treatments[count] = treatment;
            ip = i.NextIP;
            if (treatment == Treatment.Branch)
            {
                // A jump forward within the page costs nothing: go on behind it.
                ulong target = i.NearBranchTarget;
                if (target > i.IP && SamePage(target) && count < MaxInstructions - 8)
                {
                    treatments[count++] = Treatment.Nothing;
                    ip = target;
                    continue;
                }
            }
            count++;
            if (EndsBlock(i, treatment))
            {
                fallsThrough = false;
                break;
            }
        }
        end = ip;
        loops = Loops();
        int after = fallsThrough ? LiveAt(end, LookAheadDepth) : FlagEffects.All;
        for (int k = count - 1; k >= 0; k--)
        {
            (int read, int killed) = Effects(code[k], treatments[k]);
            if (treatments[k] is Treatment.ConditionalBranch or Treatment.Branch or Treatment.Call)
            {
                int atTarget = LiveAt(code[k].NearBranchTarget, LookAheadDepth);
                after = treatments[k] == Treatment.ConditionalBranch ? after | atTarget : atTarget;
            }
            live[k] = after = exact ? FlagEffects.All : (after & ~killed) | read;
        }
    }

    // Whether this is a loop by itself.
    private bool Loops()
    {
        for (int k = 0; k < count; k++)
            if (treatments[k] is Treatment.ConditionalBranch or Treatment.Branch && code[k].NearBranchTarget == linear)
                return true;
        return false;
    }

    private static bool EndsBlock(in Instruction i, Treatment t) =>
        t is Treatment.Branch or Treatment.IndirectBranch or Treatment.Call or Treatment.IndirectCall or Treatment.Return
            or Treatment.AccessSwitch or Treatment.SystemCall or Treatment.SystemReturn
        || (t == Treatment.Interpret && i.FlowControl != FlowControl.Next);

    private static FlagEffects Effects(in Instruction i, Treatment t) => t switch
    {
        Treatment.Interpret => new FlagEffects(FlagEffects.All, 0),
        Treatment.PushFlags or Treatment.String => new FlagEffects(FlagEffects.All, 0),
        Treatment.Divide => new FlagEffects(0, FlagEffects.All),
        Treatment.Integer or Treatment.Vector or Treatment.ConditionalBranch or Treatment.BitString => FlagEffects.Of(i),
        _ => default,
    };

    // False: the instruction does not end on this page.
    private bool DecodeAt(ulong ip, out Instruction i, out Treatment treatment)
    {
        treatment = Treatment.Interpret;
        i = default;
        if (!SamePage(ip))
            return false;
        int offset = (int)(ip & 4095), limit = crossing ? page.Length : 4096;
        reader.Set(page, offset, limit);
        decoder.IP = ip;
        decoder.Decode(out i);
        if (decoder.LastError == DecoderError.NoMoreBytes)
        {
            ranges.Add((offset, limit - offset));
            return false;
        }
        ranges.Add((offset, Math.Max(i.Length, 1)));
        if (i.IsInvalid)
        {
            // The interpreter raises the exception; nothing of this instruction is used but its address.
            i.Code = Code.INVALID;
            i.IP = ip;
            return false;
        }
        if (features.IsSupported(i))
            treatment = Whitelist.Of(i);
        // User code may only do this with an I/O privilege level of 3.
        if (treatment == Treatment.InterruptFlag && variant % 3 == 0 && i.Code != Code.Cld)
            treatment = Treatment.Interpret;
        treatment = TreatPrivileged(i, treatment);
        if ((treatment == Treatment.Vector && !HostHas(i)) || (treatment == Treatment.Integer && !HostHasInteger(i)))
            treatment = Treatment.Interpret;
        if (treatment is Treatment.Branch or Treatment.ConditionalBranch or Treatment.Call && !IsCanonical(i.NearBranchTarget))
            treatment = Treatment.Interpret;
        return true;
    }

    /// <summary>Whether the registers of a vector instruction are in the host's in this variant.</summary>
    private bool IsLoaded(in Instruction i) => i.Encoding == EncodingKind.VEX ? VectorLevel.Of(variant) == VectorLevel.Ymm : vectors;

    private static bool HostHas(in Instruction i)
    {
        foreach (CpuidFeature f in i.CpuidFeatures)
            if (!HostStubs.CanRun(f))
                return false;
        return true;
    }

    private static readonly bool HasCmpxchg16b = X86Base.IsSupported && (X86Base.CpuId(1, 0).Ecx & 1 << 13) != 0;
    private static readonly bool HasMovbe = X86Base.IsSupported && (X86Base.CpuId(1, 0).Ecx & 1 << 22) != 0;
    private static readonly bool HasAdx = X86Base.IsSupported && X86Base.CpuId(0, 0).Eax >= 7 && (X86Base.CpuId(7, 0).Ebx & 1 << 19) != 0;

    // Some of these would not fault on a host without them but do something else (TZCNT, LZCNT).
    private static bool HostHasInteger(in Instruction i)
    {
        foreach (CpuidFeature f in i.CpuidFeatures)
        {
            bool has = f switch
            {
                CpuidFeature.BMI1 => Bmi1.X64.IsSupported,
                CpuidFeature.BMI2 => Bmi2.X64.IsSupported,
                CpuidFeature.LZCNT => Lzcnt.X64.IsSupported,
                CpuidFeature.POPCNT => Popcnt.X64.IsSupported,
                CpuidFeature.SSE4_2 => Sse42.X64.IsSupported,
                CpuidFeature.MOVBE => HasMovbe,
                CpuidFeature.ADX => HasAdx,
                CpuidFeature.CMPXCHG16B => HasCmpxchg16b,
                _ => true,
            };
            if (!has)
                return false;
        }
        return true;
    }

    private static bool IsCanonical(ulong address) => (long)(address << 16) >> 16 == (long)address;

    private bool SamePage(ulong address) => (address & ~4095UL) == pageLinear;

    /// <summary>
    /// Whether jumps may go to the block at an address directly: it becomes stale with this page, and with this page only. (Before a block whose first
    /// instruction crosses into the next page, the mapping of that page has to be looked at.)
    /// </summary>
    private bool IsLinkable(ulong address) => SamePage(address) && !(MayCross(address) && Crosses(page, (int)(address & 4095)));

    private static bool MayCross(ulong address) => (address & 4095) > 4096 - LongestInstruction;

    // Only what is there now: where it is wrong a moment later, a jump goes the longer way.
    private bool Crosses(byte[] bytes, int offset)
    {
        reader.Set(bytes, offset, bytes == page ? 4096 : bytes.Length);
        decoder.Decode(out _);
        return decoder.LastError == DecoderError.NoMoreBytes;
    }

    /// <summary>Whether the instruction at a physical address goes on in the next page.</summary>
    public bool CrossesPage(GuestMemory memory, ulong address)
    {
        if (!MayCross(address))
            return false;
        int length = (int)(4096 - (address & 4095));
        new ReadOnlySpan<byte>(memory.HostBase + address, length).CopyTo(pageEnd.AsSpan(LongestInstruction - length));
        return Crosses(pageEnd, LongestInstruction - length);
    }

    /// <summary>Which flags may still be read by code at an address. Only this page is looked at, so a change of it undoes the answer too.</summary>
    private int LiveAt(ulong address, int depth)
    {
        if (exact || !SamePage(address) || depth == 0 || Interpreter.EndsBlocks(BlockEnds, address))
            return FlagEffects.All;
        if (lookAhead.TryGetValue((int)(address & 4095), out int known))
            return known;
        // Against loops; pessimistic.
        lookAhead[(int)(address & 4095)] = FlagEffects.All;
        int open = FlagEffects.All, result = 0;
        ulong ip = address;
        for (int n = 0; open != 0; n++)
        {
            if (n == LookAheadInstructions || Interpreter.EndsBlocks(BlockEnds, ip) || !DecodeAt(ip, out Instruction i, out Treatment treatment))
            {
                result |= open;
                break;
            }
            (int read, int killed) = Effects(i, treatment);
            result |= read & open;
            open &= ~(killed | read);
            ip = i.NextIP;
            if (treatment is Treatment.Branch or Treatment.Call)
            {
                result |= open & LiveAt(i.NearBranchTarget, depth - 1);
                break;
            }
            if (treatment == Treatment.ConditionalBranch)
            {
                result |= open & LiveAt(i.NearBranchTarget, depth - 1);
            }
            else if (EndsBlock(i, treatment))
            {
                result |= open;
                break;
            }
        }
        lookAhead[(int)(address & 4095)] = result;
        return result;
    }

    private sealed class PageReader : CodeReader
    {
        private byte[] page = [];
        private int next, end;

        public void Set(byte[] bytes, int offset, int limit)
        {
            page = bytes;
            next = offset;
            end = limit;
        }

        public override int ReadByte() => next < end ? page[next++] : -1;
    }

    private sealed class AssemblerWriter(HostAssembler a) : CodeWriter
    {
        public override void WriteByte(byte value) => a.Byte(value);
    }

    private int Offset(void* field) => (int)((byte*)field - (byte*)state);
}
