// Runs the kernel named on the command line ("<kernel> <n>", behind the image's name if there is one) and prints what came of it.

typedef unsigned long u64;
typedef unsigned int u32;

static void out(int port, unsigned char value) { __asm__ volatile("outb %0, %w1" ::"a"(value), "d"(port)); }

static void print(const char *text)
{
    for (; *text; text++)
        out(0x3f8, *text);
}

static void print_number(u64 value, u32 base)
{
    char text[24], *p = text + sizeof(text);
    *--p = 0;
    do
        *--p = "0123456789abcdef"[value % base];
    while (value /= base);
    print(p);
}

static u64 time_stamp(void)
{
    u32 low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return (u64)high << 32 | low;
}

static const char *word(const char *p)
{
    while (*p && *p != ' ')
        p++;
    while (*p == ' ')
        p++;
    return p;
}

static u64 number(const char *p)
{
    u64 value = 0;
    for (; *p >= '0' && *p <= '9'; p++)
        value = value * 10 + (u64)(*p - '0');
    return value;
}

void main64(u32 information)
{
    const char *line = (const char *)(u64) * (u32 *)(u64)(information + 16);
    if (*line < '0' || *line > '9')
        line = word(line);
    u64 kernel = number(line), n = number(word(line));
    u64 begin = time_stamp();
    u64 sum = ((u64(*)(u64, u64))0x1000000)(kernel, n);
    u64 ticks = time_stamp() - begin;
    print("k");
    print_number(kernel, 10);
    print(" n=");
    print_number(n, 10);
    print(" sum=");
    print_number(sum, 16);
    print(" tsc=");
    print_number(ticks, 10);
    print("\n");
    out(0xf4, 0);
}
