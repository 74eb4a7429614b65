using System.Diagnostics;
using System.Globalization;
using Aerostat.Memory;

namespace Aerostat.VMware.Tests;

/// <summary>
/// Hostile guests: seeded nonsense in all registers on all three ports. Every command to the balloon is also given to a model, of another make, which must come to
/// the same status and the same locked frames; nothing may throw, and nothing outside guest memory is touched (the hole of the memory map has no access
/// rights). AEROSTAT_FUZZ_SECONDS makes it run longer with other seeds.
/// </summary>
public sealed class HostileGuestTests
{
    private const int Guests = 20, Calls = 1500;
    private const ulong Frames = 21 << 8, HoleFirst = 16 << 8, HoleLast = (18 << 8) - 1;

    [Fact]
    public void NothingIsLost()
    {
        foreach (string line in CaseStore.Lines("calls"))
            Run(int.Parse(line, CultureInfo.InvariantCulture));
        for (int seed = 1000; seed < 1000 + Guests; seed++)
            Try(seed);
        if (double.TryParse(Environment.GetEnvironmentVariable("AEROSTAT_FUZZ_SECONDS"), CultureInfo.InvariantCulture, out double seconds))
        {
            long start = Stopwatch.GetTimestamp(), calls = 0;
            for (int seed = Random.Shared.Next(); Stopwatch.GetElapsedTime(start).TotalSeconds < seconds; seed = Random.Shared.Next(), calls += Calls)
                Try(seed);
            TestContext.Current.TestOutputHelper?.WriteLine($"{calls} calls");
        }
    }

    private static void Try(int seed)
    {
        try
        {
            Run(seed);
        }
        catch (Exception e)
        {
            Assert.Fail($"seed {seed}: {CaseStore.Save("calls", $"{seed}", e.Message)}\n{e}");
        }
    }

    private static void Run(int seed)
    {
        Random random = new(seed);
        using World world = new(wait: _ => TimeSpan.FromMilliseconds(seed & 0xFFFF));
        Model model = new() { Target = 4 * 256 };
        world.Balloon.SetTarget(model.Target << 12);
        List<(ulong Id, ulong High, ulong Low)> cookies = [];
        for (int i = 0; i < Calls; i++)
        {
            switch (random.Next(10))
            {
                case < 6:
                    Balloon(random, world, model);
                    break;
                case 6:
                    Backdoor(random, world, cookies);
                    break;
                case 7:
                    for (int r = 0; r < 16; r++)
                        world.Registers[r] = Odd(random);
                    if (random.Next(2) == 0)
                        world.Registers[0] = World.BackdoorMagic;
                    world.Vcpu.Transfer(VmwareBackdoor.MessagePort, random.Next(2) == 0, new byte[random.Next(70)], world.Registers);
                    break;
                case 8:
                    world.Vcpu.ReadPseudoCounter((uint)Odd(random), out _);
                    world.Clock.Advance(random.Next(100));
                    break;
                default:
                    if (random.Next(8) == 0)
                    {
                        model.Target = (ulong)random.Next(19 * 256);
                        world.Balloon.SetTarget(model.Target << 12);
                    }
                    else if (random.Next(20) == 0)
                    {
                        world.Balloon.RequestReset();
                        model.ResetWanted = true;
                    }
                    break;
            }
        }
        VmwareBalloonSavedState state = world.Balloon.Save();
        Assert.Equal(model.Locked.Order(), Enumerable.Range(0, state.Locked.Length / 2).SelectMany(r => Enumerable.Range(0, (int)state.Locked[(r * 2) + 1]).Select(k => state.Locked[r * 2] + (ulong)k)));
        Assert.Equal((ulong)model.Locked.Count << 12, world.Balloon.GetReport().ActualBytes);
        // It serves a driver that starts anew.
        Assert.Equal(0x0300_0000u, world.Command(0, 0x3E));
        Assert.Equal(0u, world.Command(2, 50));
        world.Tools.Restore(world.Tools.Save());
        world.Tools.Reset();
    }

    private static ulong Odd(Random random) => random.Next(8) switch
    {
        0 => 0,
        1 => ulong.MaxValue,
        2 => 1UL << random.Next(64),
        3 => (ulong)random.NextInt64(),
        4 => (ulong)random.Next(600),
        5 => World.BackdoorMagic,
        6 => ((ulong)random.Next(8) << 16) | 30,
        _ => (ulong)random.Next(),
    };

    private static ulong Frame(Random random) => random.Next(12) switch
    {
        0 => Odd(random),
        1 => (ulong)random.Next(12) * 512,
        2 => HoleFirst - 2 + (ulong)random.Next(4),
        _ => (ulong)random.Next((int)Frames + 20),
    };

