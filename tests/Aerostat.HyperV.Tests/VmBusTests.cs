using System.Buffers.Binary;
using Aerostat.Devices;
using Aerostat.Memory;
using Aerostat.Virtio.Tests;

namespace Aerostat.HyperV.Tests;

/// <summary>Versions, offers, lists of pages, channels, rings.</summary>
public sealed class VmBusTests
{
    [Theory]
    [InlineData(0x5_0003u, 1)]
    [InlineData(0x4_0000u, 1)]
    [InlineData(0x3_0000u, 1)]
    [InlineData(0x2_0004u, 0)]
    [InlineData(0x5_0004u, 0)]
    [InlineData(0x6_0000u, 0)]
    [InlineData(0u, 0)]
    public void EveryContactIsAnswered(uint version, byte supported)
    {
        using GuestBus bus = new();
        byte[]? answer = bus.Contact(version);
        Assert.Equal((15u, supported, 1u), (GuestBus.Word(answer, 0), answer![8], GuestBus.Word(answer, 12)));
        Assert.Equal(supported != 0, bus.Server.Version is not null);
    }

    [Fact]
    public void AGuestGoesDownToAVersionThatBothSpeak()
    {
        using GuestBus bus = new(highest: new VmBusVersion(4, 1));
        uint[] offered = [0x5_0003, 0x5_0002, 0x5_0001, 0x5_0000, 0x4_0001];
        Assert.Equal(0x4_0001u, offered.First(v => bus.Contact(v)![8] == 1));
    }

    [Fact]
    public void OffersComeWhenTheyAreAskedFor()
    {
        using GuestBus bus = new();
        Assert.Equal(0UL, bus.Post(GuestBus.Message(3)));
        Assert.Null(bus.Receive());
        bus.Connect();
        Assert.Equal(bus.Components.All.Count, bus.Offers.Count);
        Assert.Equal(bus.Offers.Count, bus.Offers.Values.Distinct().Count());
        Assert.All(bus.Offers.Values, id => Assert.InRange(id, 1u, 2047u));
    }

    [Fact]
    public void EveryRequestIsAnsweredEvenIfItMakesNoSense()
    {
        using GuestBus bus = new();
        bus.Connect();
        uint relId = bus.Offers.Values.First();
        // A list outside memory, one for a channel that is not there, an opening without a list, a modification of a closed channel.
        bus.MakeList(relId, first: 1UL << 40);
        Assert.NotEqual(0u, GuestBus.Word(bus.Receive(), 16));
        bus.MakeList(2000);
        Assert.NotEqual(0u, GuestBus.Word(bus.Receive(), 16));
        bus.Post(GuestBus.Message(5, relId, 9, 0xBAD, 0, 4, 0));
        byte[]? opened = bus.Receive();
        Assert.Equal((6u, 9u, true), (GuestBus.Word(opened, 0), GuestBus.Word(opened, 12), GuestBus.Word(opened, 16) != 0));
        bus.Post(GuestBus.Message(22, relId, 0));
        Assert.Equal(24u, GuestBus.Word(bus.Receive(), 0));
        bus.Post(GuestBus.Message(11, relId, 0xBAD));
        byte[]? tornDown = bus.Receive();
        Assert.Equal((12u, 0xBADu), (GuestBus.Word(tornDown, 0), GuestBus.Word(tornDown, 8)));
        bus.Post(GuestBus.Message(16));
        Assert.Equal(17u, GuestBus.Word(bus.Receive(), 0));
        Assert.Null(bus.Server.Version);
    }

    [Fact]
    public void ChannelsOpenCloseAndOpenAgain()
    {
        using GuestBus bus = new();
        bus.Connect();
        Heartbeat beat = bus.Components.Heartbeat;
        for (int i = 0; i < 3; i++)
        {
            GuestChannel channel = bus.Open(beat);
            Assert.Equal(ComponentState.Negotiating, beat.State);
            channel.Negotiate(3, 3);
            Assert.Equal(ComponentState.Ready, beat.State);
            byte[] request = channel.Receive()!;
            channel.Answer(request, change: a => a[28]++);
            Assert.Equal(i + 1, beat.Answers);
            bus.Post(GuestBus.Message(7, channel.RelId));
            Assert.Null(bus.Receive());
            Assert.Equal(ComponentState.Absent, beat.State);
        }
        Assert.Equal(0, bus.Server.Malformed);
    }

    [Fact]
    public void ANewContactForgetsEverything()
    {
        using GuestBus bus = new();
        bus.Connect();
        bus.Open(bus.Components.Heartbeat).Negotiate(3, 3);
        bus.Connect();
        Assert.Equal(ComponentState.Absent, bus.Components.Heartbeat.State);
        bus.Open(bus.Components.Heartbeat).Negotiate(3, 3);
        Assert.Equal(ComponentState.Ready, bus.Components.Heartbeat.State);
    }

