namespace Aerostat.Chipset;

/// <summary>A moment of the proleptic Gregorian calendar, as clock chips count it.</summary>
internal readonly record struct CivilTime(int Year, int Month, int Day, int Hour, int Minute, int Second)
{
    /// <summary>Sunday is 1.</summary>
    public int DayOfWeek => (int)(((Days(Year, Month, Day) + 4) % 7 + 7) % 7) + 1;

    /// <summary>Seconds since 1970-01-01 00:00.</summary>
    public long ToUnixSeconds() => Days(Year, Month, Day) * 86_400 + Hour * 3_600 + Minute * 60 + Second;

    /// <summary>From seconds since 1970-01-01 00:00.</summary>
    public static CivilTime FromUnixSeconds(long seconds)
    {
        long days = Math.DivRem(seconds, 86_400, out long rest);
        if (rest < 0)
        {
            rest += 86_400;
            days--;
        }
        // Years that begin in March put the leap day last; 400 of them have 146,097 days.
        days += 719_468;
        long era = (days >= 0 ? days : days - 146_096) / 146_097;
        long dayOfEra = days - era * 146_097;
        long yearOfEra = (dayOfEra - dayOfEra / 1_460 + dayOfEra / 36_524 - dayOfEra / 146_096) / 365;
        long dayOfYear = dayOfEra - (365 * yearOfEra + yearOfEra / 4 - yearOfEra / 100);
        long shifted = (5 * dayOfYear + 2) / 153;
        int day = (int)(dayOfYear - (153 * shifted + 2) / 5 + 1);
        int month = (int)(shifted < 10 ? shifted + 3 : shifted - 9);
        int year = (int)(yearOfEra + era * 400 + (month <= 2 ? 1 : 0));
        return new CivilTime(year, month, day, (int)(rest / 3_600), (int)(rest / 60 % 60), (int)(rest % 60));
    }

    private static long Days(int year, int month, int day)
    {
        long y = month <= 2 ? year - 1 : year;
        long era = (y >= 0 ? y : y - 399) / 400;
        long yearOfEra = y - era * 400;
        long dayOfYear = (153 * (month > 2 ? month - 3 : month + 9) + 2) / 5 + day - 1;
        long dayOfEra = yearOfEra * 365 + yearOfEra / 4 - yearOfEra / 100 + dayOfYear;
        return era * 146_097 + dayOfEra - 719_468;
    }
}
