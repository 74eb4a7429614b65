namespace Aerostat.Cpu;

/// <content>From RIP to decoded block: linear jump cache, then page walk and physical block cache, then decoding.</content>
internal sealed unsafe partial class Interpreter
{
    private const int JumpEntries = 4096;
    private const int FetchBufferBytes = 1024;
    private const int LongestInstruction = 15;

    private const int FetchMappings = 512;

    // Where pages of code lie: key is the linear page with the privilege in its low bits.
    private struct FetchMapping
    {
        public ulong Key, Epoch, Gpa;
    }

    private readonly FetchMapping[] fetchMappings = new FetchMapping[FetchMappings];
    private readonly JumpEntry* jumpCache;
    // The same for single instructions, which the translator leaves to the interpreter.
    private readonly JumpEntry* singles;
    private readonly byte* fetchBuffer;
    private readonly uint* zeroGeneration;
    private readonly BlockCache blocks;
    private readonly BlockDecoder decoder;

    /// <summary>How often the decoded-block cache was full.</summary>
    internal long BlockEvictions => blocks.Evictions;

    private static int JumpIndex(ulong linear) => (int)((linear ^ (linear >> 12)) & (JumpEntries - 1));

    /// <summary>
    /// Translates the address of code, from what is remembered in this epoch if the page has been looked at before. False: a fault is recorded.
    /// </summary>
    private bool TranslateFetch(CpuState* s, ulong linear, out ulong gpa, out bool global)
    {
        ulong page = linear & ~4095UL, key = page | (s->Cpl == 3 ? 1UL : 2);
        ref FetchMapping m = ref fetchMappings[(linear >> 12) & (FetchMappings - 1)];
        if (m.Key == key && IsCurrent(m.Epoch))
        {
            gpa = m.Gpa | (linear & 4095);
            global = m.Epoch == globalEpoch;
            return true;
        }
        gpa = 0;
        global = false;
        Access access = s->Cpl == 3 ? Access.Fetch | Access.User : Access.Fetch;
        if (!Translate(s, linear, access, out Translation t))
            return false;
        (gpa, global) = (t.Gpa, t.Global);
        if (Memory.TryGetPage(gpa) != null)
        {
            NoteCodePage(linear);
            if (t.PageSize > 4096)
                largeCode.Note(linear, t.PageSize);
            m = new FetchMapping { Key = key, Epoch = global ? globalEpoch : epoch, Gpa = gpa & ~4095UL };
        }
        return true;
    }

    /// <summary>Finds or decodes the block at a linear address; null: a fault is recorded.</summary>
    /// <summary>Where code that has just been fetched lies, as far as it is remembered; otherwise all ones.</summary>
    private ulong FetchedFrom(CpuState* s, ulong linear)
    {
        ref FetchMapping m = ref fetchMappings[(linear >> 12) & (FetchMappings - 1)];
        return m.Key == ((linear & ~4095UL) | (s->Cpl == 3 ? 1UL : 2)) ? m.Gpa | (linear & 4095) : ulong.MaxValue;
    }

    private Block* FetchBlock(CpuState* s, ulong linear, bool single = false)
    {
        if (s->Bitness == 64 && !IsCanonical(s, linear))
        {
            RaiseGp();
            return null;
        }
        Access access = s->Cpl == 3 ? Access.Fetch | Access.User : Access.Fetch;
        if (!TranslateFetch(s, linear, out ulong gpa, out bool global))
            return null;
        bool stop = stops.Count != 0 && stops.ContainsKey(linear);
        if (stop && MeetsStop(linear))
            return null;
        // Key 3: a single instruction of 64-bit code, for the translator.
        ulong key = (gpa << 2) | (single ? 3 : (uint)(s->Bitness >> 5));
        Block* block = blocks.Find(key);
        if (block == null)
        {
            block = Memory.TryGetPage(gpa) != null ? DecodeBlock(s, linear, gpa, key, access, single ? 1 : BlockDecoder.MaxOps) : DecodeForeign(s, gpa);
            if (block == null)
                return null;
        }
        jumpMisses++;
        if (stop)
            return block;
        // The page itself has been noted; an instruction may go on in the next one.
        NoteCodePage(linear);
        NoteCodePage(linear + (ulong)block->Length - 1);
        JumpEntry* e = (single ? singles : jumpCache) + JumpIndex(linear);
        e->Key = linear ^ s->ModeKey;
        // What crosses into another page, or comes from no RAM, is true in this epoch only.
        e->Epoch = global && block->Key == key ? globalEpoch : epoch;
        e->Block = block;
        return block;
    }