    [Fact]
    public void AGuestThatTakesNoAnswersIsToldToWait()
    {
        using GuestBus bus = new();
        bus.Connect();
        int posted = 0;
        while (posted < 10_000 && bus.Post(GuestBus.Message(11, 1, 0xBAD)) == 0)
        {
            posted++;
            if (posted % 16 == 0)
                bus.Server.Process();
        }
        Assert.InRange(posted, 64, 1000);
        while (bus.Receive() is not null)
        {
        }
        Assert.Equal(0UL, bus.Post(GuestBus.Message(11, 1, 0xBAD)));
    }

    [Fact]
    public void AChannelTakenBackIsOfferedAgainUnderAnotherNumber()
    {
        using GuestBus bus = new();
        bus.Connect();
        Heartbeat beat = bus.Components.Heartbeat;
        GuestChannel channel = bus.Open(beat);
        bus.Server.Post(() => bus.Server.Rescind(beat));
        byte[]? rescind = bus.Receive();
        Assert.Equal((2u, channel.RelId), (GuestBus.Word(rescind, 0), GuestBus.Word(rescind, 8)));
        Assert.Equal(ComponentState.Absent, beat.State);
        bus.Post(GuestBus.Message(7, channel.RelId));
        bus.Post(GuestBus.Message(13, channel.RelId));
        bus.TakeOffers();
        Assert.NotEqual(channel.RelId, bus.Offers[beat.Offer.InterfaceType]);
        bus.Open(beat).Negotiate(3, 3);
        Assert.Equal(ComponentState.Ready, beat.State);
    }

    [Fact]
    public void StateGoesOnWhereItWas()
    {
        using GuestBus bus = new(), copy = new();
        bus.Connect();
        GuestChannel channel = bus.Open(bus.Components.Heartbeat);
        channel.Negotiate(3, 3);
        VmBusSavedState saved = bus.Server.Save();
        byte[] pages = new byte[0x10000];
        bus.Fixture.Memory.TryRead(new(channel.Rings), pages);
        copy.Fixture.Memory.TryWrite(new(channel.Rings), pages);
        copy.Server.Restore(saved);
        Assert.Equal((ComponentState.Ready, new VmBusVersion(5, 3)), (copy.Components.Heartbeat.State, copy.Server.Version));
        GuestChannel there = new(copy, channel.RelId, channel.Rings, 4);
        Assert.NotNull(there.Receive());
        copy.Server.Resume();
        byte[] beat = Assert.IsType<byte[]>(there.Receive());
        there.Answer(beat, change: a => BinaryPrimitives.WriteUInt64LittleEndian(a.AsSpan(28), BinaryPrimitives.ReadUInt64LittleEndian(a.AsSpan(28)) + 1));
        Assert.Equal(1, copy.Components.Heartbeat.Answers);
        Assert.Throws<State.SavedStateException>(() => copy.Server.Restore(saved with { Channels = saved.Channels[1..] }));
    }

    [Fact]
    public void TheClockIsSetOnceThenSampledAndSetAgainAfterAPause()
    {
        using GuestBus bus = new();
        bus.Connect();
        GuestChannel channel = bus.Open(bus.Components.TimeSynchronization);
        channel.Negotiate(3, 4);
        byte[] first = channel.Receive()!;
        Assert.Equal((1, bus.Fixture.Time.GetUtcNow().ToFileTime()), (first[28 + 16], BinaryPrimitives.ReadInt64LittleEndian(first.AsSpan(28))));
        bus.Fixture.Time.Advance(TimeSpan.FromSeconds(5.1));
        Assert.Equal(2, channel.Receive()![28 + 16]);
        bus.Server.Resume();
        Assert.Equal(1, channel.Receive()![28 + 16]);
    }

    [Fact]
    public void ThreadsThatWriteAndReadALittleRingLoseNothing()
    {
        using PartitionFixture f = new();
        Gpadl pages = new(f.Memory, 1, 1, 2);
        Assert.True(pages.Add(0x400) && pages.Add(0x401));
        OutgoingRing writer = new(pages, 0, 2);
        IncomingRing reader = new(pages, 0, 2);
        const int packets = 200_000;
        using SemaphoreSlim toReader = new(0), toWriter = new(0);
        Exception? failure = null;
        Thread producer = new(() =>
        {
            try
            {
                byte[] data = new byte[512];
                Random random = new(7);
                for (int i = 0; i < packets;)
                {
                    int length = 8 + random.Next(500);
                    BinaryPrimitives.WriteInt32LittleEndian(data, i);
                    BinaryPrimitives.WriteInt32LittleEndian(data.AsSpan(4), length);
                    data[length - 1] = length > 8 ? (byte)i : data[length - 1];
                    while (true)
                    {
                        RingWrite result = writer.TryWrite(6, (ulong)i, data.AsSpan(0, length));
                        if (result == RingWrite.DoneAndSignal)
                            toReader.Release();
                        if (result is RingWrite.Done or RingWrite.DoneAndSignal)
                            break;
                        if (result != RingWrite.Full)
                            throw new InvalidOperationException($"{result}");
                        if (!toWriter.Wait(TimeSpan.FromSeconds(60)))
                            throw new TimeoutException($"nobody told the writer of room for packet {i}");
                    }
                    i++;
                }
            }
            catch (Exception e)
            {
                failure = e;
            }
        });
        producer.Start();
        byte[] buffer = new byte[1024];
        int seen = 0;
        while (seen < packets && failure is null)
        {
            Assert.True(toReader.Wait(TimeSpan.FromSeconds(60), TestContext.Current.CancellationToken), $"nobody told the reader of packet {seen}: {failure}");
            reader.Mask();
            do
            {
                while (reader.TryRead(buffer, out PacketHead head, out int length, out bool wakes) is var result && result != RingRead.Empty)
                {
                    Assert.Equal(RingRead.Packet, result);
                    int number = BinaryPrimitives.ReadInt32LittleEndian(buffer), real = BinaryPrimitives.ReadInt32LittleEndian(buffer.AsSpan(4));
                    Assert.Equal((seen, (ulong)seen, (real + 7) & ~7), (number, head.Transaction, length));
                    if (real > 8)
                        Assert.Equal((byte)number, buffer[real - 1]);
                    if (wakes)
                        toWriter.Release();
                    seen++;
                }
            }
            while (reader.Unmask());
        }
        producer.Join();
        Assert.Null(failure);
        Assert.Equal(packets, seen);
    }

