using System.Buffers.Binary;
using Aerostat.Memory;
using Aerostat.Processors;
using Aerostat.X86;
using Xunit;
using static Iced.Intel.AssemblerRegisters;

namespace Aerostat.Cpu.Tests;

/// <summary>Protection keys for user pages (PKRU) and for supervisor pages (IA32_PKRS): Intel SDM vol. 3 section 5.6.2.</summary>
public sealed class ProtectionKeyTests
{
    // All means all but key 0, which everything else in the guest has.
    private const int Key = 5, PkruOffset = 832, HeaderOffset = 512;
    private const uint NoAccess = 1u << (2 * Key), NoWrite = 2u << (2 * Key), AllKeys = ~3u, OtherKeys = AllKeys & ~(3u << (2 * Key));
    private const uint P = 1, W = 2, U = 4, Pk = 0x20;

    private static TestMachine Create(bool translated, bool userPage, uint pkru, uint pkrs)
    {
        Assert.SkipWhen(translated && !TranslatorHypervisor.IsSupported, "the translator needs an x86-64 host");
        var m = new TestMachine(TestMode.Long, "max", hypervisor: translated ? memory => new TranslatorHypervisor(memory, threshold: 0) : null);
        ulong at = m.Tables.EntryAddress(TestMachine.Data, 1);
        ulong entry = m.Memory.Read<ulong>(new GuestAddress(at)) | (ulong)Key << 59;
        m.Memory.Write(new GuestAddress(at), userPage ? entry : entry & ~PageTableEntry.U);
        m.State.Cr4 |= Cr4.Pke | Cr4.Pks;
        BinaryPrimitives.WriteUInt64LittleEndian(m.State.Xsave.AsSpan(HeaderOffset), 3 | 1 << 9);
        BinaryPrimitives.WriteUInt32LittleEndian(m.State.Xsave.AsSpan(PkruOffset), pkru);
        m.State.Msrs[Msr.Pkrs] = pkrs;
        return m;
    }

    /// <summary>Each combination of who, what and which rights: the error code of the page fault, or 0.</summary>
    [Theory]
    // PKRU and user pages; the other register, and other keys, mean nothing there.
    [InlineData(true, 3, false, OtherKeys, AllKeys, true, 0u)]
    [InlineData(true, 3, true, OtherKeys, AllKeys, true, 0u)]
    [InlineData(true, 3, false, NoAccess, 0u, true, P | U | Pk)]
    [InlineData(true, 3, true, NoAccess, 0u, true, P | W | U | Pk)]
    [InlineData(true, 3, false, NoWrite, 0u, true, 0u)]
    [InlineData(true, 3, true, NoWrite, 0u, true, P | W | U | Pk)]
    [InlineData(true, 3, true, NoWrite, 0u, false, P | W | U | Pk)]
    [InlineData(true, 0, false, NoAccess, 0u, true, P | Pk)]
    [InlineData(true, 0, true, NoWrite, 0u, true, P | W | Pk)]
    [InlineData(true, 0, true, NoWrite, 0u, false, 0u)]
    [InlineData(true, 0, true, 0u, AllKeys, true, 0u)]
    // PKRS and supervisor pages.
    [InlineData(false, 0, false, AllKeys, OtherKeys, true, 0u)]
    [InlineData(false, 0, true, AllKeys, OtherKeys, true, 0u)]
    [InlineData(false, 0, false, 0u, NoAccess, true, P | Pk)]
    [InlineData(false, 0, true, 0u, NoAccess, true, P | W | Pk)]
    [InlineData(false, 0, false, 0u, NoWrite, true, 0u)]
    [InlineData(false, 0, true, 0u, NoWrite, true, P | W | Pk)]
    [InlineData(false, 0, true, 0u, NoWrite, false, 0u)]
    // A supervisor page stays one.
    [InlineData(false, 3, false, AllKeys, 0u, true, P | U)]
    public void Rights(bool userPage, int cpl, bool write, uint pkru, uint pkrs, bool writeProtect, uint error)
    {
        foreach (bool translated in (bool[])[false, true])
        {
            using TestMachine m = Create(translated, userPage, pkru, pkrs);
            if (!writeProtect)
                m.State.Cr0 &= ~Cr0.Wp;
            ulong at = m.Assemble(
                a =>
                {
                    if (write)
                        a.mov(__dword_ptr[rbx], ecx);
                    else
                        a.mov(ecx, __dword_ptr[rbx]);
                    a.int3();
                },
                user: cpl == 3);
            m.State.Gpr[3] = TestMachine.Data + 8;
            // Twice: the second time through whatever has been remembered.
            for (int i = 0; i < 2; i++)
            {
                TestResult r = m.Run(cpl, at);
                Assert.Equal((error == 0 ? Vector.Breakpoint : Vector.PageFault, (ulong)error), (r.Vector, r.Error));
                if (error != 0)
                    Assert.Equal(TestMachine.Data + 8, r.State.Cr2);
            }
        }
    }

    /// <summary>WRPKRU takes effect at once, whatever the TLB and translated code know; RDPKRU reads it back.</summary>
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void WritingPkruNeedsNoFlush(bool translated)
    {
        using TestMachine m = Create(translated, userPage: true, 0, 0);
        ulong at = m.Assemble(
            a =>
            {
                a.mov(esi, __dword_ptr[rbx]);
                a.mov(__dword_ptr[rbx], esi);
                a.mov(eax, unchecked((int)NoWrite));
                a.xor(ecx, ecx);
                a.xor(edx, edx);
                a.wrpkru();
                a.rdpkru();
                a.mov(edi, eax);
                a.mov(esi, __dword_ptr[rbx]);
                a.mov(__dword_ptr[rbx], esi);
                a.int3();
            },
            user: true);
        m.State.Gpr[3] = TestMachine.Data;
        TestResult r = m.Run(3, at);
        Assert.Equal((Vector.PageFault, (ulong)(P | W | U | Pk), (ulong)NoWrite), (r.Vector, r.Error, r.State.Gpr[7]));
    }

    /// <summary>Code can be executed whatever the key says.</summary>
    [Fact]
    public void FetchesAreNotChecked()
    {
        using TestMachine m = Create(translated: false, userPage: true, NoAccess | NoWrite, 0);
        m.Memory.Write(new GuestAddress(TestMachine.Data), [0x90, 0xCC]);
        TestResult r = m.Run(3, TestMachine.Data);
        Assert.Equal((Vector.Breakpoint, TestMachine.Data + 2), (r.Vector, r.Rip));
    }

    /// <summary>RDPKRU and WRPKRU want ECX = 0, and CR4.PKE.</summary>
    [Fact]
    public void InstructionsHaveRules()
    {
        using TestMachine m = Create(translated: false, userPage: true, 0, 0);
        ulong at = m.Assemble(a => a.rdpkru(), user: true);
        m.State.Gpr[1] = 1;
        Assert.Equal(Vector.GeneralProtection, m.Run(3, at).Vector);
        m.State.Gpr[1] = 0;
        m.State.Cr4 &= ~Cr4.Pke;
        Assert.Equal(Vector.InvalidOpcode, m.Run(3, at).Vector);
        m.State.Cr4 |= Cr4.Pke;
        at = m.Assemble(a => a.wrpkru(), user: true);
        m.State.Gpr[2] = 1;
        Assert.Equal(Vector.GeneralProtection, m.Run(3, at).Vector);
    }
}