    private static void Balloon(Random random, World world, Model model)
    {
        uint command = random.Next(30) == 0 ? (uint)Odd(random) : (uint)random.Next(1, 11);
        ulong first = Frame(random), second = Odd(random);
        if (command == 0 || random.Next(60) == 0)
            (command, first) = (0, random.Next(3) == 0 ? Odd(random) : 0x3E);
        ulong[] entries = [];
        if (command is >= 6 and <= 9 && random.Next(6) != 0)
        {
            first = 3;
            second = random.Next(8) == 0 ? (ulong)random.Next(500, 515) : (ulong)random.Next(1, 20);
            entries = [.. Enumerable.Range(0, (int)Math.Min(second, 512)).Select(_ => ((command >= 8 && random.Next(3) != 0 ? (ulong)random.Next(12) * 512 : Frame(random)) << 12) | (uint)random.Next(32))];
            for (int i = 0; i < entries.Length; i++)
                world.Memory.Write(new GuestAddress((3 << 12) + ((ulong)i * 8)), entries[i]);
        }
        else if (command is >= 6 and <= 9)
        {
            // Whatever is in the page that is named is read as entries.
            entries = model.IsMemory(first) && second is >= 1 and <= 512 ? [.. Enumerable.Range(0, (int)second).Select(i => world.Memory.Read<ulong>(new GuestAddress((first << 12) + ((ulong)i * 8))))] : [];
        }
        (uint status, uint[] each) = model.Serve(command, first, second, entries);
        Assert.Equal((command, status), (command, world.Command(command, first, second)));
        // A page that locks itself is written again afterwards.
        for (int i = 0; i < each.Length; i++)
            Assert.Equal((i, (entries[i] & ~0x1FUL) | each[i]), (i, world.Memory.Read<ulong>(new GuestAddress((first << 12) + ((ulong)i * 8)))));
    }

    private static void Backdoor(Random random, World world, List<(ulong Id, ulong High, ulong Low)> cookies)
    {
        for (int r = 0; r < 16; r++)
            world.Registers[r] = Odd(random);
        world.Registers[0] = random.Next(20) == 0 ? 0 : World.BackdoorMagic;
        world.Registers[1] = random.Next(3) == 0 ? (ulong)random.Next(110) : ((ulong)random.Next(8) << 16) | 30;
        bool open = (uint)world.Registers[1] == 30;
        if (open)
            world.Registers[3] = 0x8000_0000 | (random.Next(2) == 0 ? 0x4943_5052u : 0x4F4C_4354u);
        else if (cookies.Count > 0)
        {
            (ulong id, world.Registers[6], world.Registers[7]) = cookies[random.Next(cookies.Count)];
            world.Registers[2] = id << 16;
        }
        if (world.Vcpu.Call(VmwareBackdoor.Port, random.Next(4), world.Registers) && open && (world.Registers[1] >> 16 & 1) != 0)
            cookies.Add(((world.Registers[2] >> 16) & 0xFFFF, world.Registers[6], world.Registers[7]));
    }

    /// <summary>The rules of the channel once more, frame by frame.</summary>
    private sealed class Model
    {
        private ulong granted;

        public HashSet<ulong> Locked { get; } = [];

        public ulong Target { get; set; }

        public bool ResetWanted { get; set; }

        public bool IsMemory(ulong frame) => frame < Frames && frame is < HoleFirst or > HoleLast;

        public (uint Status, uint[] Each) Serve(uint command, ulong first, ulong second, ulong[] entries)
        {
            if (command == 0)
            {
                Locked.Clear();
                granted = (uint)first & 0x2E;
                ResetWanted = false;
                return ((granted & ~2UL) == 0 ? 0 : 0x0300_0000u, []);
            }
            if (ResetWanted && command != 10)
                return (7, []);
            ulong needed = command switch { 2 or 3 => 2, 6 or 7 => 4, 8 or 9 => 12, _ => 0 };
            if (command is not (1 or 2 or 3 or 4 or 6 or 7 or 8 or 9) || (granted & needed) != needed)
                return (1, []);
            if (command is 1 or 4)
                return (0, []);
            if (command is 2 or 3)
                return (One(first, 1, command == 2), []);
            if (second is 0 or > 512)
                return (uint.MaxValue, []);
            if (!IsMemory(first))
                return (2, []);
            return (0, [.. entries.Select(e => One(e >> 12, command >= 8 ? 512UL : 1, command is 6 or 8))]);
        }

        private uint One(ulong frame, ulong size, bool give)
        {
            if (frame >= Frames || frame % size != 0)
                return 2;
            ulong[] all = [.. Enumerable.Range(0, (int)size).Select(i => frame + (ulong)i)];
            if (!all.All(IsMemory))
                return 2;
            if (give && all.Any(Locked.Contains))
                return 3;
            if (!give && !all.All(Locked.Contains))
                return 4;
            if (give && (granted & 4) != 0 && (ulong)Locked.Count >= Target + (size > 1 ? 0 : 512UL))
                return 6;
            foreach (ulong one in all)
                _ = give ? Locked.Add(one) : Locked.Remove(one);
            return 0;
        }
    }
}