    [Fact]
    public void NothingThatAGuestWritesIntoRingsOrMessagesThrows()
    {
        int seed = int.TryParse(Environment.GetEnvironmentVariable("AEROSTAT_SEED"), out int given) ? given : 20261121;
        int rounds = int.TryParse(Environment.GetEnvironmentVariable("AEROSTAT_FUZZ_SECONDS"), out int seconds) && seconds > 0 ? seconds * 400 : 300;
        Random random = new(seed);
        for (int round = 0; round < rounds; round++)
        {
            using GuestBus bus = new(balloon: new DynamicMemoryOptions { TargetBytes = 1 << 20 });
            using MemoryDisk disk = new(1 << 20);
            StorageController storage = new([new StorageDisk("disk0", disk, "")], bus.Fixture.Memory, e => throw new InvalidOperationException("the controller failed", e));
            bus.Server.Add(storage);
            bus.Connect();
            List<GuestChannel> channels = [bus.Open(bus.Balloon!), bus.Open(storage)];
            foreach (IntegrationComponent component in bus.Components.All)
            {
                GuestChannel channel = bus.Open(component);
                channel.Negotiate(3, component is VolumeSnapshots ? 5 : component is KeyValueExchange or TimeSynchronization ? 4 : component is FileCopy ? 1 : 3);
                channels.Add(channel);
            }
            Task freeze = bus.Components.Volumes.FreezeAsync(new FreezeOptions());
            for (int i = 0; i < 60; i++)
            {
                GuestChannel channel = channels[random.Next(channels.Count)];
                switch (random.Next(8))
                {
                    case 0:
                        byte[] message = new byte[random.Next(8, 240)];
                        random.NextBytes(message);
                        BinaryPrimitives.WriteUInt32LittleEndian(message, (uint)random.Next(30));
                        for (int at = 8; at + 4 <= message.Length; at += 4)
                        {
                            if (random.Next(2) == 0)
                                BinaryPrimitives.WriteUInt32LittleEndian(message.AsSpan(at), (uint)random.Next(12));
                        }
                        bus.Post(message, random.Next(4) == 0 ? 4u : 1u);
                        bus.Receive();
                        break;
                    case 1:
                        bus.Fixture.Memory.Write(new(channel.Rings + ((ulong)random.Next(8) * 4096) + (uint)(random.Next(5) * 4)), random.Next(2) == 0 ? (uint)random.Next() : (uint)random.Next(3072) * 4);
                        channel.Signal();
                        break;
                    case 2:
                        byte[] noise = new byte[random.Next(200)];
                        random.NextBytes(noise);
                        try
                        {
                            channel.Send(noise, (ushort)random.Next(12));
                        }
                        catch (ArgumentOutOfRangeException)
                        {
                            // The guest's own rings are broken, so that this guest cannot write to them.
                        }
                        break;
                    case 3:
                        bus.Fixture.Memory.Write(new(channel.Rings + 4096 + ((ulong)random.Next(1536) * 8)), (ulong)random.NextInt64());
                        channel.Signal();
                        break;
                    case 4:
                        bus.Fixture.Time.Advance(TimeSpan.FromMilliseconds(random.Next(4000)));
                        bus.Server.Process();
                        break;
                    default:
                        try
                        {
                            if (channel.Receive() is { Length: >= 28 } request)
                                channel.Answer(request, random.Next(3) == 0 ? (uint)random.Next() : 0, a => a[random.Next(a.Length)] ^= (byte)(random.Next(2) * random.Next(256)));
                        }
                        catch (ArgumentOutOfRangeException)
                        {
                        }
                        break;
                }
            }
            bus.Server.Save();
            bus.Server.Reset();
            bus.Server.Process();
            Assert.Equal(FreezePhase.Idle, bus.Components.Volumes.Phase);
            Assert.True(freeze.IsCompleted || freeze.Status == TaskStatus.WaitingForActivation);
            _ = freeze.Exception;
        }
    }
}
