using Aerostat.Devices;

namespace Aerostat.Kvm;

/// <summary>
/// Doorbells by event descriptors (KVM_IOEVENTFD): the kernel turns a write into a count, and one thread for the machine, made with the first doorbell, waits for
/// counts and calls the devices.
/// </summary>
internal sealed unsafe class KvmDoorbells : IDoorbells, IDisposable
{
    private readonly int machine;
    private readonly Lock gate = new();
    // Held while a device is called.
    private readonly Lock ringing = new();
    private readonly Dictionary<int, Doorbell> doorbells = [];
    private int poll = -1, stop = -1;
    private Thread? thread;
    private bool disposed;
    private long rings;

    public KvmDoorbells(int machine) => this.machine = machine;

    /// <summary>How many there are, and how often one rang.</summary>
    public (int Doorbells, long Rings) Counts
    {
        get
        {
            lock (gate)
                return (doorbells.Count, Volatile.Read(ref rings));
        }
    }

    private sealed class Doorbell(KvmDoorbells owner, int descriptor, KvmWriteDescriptor request, Action ring) : IDisposable
    {
        public int Descriptor => descriptor;

        public bool Gone;

        public void Ring()
        {
            if (!Gone && KvmCalls.ConsumeEvent(descriptor))
            {
                Interlocked.Increment(ref owner.rings);
                ring();
            }
        }

        public bool Assign()
        {
            KvmWriteDescriptor copy = request;
            return KvmCalls.Control(owner.machine, KvmIoctl.WriteDescriptor, &copy) >= 0;
        }

        public void Dispose() => owner.Remove(this);

        public void Release()
        {
            KvmWriteDescriptor copy = request;
            copy.Flags |= KvmWriteDescriptor.Deassign;
            _ = KvmCalls.Control(owner.machine, KvmIoctl.WriteDescriptor, &copy);
            // What was written before is not lost.
            Ring();
            Gone = true;
            KvmCalls.Close(descriptor);
        }
    }

    /// <inheritdoc/>
    public IDisposable? Attach(ulong address, int size, uint? match, Action ring)
    {
        lock (gate)
        {
            if (disposed || !Start())
                return null;
            int descriptor = KvmCalls.OpenEvent();
            if (descriptor < 0)
                return null;
            KvmWriteDescriptor request = new()
            {
                Address = address,
                Length = (uint)size,
                Descriptor = descriptor,
                Match = match ?? 0,
                Flags = match is null ? 0 : KvmWriteDescriptor.DataMatch,
            };
            Doorbell doorbell = new(this, descriptor, request, ring);
            if (!KvmCalls.PollAdd(poll, descriptor))
            {
                KvmCalls.Close(descriptor);
                return null;
            }
            if (!doorbell.Assign())
            {
                KvmCalls.Close(descriptor);
                return null;
            }
            doorbells.Add(descriptor, doorbell);
            return doorbell;
        }
    }

    /// <inheritdoc/>
    public void Drain()
    {
        Doorbell[] all;
        lock (gate)
            all = [.. doorbells.Values];
        lock (ringing)
            foreach (Doorbell doorbell in all)
                doorbell.Ring();
    }

    private void Remove(Doorbell doorbell)
    {
        lock (gate)
            if (!doorbells.Remove(doorbell.Descriptor))
                return;
        lock (ringing)
            doorbell.Release();
    }

    private bool Start()
    {
        if (thread is not null)
            return true;
        poll = KvmCalls.OpenPoll();
        stop = KvmCalls.OpenEvent();
        if (poll < 0 || stop < 0 || !KvmCalls.PollAdd(poll, stop))
            return false;
        thread = new Thread(Loop) { Name = "doorbells", IsBackground = true };
        thread.Start();
        return true;
    }

    private void Loop()
    {
        const int Most = 32;
        int* ready = stackalloc int[Most];
        while (true)
        {
            int count = KvmCalls.PollWait(poll, ready, Most);
            for (int i = 0; i < count; i++)
            {
                if (ready[i] == stop)
                    return;
                Doorbell? doorbell;
                lock (gate)
                    doorbell = doorbells.GetValueOrDefault(ready[i]);
                if (doorbell is null)
                    continue;
                lock (ringing)
                    doorbell.Ring();
            }
        }
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        Doorbell[] all;
        lock (gate)
        {
            if (disposed)
                return;
            disposed = true;
            all = [.. doorbells.Values];
            doorbells.Clear();
        }
        if (thread is not null)
        {
            KvmCalls.SignalEvent(stop);
            thread.Join();
        }
        foreach (Doorbell doorbell in all)
        {
            doorbell.Gone = true;
            doorbell.Release();
        }
        if (stop >= 0)
            KvmCalls.Close(stop);
        if (poll >= 0)
            KvmCalls.Close(poll);
    }
}
