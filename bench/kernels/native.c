// Runs kern.bin in this process: native FILE KERNEL N. The kernels are linked at 16 MiB and have their data behind them.
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

static double cpu_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

int main(int argc, char **argv)
{
    if (argc != 4)
        return 2;
    size_t size = 112 << 20;
    void *base = mmap((void *)0x1000000, size, PROT_READ | PROT_WRITE | PROT_EXEC,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE | MAP_NORESERVE, -1, 0);
    FILE *file = fopen(argv[1], "rb");
    if (base == MAP_FAILED || !file) {
        perror("native");
        return 1;
    }
    size_t read = fread(base, 1, size, file);
    fclose(file);
    if (read == 0)
        return 1;
    unsigned long (*entry)(unsigned long, unsigned long) = (void *)base;
    unsigned long kernel = strtoul(argv[2], 0, 10), n = strtoul(argv[3], 0, 10);
    double begin = cpu_seconds();
    unsigned long sum = entry(kernel, n);
    printf("k%lu n=%lu sum=%lx seconds=%.6f\n", kernel, n, sum, cpu_seconds() - begin);
    return 0;
}
