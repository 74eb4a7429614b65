// Seven compute kernels: entry(kernel, n) answers a checksum, so that runs of the same bytes can be compared wherever they run.
// Freestanding, no red zone, baseline x86-64. What each leans on is said above it; see README.md.

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long u64;

#define NOINLINE __attribute__((noinline))

static u64 mix(u64 sum, u64 value)
{
    sum ^= value;
    sum *= 0xff51afd7ed558ccdUL;
    return sum ^ sum >> 29;
}

// Not every loader clears the memory behind the image.
static void clear(void *at, u64 size)
{
    for (u64 *p = at; size; size -= 8)
        *p++ = 0;
}

static u64 next_random(u64 *state)
{
    *state = *state * 6364136223846793005UL + 1442695040888963407UL;
    u64 x = *state ^ *state >> 31;
    return x * 0x9e3779b97f4a7c15UL >> 16;
}

// 1: integers and branches: heap sort, binary search tree, Levenshtein distance, a tokenizer ---------------------------------

#define KEYS 12000

static u32 keys[KEYS];
static struct leaf { struct leaf *left, *right; u32 key, hits; } leaves[KEYS];
static u8 line_a[600], line_b[600], source[8192];
static u32 row[601];

NOINLINE static void heap_sort(u32 *v, u32 count)
{
    u32 built = count / 2, end = count;
    for (;;) {
        u32 value;
        if (built > 0) {
            value = v[--built];
        } else {
            if (--end == 0)
                return;
            value = v[end];
            v[end] = v[0];
        }
        u32 hole = built;
        for (;;) {
            u32 child = 2 * hole + 1;
            if (child >= end)
                break;
            if (child + 1 < end && v[child + 1] > v[child])
                child++;
            if (v[child] <= value)
                break;
            v[hole] = v[child];
            hole = child;
        }
        v[hole] = value;
    }
}

NOINLINE static struct leaf *tree_insert(struct leaf **at, struct leaf *fresh)
{
    while (*at) {
        if ((*at)->key == fresh->key) {
            (*at)->hits++;
            return *at;
        }
        at = fresh->key < (*at)->key ? &(*at)->left : &(*at)->right;
    }
    return *at = fresh;
}

NOINLINE static u32 edit_distance(const u8 *a, u32 m, const u8 *b, u32 n)
{
    for (u32 j = 0; j <= n; j++)
        row[j] = j;
    for (u32 i = 1; i <= m; i++) {
        u32 diagonal = row[0];
        row[0] = i;
        for (u32 j = 1; j <= n; j++) {
            u32 best = diagonal + (a[i - 1] != b[j - 1]);
            if (row[j] + 1 < best)
                best = row[j] + 1;
            if (row[j - 1] + 1 < best)
                best = row[j - 1] + 1;
            diagonal = row[j];
            row[j] = best;
        }
    }
    return row[n];
}

NOINLINE static u64 tokenize(const u8 *p, u32 length)
{
    u64 sum = 0;
    for (u32 i = 0; i < length;) {
        u8 c = p[i];
        if (c == ' ') {
            i++;
        } else if (c >= '0' && c <= '9') {
            u64 value = 0;
            while (i < length && p[i] >= '0' && p[i] <= '9')
                value = value * 10 + (p[i++] - '0');
            sum = sum * 31 + value;
        } else if (c >= 'a' && c <= 'z') {
            u32 hash = 5381;
            while (i < length && ((p[i] >= 'a' && p[i] <= 'z') || p[i] == '_'))
                hash = hash * 33 ^ p[i++];
            sum = sum * 17 + hash;
        } else if (c == '"') {
            for (i++; i < length && p[i] != '"'; i++)
                sum += p[i];
            i++;
        } else {
            sum ^= (u64)c << (i & 31);
            i++;
        }
    }
    return sum;
}

static u64 integers(u64 n)
{
    static const u8 letters[64] = "abcdefghijklm_nopqrstuvw xyz 0123456789 (){}+-*/;,\"     aeiours";
    u64 seed = 1, sum = 0;
    for (u64 round = 0; round < n; round++) {
        struct leaf *root = 0;
        for (u32 i = 0; i < KEYS; i++)
            keys[i] = (u32)next_random(&seed);
        for (u32 i = 0; i < KEYS; i++) {
            leaves[i] = (struct leaf){ 0, 0, keys[i] & 0xffff, 1 };
            sum += tree_insert(&root, &leaves[i])->hits;
        }
        heap_sort(keys, KEYS);
        sum = mix(sum, keys[KEYS / 3]);
        for (u32 i = 0; i < sizeof(source); i++)
            source[i] = letters[next_random(&seed) & 63];
        for (u32 i = 0; i < 8; i++)
            sum = mix(sum, tokenize(source + i, sizeof(source) - 8));
        for (u32 i = 0; i < sizeof(line_a); i++) {
            line_a[i] = source[i] & 7;
            line_b[i] = source[i + 1000] & 7;
        }
        sum = mix(sum, edit_distance(line_a, sizeof(line_a), line_b, sizeof(line_b)));
    }
    return sum;
}

