namespace Aerostat.Cpu;

/// <content>
/// Countdowns. Blocks that are no loops by themselves begin without slots (<see cref="CheckSite"/>) and count how often they run; so does, for a while,
/// what is made of those that run often, to find out which slots pay.
/// </content>
internal sealed unsafe partial class BlockTranslator
{
    /// <summary>At a block's entry, its first exit: counts down and leaves at zero. Answers the countdown's number, 0: there is none.</summary>
    private int EmitCountdown()
    {
        if (ungrouped || crossing || HotThreshold == 0 || temperature is Temperature.Hot or Temperature.Settled || (loops && temperature == Temperature.Warm) || !Accesses())
            return 0;
        int number = cache.AddCountdown();
        if (number == 0)
            return 0;
        cache.Countdown(number) = temperature == Temperature.Warm ? HotThreshold : Trial;
        int record = cache.AddRecord(new ExitRecord { Kind = ExitKind.Countdown, Rip = linear }), offset = Interpreter.CountdownsOffset + (number * sizeof(int));
        nint site;
        if (live[0] == 0)
        {
            a.RM(0x83, 5, Host.None, Host.None, 0, offset, wide: false, gs: true);
            a.Byte(1);
            site = a.Jcc(Condition.E);
        }
        else
        {
            a.Move(Host.R11, Host.Rcx);
            a.LoadState(Host.Rcx, offset, wide: false);
            a.Lea(Host.Rcx, Host.Rcx, Host.None, 0, -1, wide: false);
            a.StoreState(offset, Host.Rcx, wide: false);
            // jrcxz over mov rcx, r11; jmp over the way out
            a.Byte(0xE3);
            a.Byte(3 + 2);
            a.Move(Host.Rcx, Host.R11);
            a.Byte(0xEB);
            a.Byte(3 + 5);
            a.Move(Host.Rcx, Host.R11);
            site = a.Jmp();
        }
        cold.Add(new Cold { Kind = ColdKind.Leave, Site = site, Record = record });
        return number;
    }

    /// <summary>From now on a block does not count.</summary>
    public void EndCountdown(TranslatedBlock* block, Temperature temperature)
    {
        cache.Rewrite(a, block->Entry, block->CountdownBytes);
        a.NoOperations(block->CountdownBytes);
        cache.MoveEntry(block, block->Entry + block->CountdownBytes);
        block->Temperature = temperature;
        block->Countdown = 0;
    }

    // Whether there is a check that a slot would make cheaper.
    private bool Accesses()
    {
        for (int k = 0; k < count; k++)
            if ((uses[k].Present && uses[k].Role != 2) || uses[k].SpoilsPointer)
                return true;
        return false;
    }
}