    private Block* DecodeBlock(CpuState* s, ulong linear, ulong gpa, ulong key, Access access, int maxOps)
    {
        if (!blocks.Reserve(BlockDecoder.MaxOps))
            ForgetCodeMappings();
        while (true)
        {
            // The order matters: take the generation, watch the page, copy and decode, mark what was decoded, and only then make sure that
            // the copy was still true. A write after that moves the generation on from the one taken.
            uint* generation = Memory.CodeGeneration + (gpa >> 12);
            uint decoded = Volatile.Read(ref *generation);
            WatchCode(gpa, 1);
            int available = (int)Math.Min(4096 - (gpa & 4095), (ulong)(maxOps * LongestInstruction));
            Buffer.MemoryCopy(Memory.HostBase + gpa, fetchBuffer, FetchBufferBytes, available);
            int count = decoder.Decode(fetchBuffer, available, s->Bitness, blocks.Scratch, maxOps, out int length);
            if (count == 0)
                return DecodeCrossing(s, linear, gpa, available, access);
            count = CutBlock(gpa, count, ref length);
            WatchCode(gpa, (uint)length);
            Interlocked.MemoryBarrier();
            if (!new ReadOnlySpan<byte>(fetchBuffer, length).SequenceEqual(new ReadOnlySpan<byte>(Memory.HostBase + gpa, length)))
                continue;
            blocksDecoded++;
            return blocks.Commit(
                new Block
                {
                    Key = key,
                    Count = count,
                    Length = length,
                    Generation = generation,
                    DecodedGeneration = decoded,
                    Generation2 = generation,
                    DecodedGeneration2 = decoded,
                },
                findable: true);
        }
    }

    /// <summary>One instruction that continues on the next page. It is found through the jump cache only, so it is decoded again in each epoch.</summary>
    private Block* DecodeCrossing(CpuState* s, ulong linear, ulong gpa, int first, Access access)
    {
        ulong nextLinear = (linear + (ulong)first) & LinearMask(s);
        if (!Translate(s, nextLinear, access, out Translation t2))
            return null;
        byte* page2 = Memory.TryGetPage(t2.Gpa);
        if (page2 == null)
            return DecodeForeign(s, gpa);
        while (true)
        {
            uint* generation = Memory.CodeGeneration + (gpa >> 12), generation2 = Memory.CodeGeneration + (t2.Gpa >> 12);
            uint decoded = Volatile.Read(ref *generation), decoded2 = Volatile.Read(ref *generation2);
            WatchCode(gpa, (uint)first);
            WatchCode(t2.Gpa, LongestInstruction);
            Interlocked.MemoryBarrier();
            Buffer.MemoryCopy(Memory.HostBase + gpa, fetchBuffer, FetchBufferBytes, first);
            Buffer.MemoryCopy(page2, fetchBuffer + first, FetchBufferBytes - first, LongestInstruction);
            int count = decoder.Decode(fetchBuffer, first + LongestInstruction, s->Bitness, blocks.Scratch, 1, out int length);
            if (*generation != decoded || *generation2 != decoded2)
                continue;
            blocksDecoded++;
            return blocks.Commit(
                new Block
                {
                    Count = count,
                    Length = length,
                    Generation = generation,
                    DecodedGeneration = decoded,
                    Generation2 = generation2,
                    DecodedGeneration2 = decoded2,
                },
                findable: false);
        }
    }

    /// <summary>An instruction fetched from where there is no RAM, byte by byte through MMIO; never kept beyond this epoch.</summary>
    private Block* DecodeForeign(CpuState* s, ulong gpa)
    {
        for (int i = 0; i < LongestInstruction; i++)
        {
            byte* page = Memory.TryGetPage(gpa + (ulong)i);
            fetchBuffer[i] = page != null ? page[(gpa + (ulong)i) & 4095] : (byte)Handler.ReadMmio(gpa + (ulong)i, 1);
        }
        ForgetCodeMappings();
        _ = blocks.Reserve(BlockDecoder.MaxOps);
        int count = decoder.Decode(fetchBuffer, LongestInstruction, s->Bitness, blocks.Scratch, 1, out int length);
        return blocks.Commit(
            new Block { Count = Math.Max(count, 1), Length = length, Generation = zeroGeneration, Generation2 = zeroGeneration },
            findable: false);
    }

    /// <summary>Marks bytes as code; when their page was not watched before, waits until no vCPU can write to it unseen.</summary>
    private void WatchCode(ulong gpa, uint length)
    {
        if (Memory.TryMarkCode(gpa, length))
            return;
        ulong page = gpa & ~4095UL;
        if (gate.Members.Length == 1)
        {
            if (Memory.MarkCode(gpa, length))
                DropWritePath(page);
            return;
        }
        // Marking happens inside the exclusive section, so that nobody sees "watched" while a fast write path is left.
        gate.BeginExclusive(this);
        if (Memory.MarkCode(gpa, length))
            foreach (Interpreter member in gate.Members)
                member.DropWritePath(page);
        gate.EndExclusive(this);
        shootdowns++;
    }
}