// 2: memory: random updates of 16 MiB, a chase through them, copies of words and bytes -----------------------------------------

#define CELLS (1u << 21)
#define BUFFER (1u << 20)

static u64 cells[CELLS];
static u64 buffer_a[BUFFER / 8], buffer_b[BUFFER / 8];

NOINLINE static void copy_words(u64 *to, const u64 *from, u64 count)
{
    for (u64 i = 0; i < count; i++)
        to[i] = from[i];
}

NOINLINE static void copy_bytes(u8 *to, const u8 *from, u64 count)
{
    for (u64 i = 0; i < count; i++) {
        to[i] = from[i];
        __asm__ volatile("" ::: "memory");
    }
}

static u64 memory(u64 n)
{
    u64 seed = 2, sum = 0;
    clear(cells, sizeof(cells));
    clear(buffer_a, sizeof(buffer_a));
    clear(buffer_b, sizeof(buffer_b));
    for (u64 round = 0; round < n; round++) {
        for (u32 i = 0; i < 1500000; i++) {
            u64 r = next_random(&seed);
            cells[r & (CELLS - 1)] += r ^ i;
        }
        u64 at = round;
        for (u32 i = 0; i < 500000; i++)
            at = (cells[at & (CELLS - 1)] >> 7) + i;
        sum = mix(sum, at);
        for (u32 i = 0; i < 8; i++) {
            copy_words(buffer_a, buffer_b, BUFFER / 8);
            buffer_a[i * 999] ^= sum;
            copy_words(buffer_b, buffer_a, BUFFER / 8);
        }
        copy_bytes((u8 *)buffer_a + 3, (u8 *)buffer_b, BUFFER - 8);
        sum = mix(sum, buffer_a[round & 1023]);
    }
    return sum;
}

// 3: calls: Ackermann's function, queens on a board, permutations -------------------------------------------------------------

NOINLINE static u32 ackermann(u32 m, u32 n)
{
    __asm__ volatile("");
    if (m == 0)
        return n + 1;
    return n == 0 ? ackermann(m - 1, 1) : ackermann(m - 1, ackermann(m, n - 1));
}

NOINLINE static u32 queens(u32 all, u32 columns, u32 left, u32 right)
{
    if (columns == all)
        return 1;
    u32 found = 0;
    for (u32 open = all & ~(columns | left | right); open; open &= open - 1) {
        u32 place = open & -open;
        found += queens(all, columns | place, (left | place) << 1, (right | place) >> 1);
    }
    return found;
}

NOINLINE static u64 permute(u8 *items, u32 count, u64 sum)
{
    if (count == 1)
        return sum * 33 + items[0] * 5 + items[1];
    for (u32 i = 0; i < count; i++) {
        sum = permute(items, count - 1, sum);
        u32 other = count & 1 ? 0 : i;
        u8 t = items[other];
        items[other] = items[count - 1];
        items[count - 1] = t;
    }
    return sum;
}

static u64 calls(u64 n)
{
    u8 items[8] = { 1, 2, 3, 4, 5, 6, 7, 8 };
    u64 sum = 0;
    for (u64 round = 0; round < n; round++) {
        sum = mix(sum, ackermann(2, 100 + (round & 3)));
        sum = mix(sum, queens(255, 0, 0, 0));
        sum = permute(items, 8, sum);
    }
    return sum;
}

// 4: indirect branches: a register machine with a jump table, calls through pointers -------------------------------------------

enum { LOADI, ADDR, SUBR, MULR, XORR, ANDI, SHRI, MOVE, FETCH, STORE, LOOP, SKIPZ, DONE };

static u64 cell_memory[64];

NOINLINE static u64 machine(const u32 *program, u64 argument)
{
    u64 r[8] = { 0, 0, 0, 0, 0, 0, 0, argument };
    for (const u32 *p = program;; p++) {
        u32 to = *p >> 8 & 7, from = *p >> 12 & 7, value = *p >> 16;
        switch (*p & 0xff) {
        case LOADI: r[to] = value; break;
        case ADDR: r[to] += r[from]; break;
        case SUBR: r[to] -= r[from]; break;
        case MULR: r[to] *= r[from]; break;
        case XORR: r[to] ^= r[from]; break;
        case ANDI: r[to] &= value; break;
        case SHRI: r[to] >>= value & 63; break;
        case MOVE: r[to] = r[from]; break;
        case FETCH: r[to] = cell_memory[r[from] & 63]; break;
        case STORE: cell_memory[r[from] & 63] = r[to]; break;
        case LOOP: if (--r[to]) p -= value; break;
        case SKIPZ: if (r[to] == 0) p += value; break;
        case DONE: return r[0];
        default: return ~0UL;
        }
    }
}

