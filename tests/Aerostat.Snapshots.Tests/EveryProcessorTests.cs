using System.Numerics;
using Aerostat.Hosting;
using Aerostat.Machine;
using Aerostat.Memory;
using Iced.Intel;
using Xunit;
using static Iced.Intel.AssemblerRegisters;

namespace Aerostat.Snapshots.Tests;

/// <summary>
/// Snapshots of a running guest of real-mode code, which every KVM runs, also one that emulates its guests: there the guest's writes are learnt from the kernel. On the interpreter
/// too (the translator leaves such code to it), so that the guest is tested where there is no KVM.
/// </summary>
public sealed class EveryProcessorTests
{
    private const uint Multiplier = 1664525, Increment = 1013904223, Seed = 0x2545F491;
    private const ulong Free = 0xC0000;

    private static readonly TimeSpan s_limit = TimeSpan.FromMinutes(2);

    /// <summary>
    /// Full and differential ones, while memory that the guest does not use is given back, written and read: each goes on to the right sum, and has what was in that memory.
    /// </summary>
    [Theory]
    [InlineData("interpreter")]
    [InlineData("kvm")]
    public async Task ARunningGuestIsSaved(string accelerator)
    {
        Assert.SkipUnless(accelerator != "kvm" || Accelerators.Kvm.Usable, $"no KVM: {Accelerators.Kvm.Explanation}");
        uint iterations = accelerator == "interpreter" ? 1_500_000u : Accelerators.Kvm.Fast ? 100_000_000u : 60_000;
        using TestFolder folder = new();
        Output output = new();
        List<(string Place, byte Mark)> places = [];
        VirtualMachine machine = Machines.Create(new MachineOptions
        {
            MemoryBytes = 2 << 20,
            Accelerator = accelerator,
            NoReboot = true,
            Serial = output.Append,
            Boot = new RealModeBootOptions(Code(iterations)),
        });
        await using (machine)
        {
            using MachineSnapshots snapshots = new(machine);
            for (byte i = 1; i <= 6; i++)
            {
                // The first is of the machine as it begins; how many more there are before it ends is the host's affair.
                if (i == 2)
                    await machine.StartAsync();
                Assert.True(machine.Memory.TryFill(new GuestAddress(Free), 64 << 10, i));
                Assert.Equal(DiscardResult.Done, machine.Memory.Discard(new GuestAddress(Free + ((ulong)i << 12)), 4096));
                try
                {
                    await snapshots.SaveAsync(folder[$"s{i}"], new SnapshotOptions { Durable = false, Differential = i % 3 != 1 }, TestContext.Current.CancellationToken);
                }
                catch (SnapshotException) when (machine.State == MachineState.Ended)
                {
                    break;
                }
                if (output.Bytes.Length == 0)
                    places.Add((folder[$"s{i}"], i));
            }
            await machine.WaitForExitAsync(s_limit);
        }
        Assert.Equal(Expected(iterations), BitConverter.ToUInt32(output.Bytes));
        foreach ((string place, byte mark) in places)
        {
            Output again = new();
            await using VirtualMachine copy = Machines.Restore(Snapshot.Open(place), adjust: o => o with { Serial = again.Append, NoReboot = true });
            byte[] free = new byte[64 << 10];
            copy.Memory.TryRead(new GuestAddress(Free), free);
            Assert.Equal(-1, free.AsSpan(mark << 12, 4096).IndexOfAnyExcept((byte)0));
            Assert.Equal(15 << 12, free.Count(b => b == mark));
            await copy.StartAsync();
            Assert.Equal(MachineExitKind.PoweredOff, (await copy.WaitForExitAsync(s_limit)).Kind);
            Assert.Equal(Expected(iterations), BitConverter.ToUInt32(again.Bytes));
        }
    }

    private static uint Expected(uint iterations)
    {
        uint[] words = new uint[(0x90000 - 0x10000) / 4];
        uint state = Seed, sum = 0;
        for (uint i = 0; i < iterations; i++)
        {
            state = (state * Multiplier) + Increment;
            ref uint word = ref words[((state >> 20 & 0x7FF) * 64) + (state >> 14 & 63)];
            word ^= state;
            sum = BitOperations.RotateLeft(sum + word, 7);
        }
        return sum;
    }

    // A walk through half a megabyte from 64 KiB on; then the sum to COM1, and off.
    private static byte[] Code(uint iterations)
    {
        Assembler a = new(16);
        Label loop = a.CreateLabel(), print = a.CreateLabel();
        a.cli();
        a.mov(ebx, Seed);
        a.mov(ecx, iterations);
        a.xor(esi, esi);
        a.Label(ref loop);
        a.imul(ebx, ebx, (int)Multiplier);
        a.add(ebx, (int)Increment);
        a.mov(edx, ebx);
        a.shr(edx, 20);
        a.and(edx, 0x7FF);
        a.shl(edx, 4);
        a.add(edx, 0x1000);
        a.mov(es, dx);
        a.mov(edi, ebx);
        a.shr(edi, 12);
        a.and(edi, 0xFC);
        a.xor(__dword_ptr.es[di], ebx);
        a.add(esi, __dword_ptr.es[di]);
        a.rol(esi, 7);
        a.dec(ecx);
        a.jne(loop);
        a.mov(ecx, 4);
        a.mov(dx, 0x3F8);
        a.Label(ref print);
        a.mov(eax, esi);
        a.@out(dx, al);
        a.shr(esi, 8);
        a.dec(ecx);
        a.jne(print);
        a.mov(dx, 0x604);
        a.mov(ax, 0x3400);
        a.@out(dx, ax);
        a.hlt();
        using MemoryStream code = new();
        a.Assemble(new StreamCodeWriter(code), 0x7C00);
        return code.ToArray();
    }
}
