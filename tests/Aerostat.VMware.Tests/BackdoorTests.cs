using System.Buffers.Binary;
using Aerostat.Memory;

namespace Aerostat.VMware.Tests;

/// <summary>Port 0x5658 and the counters of RDPMC.</summary>
public sealed class BackdoorTests : IDisposable
{
    private readonly World world = new();

    public void Dispose() => world.Dispose();

    [Fact]
    public void WhatItTells()
    {
        Assert.Equal((6u, World.BackdoorMagic), (world.Call(10), (uint)world.Rbx));
        Assert.Equal(5000u, world.Call(1));
        Assert.Equal((705_032_704u, 1UL, 25_000_000UL), (world.Call(45, ebx: uint.MaxValue), world.Rbx, world.Rcx));
        Assert.Equal(19u, world.Call(20));
        Assert.Equal((1u << 3) | (1u << 1), world.Call(68));
        byte[] uuid = new byte[16];
        BinaryPrimitives.WriteUInt32LittleEndian(uuid, world.Call(19));
        BinaryPrimitives.WriteUInt32LittleEndian(uuid.AsSpan(4), (uint)world.Rbx);
        BinaryPrimitives.WriteUInt32LittleEndian(uuid.AsSpan(8), (uint)world.Rcx);
        BinaryPrimitives.WriteUInt32LittleEndian(uuid.AsSpan(12), (uint)world.Registers[2]);
        Assert.Equal("00112233445566778899aabbccddeeff", Convert.ToHexStringLower(uuid));
    }

    [Fact]
    public void TheTime()
    {
        world.Clock.Advance(2500);
        uint seconds = (uint)(world.Clock.Epoch.ToUnixTimeSeconds() + 2);
        Assert.Equal((seconds, 500_000UL), (world.Call(23), world.Rbx));
        Assert.Equal((World.BackdoorMagic, 0UL, seconds, 500_000UL), (world.Call(46), world.Registers[6], (uint)world.Registers[2], world.Rbx));
        Assert.Equal((World.BackdoorMagic, 0UL), (world.Call(55, edi: 99), world.Registers[7]));
    }

    /// <summary>Nothing but EAX changes, and without the magic number nothing at all.</summary>
    [Theory]
    [InlineData(0xFFF)]
    [InlineData(0)]
    [InlineData(2)]
    [InlineData(101)]
    [InlineData(91)]
    public void WhatItDoesNotKnow(uint command)
    {
        Assert.Equal(uint.MaxValue, world.Call(command, ebx: 0xDEAD_BEEF));
        Assert.Equal((0xDEAD_BEEFUL, (ulong)command), (world.Rbx, world.Rcx));
        world.Registers[0] = 0x1234;
        Assert.False(world.Vcpu.Call(VmwareBackdoor.Port, 0, world.Registers));
        Assert.Equal(0x1234UL, world.Registers[0]);
    }

    [Fact]
    public void Counters()
    {
        world.Clock.Advance(3);
        foreach ((uint index, ulong value) in (ReadOnlySpan<(uint, ulong)>)[(0x10000, 15_000_000), (0x10001, 3_000_000), (0x10002, 3_000_000), (0x10003, 15_000_000)])
            Assert.Equal((true, value), (world.Vcpu.ReadPseudoCounter(index, out ulong got), got));
        foreach (uint index in (uint[])[0, 0xFFFF, 0x10004, 0x4000_0000, uint.MaxValue])
            Assert.False(world.Vcpu.ReadPseudoCounter(index, out _));
    }

    /// <summary>The host's figure, from when the guest asks for it, in ticks of its counter; through a snapshot it goes on from there.</summary>
    [Fact]
    public void StolenTime()
    {
        const uint steal = 91, address = 0x4000;
        TimeSpan waited = TimeSpan.FromSeconds(4);
        using World host = new(wait: thread => thread == 7 ? waited : null);
        Assert.Equal(uint.MaxValue, host.Call(steal, privilege: 3, edi: 1));
        Assert.Equal((0u, 1u), (host.Call(steal, privilege: 0, edi: 1), host.Call(steal, privilege: 0, edi: address)));
        host.Clock.Advance(50);
        Assert.Equal(0UL, host.Memory.Read<ulong>(new GuestAddress(address)));
        waited += TimeSpan.FromMilliseconds(2);
        host.Clock.Advance(50);
        Assert.Equal(10_000_000UL, host.Memory.Read<ulong>(new GuestAddress(address)));
        VmwareVcpuSavedState state = host.Vcpu.Save();
        TimeSpan elsewhere = TimeSpan.FromSeconds(1000);
        using World other = new(wait: _ => elsewhere);
        other.Vcpu.Restore(state);
        other.Clock.Advance(50);
        elsewhere += TimeSpan.FromMilliseconds(1);
        other.Clock.Advance(50);
        Assert.Equal(15_000_000UL, other.Memory.Read<ulong>(new GuestAddress(address)));
        // Off: no word is written any more.
        Assert.Equal(0u, other.Call(steal, privilege: 0, edi: 1));
        elsewhere += TimeSpan.FromSeconds(1);
        other.Clock.Advance(50);
        Assert.Equal(15_000_000UL, other.Memory.Read<ulong>(new GuestAddress(address)));
        // Not memory, not aligned.
        Assert.Equal((uint.MaxValue, uint.MaxValue, uint.MaxValue), (other.Call(steal, 0, edi: 17 << 20), other.Call(steal, 0, edi: 0x4008), other.Call(steal, 0, esi: 0xFFFF_FFFF, edi: 0xFFFF_FFC0)));
        // A host that does not say.
        Assert.Equal(uint.MaxValue, world.Call(steal, privilege: 0, edi: 1));
    }
}