#define OP(op, to, from, value) ((op) | (to) << 8 | (from) << 12 | (value) << 16)

static const u32 program[] = {
    OP(LOADI, 1, 0, 50000), OP(LOADI, 2, 0, 0x9e37), OP(MOVE, 3, 7, 0),
    OP(MULR, 3, 2, 0), OP(ADDR, 3, 1, 0), OP(MOVE, 4, 3, 0), OP(SHRI, 4, 0, 13), OP(XORR, 3, 4, 0),
    OP(FETCH, 5, 3, 0), OP(ADDR, 5, 3, 0), OP(STORE, 5, 4, 0), OP(MOVE, 6, 5, 0), OP(ANDI, 6, 0, 3), OP(SKIPZ, 6, 0, 2),
    OP(SUBR, 0, 5, 0), OP(SHRI, 5, 0, 3), OP(XORR, 0, 5, 0), OP(LOOP, 1, 0, 15), OP(DONE, 0, 0, 0),
};

typedef u64 step(u64, u64);

NOINLINE static u64 step_add(u64 a, u64 b) { return a + b * 3; }
NOINLINE static u64 step_rotate(u64 a, u64 b) { return (a << 9 | a >> 55) ^ b; }
NOINLINE static u64 step_multiply(u64 a, u64 b) { return a * 0x2545f4914f6cdd1dUL + b; }
NOINLINE static u64 step_pick(u64 a, u64 b) { return a & 64 ? a - b : a ^ b; }

static step *volatile steps[4];

static u64 indirect(u64 n)
{
    u64 sum = 0;
    clear(cell_memory, sizeof(cell_memory));
    steps[0] = step_add;
    steps[1] = step_rotate;
    steps[2] = step_multiply;
    steps[3] = step_pick;
    for (u64 round = 0; round < n; round++) {
        for (u32 i = 0; i < 8; i++)
            sum = mix(sum, machine(program, round + i));
        for (u32 i = 0; i < 500000; i++)
            sum = steps[sum >> 11 & 3](sum, i);
    }
    return sum;
}

// 5: floating point: relaxation of a grid, Horner's scheme, an LU decomposition ----------------------------------------------

#define GRID 96

static double grid[GRID][GRID], other[GRID][GRID], matrix[GRID][GRID];

NOINLINE static void relax(double (*to)[GRID], double (*from)[GRID])
{
    for (u32 i = 1; i < GRID - 1; i++)
        for (u32 j = 1; j < GRID - 1; j++)
            to[i][j] = 0.2 * (from[i][j] + from[i - 1][j] + from[i + 1][j] + from[i][j - 1] + from[i][j + 1]);
}

NOINLINE static double horner(double x)
{
    static const double c[] = { 1.0, -0.5, 0.25, -0.125, 0.0625, 0.3, -0.7, 0.11, 0.9, -1.3, 0.01, 0.57 };
    double y = 0;
    for (u32 i = 0; i < sizeof(c) / sizeof(c[0]); i++)
        y = y * x + c[i];
    return y / (1 + x * x);
}

NOINLINE static double decompose(void)
{
    double product = 1;
    for (u32 k = 0; k < GRID; k++) {
        for (u32 i = k + 1; i < GRID; i++) {
            double f = matrix[i][k] /= matrix[k][k];
            for (u32 j = k + 1; j < GRID; j++)
                matrix[i][j] -= f * matrix[k][j];
        }
        product = product * 0.5 + matrix[k][k];
    }
    return product;
}

static u64 bits(double d)
{
    union { double d; u64 u; } x = { d };
    return x.u;
}

static u64 floating(u64 n)
{
    u64 seed = 5, sum = 0;
    for (u32 i = 0; i < GRID; i++)
        for (u32 j = 0; j < GRID; j++)
            grid[i][j] = other[i][j] = (double)(next_random(&seed) & 1023) / 64;
    for (u64 round = 0; round < n; round++) {
        for (u32 i = 0; i < 20; i++) {
            relax(other, grid);
            relax(grid, other);
        }
        double y = 0;
        for (u32 i = 0; i < 40000; i++)
            y += horner((double)i * 0.00001 + y * 0.0001);
        for (u32 i = 0; i < GRID; i++)
            for (u32 j = 0; j < GRID; j++)
                matrix[i][j] = grid[i][j] + (i == j ? 200 : (double)(i * j % 7));
        sum = mix(mix(sum, bits(y)), bits(decompose()));
        grid[round % GRID][7] += 1;
    }
    return sum;
}

