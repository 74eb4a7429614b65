namespace Aerostat.Platform;

/// <summary>Armed timers, the earliest first; equal deadlines in the order of arming. Not thread-safe.</summary>
internal sealed class TimerHeap
{
    private VmTimer[] items = new VmTimer[16];
    private int count;

    public VmTimer? First => count == 0 ? null : items[0];

    /// <summary>Makes room, so that <see cref="Add"/> never allocates.</summary>
    public void EnsureCapacity(int timers)
    {
        if (timers > items.Length)
            Array.Resize(ref items, Math.Max(timers, items.Length * 2));
    }

    public void Add(VmTimer timer)
    {
        timer.HeapIndex = count;
        items[count++] = timer;
        Up(timer.HeapIndex);
    }

    public void Remove(VmTimer timer)
    {
        int index = timer.HeapIndex;
        timer.HeapIndex = -1;
        VmTimer last = items[--count];
        items[count] = null!;
        if (last == timer)
            return;
        items[index] = last;
        last.HeapIndex = index;
        Up(index);
        Down(last.HeapIndex);
    }

    private static bool Before(VmTimer a, VmTimer b) => a.Due < b.Due || (a.Due == b.Due && a.Sequence < b.Sequence);

    private void Up(int index)
    {
        while (index > 0)
        {
            int parent = (index - 1) / 2;
            if (!Before(items[index], items[parent]))
                return;
            Swap(index, parent);
            index = parent;
        }
    }

    private void Down(int index)
    {
        while (true)
        {
            int child = 2 * index + 1;
            if (child >= count)
                return;
            if (child + 1 < count && Before(items[child + 1], items[child]))
                child++;
            if (!Before(items[child], items[index]))
                return;
            Swap(index, child);
            index = child;
        }
    }

    private void Swap(int a, int b)
    {
        (items[a], items[b]) = (items[b], items[a]);
        items[a].HeapIndex = a;
        items[b].HeapIndex = b;
    }
}