// 6: integer vectors: four xorshift generators side by side, sums of differences, saturating blends -------------------------------

typedef u32 lanes __attribute__((vector_size(16)));
typedef u8 bytes __attribute__((vector_size(16)));

static lanes image[4096] __attribute__((aligned(64))), image_b[4096] __attribute__((aligned(64)));

NOINLINE static lanes generate(lanes *to, u32 count, lanes s)
{
    for (u32 i = 0; i < count; i++) {
        s ^= s << 13;
        s ^= s >> 17;
        s ^= s << 5;
        lanes t = s + (lanes){ 0x9e3779b9, 0x7f4a7c15, 0xbf58476d, 0x1ce4e5b9 };
        to[i] += __builtin_shuffle(t, (lanes){ 2, 3, 0, 1 }) ^ (t << 7 | t >> 25);
    }
    return s;
}

NOINLINE static lanes blend(lanes *a, const lanes *b, u32 count)
{
    lanes sum = { 0 };
    for (u32 i = 0; i < count; i++) {
        bytes x = (bytes)a[i], y = (bytes)b[i];
        bytes less = (bytes)(x < y), low = (x & less) | (y & ~less), apart = (x ^ y ^ low) - low;
        sum += (lanes)apart & 0x00ff00ff;
        a[i] = (lanes)((low & 0x7f) + (apart >> 1));
    }
    return sum;
}

static u64 vectors(u64 n)
{
    lanes s = { 1, 2, 3, 4 }, total = { 0 };
    clear(image, sizeof(image));
    clear(image_b, sizeof(image_b));
    for (u64 round = 0; round < n; round++) {
        s = generate(image, 4096, s);
        s = generate(image_b, 4096, s);
        total ^= blend(image, image_b, 4096) + s;
    }
    u64 sum = 0;
    for (u32 i = 0; i < 4; i++)
        sum = mix(sum, total[i]);
    return sum;
}

// 7: register pressure: BLAKE2s-like mixing of sixteen words, scalar -----------------------------------------------------------

static u32 block[16];

#define ROR(x, n) ((x) >> (n) | (x) << (32 - (n)))
#define QUARTER(a, b, c, d, x, y)   \
    a += b + (x); d = ROR(d ^ a, 16); \
    c += d; b = ROR(b ^ c, 12);       \
    a += b + (y); d = ROR(d ^ a, 8);  \
    c += d; b = ROR(b ^ c, 7);

NOINLINE static void compress(u32 *h, const u32 *m)
{
    u32 a = h[0], b = h[1], c = h[2], d = h[3], e = h[4], f = h[5], g = h[6], i = h[7];
    u32 j = 0x243f6a88, k = 0x85a308d3, l = 0x13198a2e, o = 0x03707344;
    for (u32 round = 0; round < 16; round++) {
        QUARTER(a, d, g, j, m[round & 15], m[(round + 5) & 15])
        QUARTER(b, e, i, k, m[(round * 3) & 15], m[(round * 3 + 7) & 15])
        QUARTER(c, f, a, l, m[(round * 5) & 15], m[(round * 5 + 2) & 15])
        QUARTER(g, d, b, o, m[(round * 7) & 15], m[(round * 7 + 11) & 15])
    }
    h[0] ^= a ^ j; h[1] ^= b ^ k; h[2] ^= c ^ l; h[3] ^= d ^ o;
    h[4] ^= e; h[5] ^= f; h[6] ^= g; h[7] ^= i;
}

static u64 scalars(u64 n)
{
    u32 h[8] = { 1, 2, 3, 4, 5, 6, 7, 8 };
    clear(block, sizeof(block));
    for (u64 round = 0; round < n; round++)
        for (u32 i = 0; i < 1000; i++) {
            block[i & 15] += h[i & 7] + i;
            compress(h, block);
        }
    u64 sum = 0;
    for (u32 i = 0; i < 8; i++)
        sum = mix(sum, h[i]);
    return sum;
}

__attribute__((section(".entry"))) u64 entry(u64 kernel, u64 n)
{
    switch (kernel) {
    case 1: return integers(n);
    case 2: return memory(n);
    case 3: return calls(n);
    case 4: return indirect(n);
    case 5: return floating(n);
    case 6: return vectors(n);
    case 7: return scalars(n);
    default: return 0;
    }
}
