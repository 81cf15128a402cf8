// The CPU's hot loops, with a plain C interface for ctypes. See cpu.py for how it is built.
//
// Everything rests on one matrix product over "dwords". A dword is what one lane multiplies and
// adds up in one instruction: one float, two bfloat16 or four int8. `micro` keeps a tile of results
// in registers; attention and linear layers only differ in how they lay out what it reads.
//
// Vectors are GCC's own (16 lanes of 32 bits), so this compiles for any CPU; bfloat16 products fall
// back to floats where the CPU has no instruction for them. No -ffast-math: NaN has to stay NaN.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>
#ifdef __AVX512F__
#include <immintrin.h>
#endif
#include <omp.h>

typedef float F16 __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t I16 __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint16_t U16 __attribute__((vector_size(32), aligned(2), may_alias));
struct bf16 { uint16_t bits; };
static constexpr long LANES = 16;
static constexpr long PANEL = 4 * LANES;  // columns that are computed together
static constexpr float INF = std::numeric_limits<float>::infinity();
static constexpr long LINE = 64;  // bytes

#ifdef __AVX512F__
static constexpr int MR = 6, NR = 4;  // 24 sums, 4 columns and a broadcast fill 32 registers
#else
static constexpr int MR = 6, NR = 1;
#endif

static inline long round_up(long n, long step) { return (n + step - 1) / step * step; }

// ---- Elements: 16 of them from or to memory ----

static inline I16 widen(const bf16 *p) {
#ifdef __AVX512F__  // which GCC 12 does not find for convertvector
    return (I16)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
#else
    return __builtin_convertvector(*(const U16 *)p, I16);
#endif
}
static inline F16 load(const float *p) { return *(const F16 *)p; }
static inline F16 load(const bf16 *p) { return (F16)(widen(p) << 16); }
static inline void store(float *p, F16 x) { *(F16 *)p = x; }
static inline void store(bf16 *p, F16 x) {  // to nearest even; NaN keeps its upper half
    I16 bits = (I16)x;
    I16 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    *(U16 *)p = __builtin_convertvector(x == x ? rounded : (bits >> 16) | 0x40, U16);
}
template <class T> static inline float to_float(T x);
template <> inline float to_float(float x) { return x; }
template <> inline float to_float(bf16 x) {
    uint32_t bits = (uint32_t)x.bits << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}
template <class Join> static inline float reduce(F16 x, Join join) {
    const I16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    for (int half = 8; half > 0; half /= 2) x = join(x, __builtin_shuffle(x, lane + half));
    return x[0];
}
static inline F16 larger(F16 a, F16 b) { return a > b ? a : b; }
static inline F16 sum(F16 a, F16 b) { return a + b; }

// e to the x for x up to 88, Cephes' polynomial: relative error 2e-7, exactly 0 below -87.
static inline F16 exp16(F16 x) {
    F16 n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;
    F16 r = x - n * 0.693359375f + n * 2.12194440e-4f;
    F16 p = ((((1.9875691500e-4f * r + 1.3981999507e-3f) * r + 8.3334519073e-3f) * r
              + 4.1665795894e-2f) * r + 1.6666665459e-1f) * r + 5.0000001201e-1f;
    F16 y = p * r * r + r + 1.0f;
    I16 power = (__builtin_convertvector(n, I16) + 127) << 23;
    return x < -87.0f ? F16{} : y * (F16)power;
}

// ---- The product: what a lane does with two dwords ----

struct Floats {
    typedef F16 Sum;
    static constexpr long PER_DWORD = 1;
    static inline F16 add_product(F16 sum, I16 a, I16 b) { return sum + (F16)a * (F16)b; }
    template <class T> static inline I16 dwords(const T *p) { return (I16)load(p); }
    static inline I16 pack(F16 x, F16) { return (I16)x; }
    template <class T> static inline I16 pair_rows(const T *row, const T *) {
        return (I16)load(row);
    }
};

#ifdef __AVX512BF16__
struct Pairs {
    typedef F16 Sum;
    static constexpr long PER_DWORD = 2;
    static inline F16 add_product(F16 sum, I16 a, I16 b) {
        return (F16)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
    }
    static inline I16 dwords(const bf16 *p) { return *(const I16 *)p; }
    static inline I16 pack(F16 low, F16 high) {
        return (I16)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
    }
    static inline I16 pair_rows(const bf16 *row, const bf16 *next) {
        return widen(row) | widen(next) << 16;
    }
};
#else
typedef Floats Pairs;
#endif

#ifdef __AVX512VNNI__
struct Quads {  // unsigned a, signed b
    typedef I16 Sum;
    static inline I16 add_product(I16 sum, I16 a, I16 b) {
        return (I16)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
    }
};
#endif

// One of these is where the time goes. Strides and depth are in dwords.
struct Product {
    const int32_t *a, *b;  // [rows, depth] and [depth, columns]
    int32_t *c;            // [rows, columns]: the product is added to it, or replaces it if `fresh`
    long a_stride, b_stride, c_stride, depth;
    bool fresh;
    const int32_t *soon = nullptr;  // memory that is wanted next, PANEL dwords for each of depth
};

// Fetches LINES cache lines of `soon` in each step of depth.
template <class Op, int M, int N, int LINES> static void micro(Product p) {
    typename Op::Sum sums[M][N];
#pragma GCC unroll 16
    for (int m = 0; m < M; m++)
#pragma GCC unroll 8
        for (int n = 0; n < N; n++)
            sums[m][n] = p.fresh ? typename Op::Sum{}
                                 : *(typename Op::Sum *)(p.c + m * p.c_stride + n * LANES);
    for (long k = 0; k < p.depth; k++) {
        I16 columns[N];
#pragma GCC unroll 8
        for (int n = 0; n < N; n++)
            columns[n] = *(const I16 *)(p.b + k * p.b_stride + n * LANES);
#pragma GCC unroll 8
        for (int line = 0; line < LINES; line++)
            __builtin_prefetch(p.soon + (k * LINES + line) * LANES, 0, 2);
#pragma GCC unroll 16
        for (int m = 0; m < M; m++) {
            I16 row = I16{} + p.a[m * p.a_stride + k];
#pragma GCC unroll 8
            for (int n = 0; n < N; n++)
                sums[m][n] = Op::add_product(sums[m][n], row, columns[n]);
        }
    }
#pragma GCC unroll 16
    for (int m = 0; m < M; m++)
#pragma GCC unroll 8
        for (int n = 0; n < N; n++)
            *(typename Op::Sum *)(p.c + m * p.c_stride + n * LANES) = sums[m][n];
}

template <class Op, int N, int LINES, int LEAST, int M>
static void some_rows(const Product &p, long rows) {
    if constexpr (M >= LEAST) {
        if (rows == M) return micro<Op, M, N, LINES>(p);
        some_rows<Op, N, LINES, LEAST, M - 1>(p, rows);
    }
}

// In tiles of N vectors and at most M rows, the last of LEAST rows or more. Each fetches its part of
// what is wanted next, so that memory is read all the time and not only by the first tile. Where
// there is only one, the CPU's own prefetching is faster.
template <class Op, int M, int N, int LEAST>
static void multiply_tiles(const Product &whole, long rows, long columns) {
    const long tiles = (rows + M - 1) / M * (columns / (N * LANES));
    const long share = tiles < 4 ? 2 : 1;  // of a panel's lines
    long left = whole.soon && tiles > 1 ? PANEL / LANES : 0;
    for (long n = 0, width; n < columns; n += width * LANES) {
        width = columns - n >= N * LANES ? N : 1;
        for (long m = 0; m < rows; m += M) {
            Product part = whole;
            part.a += m * whole.a_stride, part.b += n, part.c += m * whole.c_stride + n;
            long some = std::min<long>(M, rows - m), lines = std::min(left, share);
            part.soon += (PANEL / LANES - left) * LANES * whole.depth, left -= lines;
            if (width != N) some_rows<Op, 1, 0, LEAST, M>(part, some);
            else if (lines == 0) some_rows<Op, N, 0, LEAST, M>(part, some);
            else if (LEAST == 1 && lines == 1) some_rows<Op, N, 1, 1, MR>(part, some);
            else some_rows<Op, N, 2, LEAST, M>(part, some);
        }
    }
}

// The whole product, `columns` a multiple of LANES. High tiles read `b` once where low ones would
// twice, but pass twice over `a`.
template <class Op> static void multiply(const Product &whole, long rows, long columns) {
    if (NR > 1 && rows > MR && rows <= 2 * MR)
        multiply_tiles<Op, 2 * MR, std::max(NR / 2, 1), MR + 1>(whole, rows, columns);
    else
        multiply_tiles<Op, MR, NR, 1>(whole, rows, columns);
}

// ---- Paged attention ----

struct Attention {  // as in cpu.py; strides and sizes in elements
    const void *query, *key, *value;     // [T, heads, dim] by strides, the last dim dense
    void *keys, *values, *out;           // caches [blocks, KH, block_size, dim]; [T, H, v_dim]
    const int64_t *block_tables, *cu_seqlens, *context_lens;
    const int64_t *slot_blocks, *slot_offsets;
    const float *sinks;                  // [H] or null
    int64_t query_token, query_head, key_token, key_head, value_token, value_head;
    int64_t num_seqs, table_width, num_heads, num_kv_heads, block_size, k_dim, v_dim;
    int64_t window;                      // positions that a query sees; 0 for all
    int64_t num_threads, is_bf16;
    double scaling, softcap;             // softcap 0 for none
};

static constexpr long TILE_ROWS = 192;  // query rows (tokens times heads of the group) of a task
static constexpr long TILE_KEYS = 128;
static constexpr long FEW_ROWS = 4;     // or less: keys and values are used as they lie
static constexpr long FEW_KEYS = 32;
static constexpr long MIN_SPLIT = 512;  // keys: less is not worth a task of its own

struct Task {
    long seq, head, num_heads;   // of KV: several where rows are few, because theirs lie together
    long first_row, num_rows;    // of each head: row r is token r / G, head r % G of the group
    long first_key, end_key;
    long part;                   // where the unfinished result goes; -1 if it is all
    long rows() const { return num_heads * num_rows; }
};

template <class T> static void write_slots(const Attention &args) {
    long num_tokens = args.cu_seqlens[args.num_seqs];
#pragma omp for schedule(static)
    for (long t = 0; t < num_tokens; t++)
        for (long h = 0; h < args.num_kv_heads; h++) {
            long slot = (args.slot_blocks[t] * args.num_kv_heads + h) * args.block_size
                        + args.slot_offsets[t];
            memcpy((T *)args.keys + slot * args.k_dim,
                   (const T *)args.key + t * args.key_token + h * args.key_head,
                   args.k_dim * sizeof(T));
            const T *from = (const T *)args.value + t * args.value_token + h * args.value_head;
            T *to = (T *)args.values + slot * args.v_dim;
            // A masked slot has weight 0, and 0 * inf would reach the next owner of the block.
            constexpr float most = sizeof(T) == 4 ? 3.4028235e38f : 3.3895314e38f;
            for (long i = 0; i < args.v_dim; i += LANES) {
                F16 x = load(from + i);
                x = x == x ? x : F16{};
                x = x > most ? F16{} + most : x;
                store(to + i, x < -most ? F16{} - most : x);
            }
        }
}

// Where the cached rows of a tile's keys are: `stride` elements of its cache for each slot.
static void find_slots(const Attention &args, const Task &task, long first, long count,
                       int64_t *slots) {
    const int64_t *table = args.block_tables + task.seq * args.table_width;
    long block = first / args.block_size, offset = first % args.block_size;
    for (long i = 0; i < count; i++) {
        slots[i] = (table[block] * args.num_kv_heads + task.head) * args.block_size + offset;
        if (++offset == args.block_size) offset = 0, block++;
    }
    // Keys are read in full vectors; what a score beyond the last is does not matter.
    for (long i = count; i % LANES; i++) slots[i] = slots[count - 1];
}

template <class T> static inline void prefetch(const T *row, long dim) {
    for (long i = 0; i < dim; i += LINE / (long)sizeof(T)) __builtin_prefetch(row + i, 0, 2);
}

// Of two vectors, the lanes that change places across the diagonal when blocks of `step` do.
template <int step> struct Blocks {
    static constexpr I16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    static constexpr I16 low = (lane & step) ? lane - step + LANES : lane;
    static constexpr I16 high = (lane & step) ? lane + LANES : lane + step;
};

// A step of transposing 16 by 16 dwords in place.
template <int step> static inline void swap_blocks(I16 *rows) {
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++)
        if (!(i & step)) {
            I16 a = rows[i], b = rows[i + step];
            rows[i] = __builtin_shuffle(a, b, Blocks<step>::low);
            rows[i + step] = __builtin_shuffle(a, b, Blocks<step>::high);
        }
}

// A step of summing up each of 16 vectors: at the end lane i of the first is the sum of vector i.
template <int step> static inline void add_blocks(F16 *rows) {
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i += 2 * step)
        rows[i] = __builtin_shuffle(rows[i], rows[i + step], Blocks<step>::low)
                  + __builtin_shuffle(rows[i], rows[i + step], Blocks<step>::high);
}

template <class Op, class T>
static inline I16 dwords_within(const T *row, long dim, long start) {
    constexpr long step = LANES * Op::PER_DWORD;
    if (start + step <= dim) return Op::dwords(row + start);
    T padded[step] = {};
    memcpy(padded, row + start, (dim - start) * sizeof(T));
    return Op::dwords(padded);
}

// Working memory of a thread, kept from call to call: fresh pages cost more than their use.
enum Use { TILE, ROWS };
static int32_t *scratch(Use use, size_t num_dwords) {
    static thread_local std::vector<int32_t> memory[2];
    if (memory[use].size() < num_dwords) memory[use].resize(num_dwords);
    return memory[use].data();
}

// One thread's share of the work, a task at a time.
template <class Op, class T> struct Tile {
    const Attention &args;
    const long group, depth, width;  // heads per KV head; dwords of a key; v_dim
    int32_t *query, *keys, *values, *weights;
    float *scores, *sums;
    float best[TILE_ROWS], total[TILE_ROWS];
    int64_t memory[2][TILE_KEYS], *slots = memory[0], *next_slots = memory[1];

    explicit Tile(const Attention &args)
        : args(args), group(args.num_heads / args.num_kv_heads),
          depth(round_up(args.k_dim, LANES * Op::PER_DWORD) / Op::PER_DWORD), width(args.v_dim) {
        keys = scratch(TILE, TILE_KEYS * (depth + width) + TILE_ROWS * (depth + width + 2 * TILE_KEYS));
        values = keys + TILE_KEYS * depth;
        query = values + TILE_KEYS * width;
        sums = (float *)query + TILE_ROWS * depth;
        scores = sums + TILE_ROWS * width;
        weights = (int32_t *)scores + TILE_ROWS * TILE_KEYS;
    }

    long token(const Task &task, long row) const {  // within the sequence's new ones
        return (task.first_row + row % task.num_rows) / group;
    }
    long head(const Task &task, long row) const {
        return (task.head + row / task.num_rows) * group
               + (task.first_row + row % task.num_rows) % group;
    }
    long position(const Task &task, long row) const {
        long count = args.cu_seqlens[task.seq + 1] - args.cu_seqlens[task.seq];
        return args.context_lens[task.seq] - count + token(task, row);
    }

    void load_query(const Task &task) {
        for (long r = 0; r < task.rows(); r++) {
            const T *row = (const T *)args.query
                           + (args.cu_seqlens[task.seq] + token(task, r)) * args.query_token
                           + head(task, r) * args.query_head;
            for (long i = 0; i < depth; i += LANES)
                *(I16 *)(query + r * depth + i) =
                    dwords_within<Op>(row, args.k_dim, i * Op::PER_DWORD);
        }
    }

    // Keys as `[depth, TILE_KEYS]`, prefetching the values that will be wanted next.
    void load_keys(long count) {
        const T *cache = (const T *)args.keys, *coming = (const T *)args.values;
        const long dim = args.k_dim, depth = this->depth, width = this->width;
        for (long j = 0; j < count; j += LANES) {
            for (long i = j; i < std::min(j + LANES, count); i++)
                prefetch(coming + slots[i] * width, width);
            const T *from[LANES];
            for (long i = 0; i < LANES; i++) from[i] = cache + slots[j + i] * dim;
            for (long d = 0; d < depth; d += LANES) {
                I16 rows[LANES];
#pragma GCC unroll 16
                for (long i = 0; i < LANES; i++)
                    rows[i] = dwords_within<Op>(from[i], dim, d * Op::PER_DWORD);
                swap_blocks<1>(rows), swap_blocks<2>(rows), swap_blocks<4>(rows);
                swap_blocks<8>(rows);
                int32_t *to = keys + d * TILE_KEYS + j;
#pragma GCC unroll 16
                for (long i = 0; i < LANES; i++) *(I16 *)(to + i * TILE_KEYS) = rows[i];
            }
        }
    }

    // Values as `[keys / PER_DWORD, width]`, prefetching the keys of the next tile.
    void load_values(long count, long next_count) {
        static const T zeros[LANES] = {};
        const T *cache = (const T *)args.values, *coming = (const T *)args.keys;
        const long width = this->width, dim = args.k_dim;
        int32_t *to = values;
        for (long j = 0; j < count; j += Op::PER_DWORD) {
            for (long i = j; i < std::min(j + Op::PER_DWORD, next_count); i++)
                prefetch(coming + next_slots[i] * dim, dim);
            const T *row = cache + slots[j] * width;
            bool paired = j + 1 < count;
            const T *next = paired ? cache + slots[j + 1] * width : zeros;
            for (long i = 0; i < width; i += LANES, to += LANES)
                *(I16 *)to = Op::pair_rows(row + i, next + (paired ? i : 0));
        }
    }

    // For few rows laying out keys and values anew takes longer than using them as they are, and so
    // does waiting for memory: while a tile is computed the next is fetched. Sums are arrays of
    // constant size and index, or they would not stay in registers. `first_row` is the head's first
    // and `shift` the way from the slots of the task's first head to its own.
    template <int R> void score_few(long first_row, long shift, long count, long next_count) {
        static constexpr int TOGETHER = 4;  // keys
        const T *cache = (const T *)args.keys + shift * args.k_dim;
        for (long j = 0; j < count; j += LANES) {
            F16 sums[R][LANES];
#pragma GCC unroll 4
            for (int i = 0; i < LANES; i += TOGETHER) {
                const T *from[TOGETHER];
                for (int k = 0; k < TOGETHER; k++) {
                    from[k] = cache + slots[j + i + k] * args.k_dim;
                    if (j + i + k < next_count)
                        prefetch(cache + next_slots[j + i + k] * args.k_dim, args.k_dim);
                }
                dot_products<R, TOGETHER>(query + first_row * depth, from, sums, i);
            }
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                add_blocks<1>(sums[r]), add_blocks<2>(sums[r]), add_blocks<4>(sums[r]);
                add_blocks<8>(sums[r]);
                store(scores + (first_row + r) * TILE_KEYS + j, sums[r][0]);
            }
        }
    }

    // Lane by lane, of R query rows with K keys, to `to[row][first + key]`.
    template <int R, int K>
    inline void dot_products(const int32_t *query, const T *const (&keys)[K],
                             F16 (&to)[R][LANES], int first) {
        constexpr long step = LANES * Op::PER_DWORD;
        const long dim = args.k_dim, depth = this->depth;
        F16 sums[R][K] = {};
        auto add = [&](long start, auto part) {
#pragma GCC unroll 4
            for (int k = 0; k < K; k++) {
                I16 key = part(keys[k] + start);
#pragma GCC unroll 8
                for (int r = 0; r < R; r++) {
                    I16 row = *(const I16 *)(query + r * depth + start / Op::PER_DWORD);
                    sums[r][k] = Op::add_product(sums[r][k], row, key);
                }
            }
        };
        long start = 0;
        for (; start + step <= dim; start += step)
            add(start, [](const T *from) { return Op::dwords(from); });
        if (start < dim)
            add(start, [&](const T *from) { return dwords_within<Op>(from, dim - start, 0); });
#pragma GCC unroll 4
        for (int k = 0; k < K; k++)
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) to[r][first + k] = sums[r][k];
    }

    template <int R> void add_few(long first_row, long shift, long count, long next_count) {
        long column = 0;
        for (; column + PANEL <= width; column += PANEL, next_count = 0)
            add_columns<R, PANEL / LANES>(first_row, shift, column, count, next_count);
        for (; column < width; column += LANES, next_count = 0)
            add_columns<R, 1>(first_row, shift, column, count, next_count);
    }

    template <int R, int V>
    inline void add_columns(long first_row, long shift, long column, long count, long next_count) {
        static const T zeros[PANEL] = {};
        const T *cache = (const T *)args.values + shift * width + column;
        const int32_t *weights = this->weights + first_row * TILE_KEYS / Op::PER_DWORD;
        float *sums = this->sums + first_row * width + column;
        F16 added[R][V] = {};
        for (long j = 0; j < count; j += Op::PER_DWORD) {
            for (long i = j; i < std::min(j + Op::PER_DWORD, next_count); i++)
                prefetch(cache + next_slots[i] * width, width);
            const T *row = cache + slots[j] * width;
            const T *next = j + 1 < count ? cache + slots[j + 1] * width : zeros;
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) {
                I16 part = Op::pair_rows(row + v * LANES, next + v * LANES);
#pragma GCC unroll 8
                for (int r = 0; r < R; r++) {
                    I16 weight = I16{} + weights[(r * TILE_KEYS + j) / Op::PER_DWORD];
                    added[r][v] = Op::add_product(added[r][v], weight, part);
                }
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 4
            for (int v = 0; v < V; v++)
                store(sums + r * width + v * LANES,
                      load(sums + r * width + v * LANES) + added[r][v]);
    }

    template <int R> void attend_few(const Task &task, long first, long count, long next_count) {
        for (long h = 0; h < task.num_heads; h++) {
            score_few<R>(h * R, h * args.block_size, count, next_count);
            for (long r = h * R; r < (h + 1) * R; r++) softmax_row(task, r, first, count);
            add_few<R>(h * R, h * args.block_size, count, next_count);
        }
    }

    void attend_many(const Task &task, long first, long count, long next_count) {
        load_keys(count);
        multiply<Op>({query, keys, (int32_t *)scores, depth, TILE_KEYS, TILE_KEYS, depth, true},
                     task.num_rows, round_up(count, LANES));
        for (long r = 0; r < task.num_rows; r++) softmax_row(task, r, first, count);
        load_values(count, next_count);
        multiply<Op>({weights, values, (int32_t *)sums, TILE_KEYS / Op::PER_DWORD, width, width,
                      (count + Op::PER_DWORD - 1) / Op::PER_DWORD, false},
                     task.num_rows, width);
    }

    // A row of scores into weights relative to the best score so far.
    void softmax_row(const Task &task, long row, long first, long count) {
        float *score = scores + row * TILE_KEYS, factor = args.scaling;
        int32_t *weight = weights + row * TILE_KEYS / Op::PER_DWORD;
        long end = position(task, row) + 1 - first, padded = round_up(count, 2 * LANES);
        long begin = args.window ? std::max(0L, end - args.window) : 0;
        end = std::min(end, count);
        if (begin >= end) {
            memset(weight, 0, padded / Op::PER_DWORD * 4);
            return;
        }
        if (args.softcap) {
            for (long j = 0; j < padded; j += LANES) {
                F16 x = load(score + j) * (float)(2 * args.scaling / args.softcap);
                F16 e = exp16(x > 80.0f ? F16{} + 80.0f : x);
                store(score + j, 1 - 2 / (e + 1));
            }
            factor = args.softcap;
        }
        std::fill(score, score + begin, -INF);
        std::fill(score + end, score + padded, -INF);
        F16 most = load(score);
        for (long j = LANES; j < padded; j += LANES) most = larger(load(score + j), most);
        float highest = std::max(best[row], reduce(most, larger) * factor);
        F16 added = {};
        for (long j = 0; j < padded; j += 2 * LANES) {
            F16 low = exp16(load(score + j) * factor - highest);
            F16 high = exp16(load(score + j + LANES) * factor - highest);
            added += low + high;
            *(I16 *)(weight + j / Op::PER_DWORD) = Op::pack(low, high);
            if (Op::PER_DWORD == 1) *(I16 *)(weight + j + LANES) = (I16)high;
        }
        if (highest != best[row]) {
            float kept = std::exp(best[row] - highest);
            for (long i = 0; i < width; i += LANES)
                store(sums + row * width + i, load(sums + row * width + i) * kept);
            total[row] *= kept;
        }
        total[row] += reduce(added, sum);
        best[row] = highest;
    }

    // Leaves sum of weight times value in `sums`, of the weights in `total`, the scale in `best`.
    void attend(const Task &task) {
        const long rows = task.rows(), step = task.num_rows <= FEW_ROWS ? FEW_KEYS : TILE_KEYS;
        long count = std::min(step, task.end_key - task.first_key);
        std::fill(best, best + rows, -INF);
        std::fill(total, total + rows, 0.0f);
        std::fill(sums, sums + rows * width, 0.0f);
        load_query(task);
        find_slots(args, task, task.first_key, count, slots);
        for (long first = task.first_key; first < task.end_key; first += step) {
            long next_count = std::min(step, std::max(0L, task.end_key - first - count));
            find_slots(args, task, first + count, next_count, next_slots);
            switch (task.num_rows) {
            case 1: attend_few<1>(task, first, count, next_count); break;
            case 2: attend_few<2>(task, first, count, next_count); break;
            case 3: attend_few<3>(task, first, count, next_count); break;
            case 4: attend_few<4>(task, first, count, next_count); break;
            default: attend_many(task, first, count, next_count);
            }
            count = next_count;
            std::swap(slots, next_slots);
        }
    }

    // The sink is one more logit that has no value.
    void finish(const Task &task, long row, float *sum, float best, float total) {
        long head = this->head(task, row);
        float scale = 1;
        if (args.sinks) {
            float highest = std::max(best, args.sinks[head]);
            scale = std::exp(best - highest);
            total = total * scale + std::exp(args.sinks[head] - highest);
        }
        long token = args.cu_seqlens[task.seq] + this->token(task, row);
        T *out = (T *)args.out + (token * args.num_heads + head) * width;
        for (long i = 0; i < width; i += LANES)
            store(out + i, load(sum + i) * (scale / total));
    }
};

// How many KV heads a task of few rows has: all, unless that left threads idle.
static long heads_together(const Attention &args) {
    const long heads = args.num_kv_heads;
    auto fits = [&](long some) {
        return heads % some == 0 && some * FEW_ROWS <= TILE_ROWS
               && args.num_seqs * heads / some >= 2 * args.num_threads;
    };
    long together = heads;
    while (together > 1 && !fits(together)) together--;
    return together;
}

// The run cut into tasks; how many of them are parts of one.
static long plan(const Attention &args, std::vector<Task> &tasks) {
    long group = args.num_heads / args.num_kv_heads, work = 0, num_parts = 0;
    const long together = heads_together(args);
    std::vector<Task> whole;
    for (long s = 0; s < args.num_seqs; s++) {
        long count = args.cu_seqlens[s + 1] - args.cu_seqlens[s];
        long before = args.context_lens[s] - count;
        long num_tiles = std::max(1L, (count * group + TILE_ROWS - 1) / TILE_ROWS);
        long even = round_up((count * group + num_tiles - 1) / num_tiles, MR);
        for (long row = 0; row < count * group; row += even) {
            long num_rows = std::min(even, count * group - row);
            long end = before + (row + num_rows - 1) / group + 1;
            long first = args.window ? std::max(0L, before + row / group + 1 - args.window) : 0;
            long heads = num_rows <= FEW_ROWS ? together : 1;
            for (long h = 0; h < args.num_kv_heads; h += heads)
                whole.push_back({s, h, heads, row, num_rows, first, end, -1});
            work += (end - first) * args.num_kv_heads;
        }
    }
    // A task of more than its share of all work would leave threads idle at the end.
    long share = std::max(MIN_SPLIT, work / (4 * args.num_threads));
    for (Task task : whole) {
        long num_keys = task.end_key - task.first_key;
        bool split = args.num_threads > 1 && task.num_rows <= MR
                     && num_keys * task.num_heads > share + MIN_SPLIT;
        long step = split ? round_up(share / task.num_heads, TILE_KEYS) : num_keys;
        for (long key = task.first_key, end = task.end_key; key < end; key += step) {
            task.first_key = key, task.end_key = std::min(key + step, end);
            task.part = split ? num_parts++ : -1;
            tasks.push_back(task);
        }
    }
    return num_parts;
}

// What a task leaves for `merge`: best score and total of each row, and its sums.
struct Part {
    float *best, *total, *sums;
    Part(float *memory, const Task &task)
        : best(memory), total(memory + task.rows()), sums(memory + 2 * task.rows()) {}
};

// Parts of one task follow each other: added up, each scaled to the best score of all.
template <class Op, class T>
static void merge(Tile<Op, T> &tile, const std::vector<Task> &parts, size_t first, size_t end,
                  float *buffer, long part_size) {
    const Task &task = parts[first];
    auto part = [&](size_t i) { return Part(buffer + parts[i].part * part_size, task); };
    for (long r = 0; r < task.rows(); r++) {
        float best = -INF, total = 0;
        float *sums = part(first).sums + r * tile.width;
        for (size_t i = first; i < end; i++) best = std::max(best, part(i).best[r]);
        for (size_t i = first; i < end; i++) {
            float scale = std::exp(part(i).best[r] - best);
            total += part(i).total[r] * scale;
            const float *more = part(i).sums + r * tile.width;
            for (long c = 0; c < tile.width; c += LANES)
                store(sums + c, (i > first ? load(sums + c) : F16{}) + load(more + c) * scale);
        }
        tile.finish(task, r, sums, best, total);
    }
}

template <class Op, class T> static void attention(const Attention &args) {
    std::vector<Task> tasks, parts;
    const long most_rows = std::max<long>(MR, args.num_kv_heads * FEW_ROWS);
    const long part_size = most_rows * (2 + args.v_dim);
    std::vector<float> buffer(plan(args, tasks) * part_size);
    for (const Task &task : tasks)
        if (task.part >= 0) parts.push_back(task);
    std::sort(tasks.begin(), tasks.end(), [](const Task &a, const Task &b) {
        return a.rows() * (a.end_key - a.first_key) > b.rows() * (b.end_key - b.first_key);
    });
#pragma omp parallel num_threads(args.num_threads)
    {
        Tile<Op, T> tile(args);
        write_slots<T>(args);
#pragma omp for schedule(dynamic)
        for (size_t i = 0; i < tasks.size(); i++) {
            const Task &task = tasks[i];
            tile.attend(task);
            Part part(buffer.data() + task.part * part_size, task);
            for (long r = 0; r < task.rows(); r++) {
                float *sums = tile.sums + r * tile.width;
                if (task.part < 0) {
                    tile.finish(task, r, sums, tile.best[r], tile.total[r]);
                    continue;
                }
                part.best[r] = tile.best[r], part.total[r] = tile.total[r];
                memcpy(part.sums + r * tile.width, sums, tile.width * sizeof(float));
            }
        }
#pragma omp for schedule(dynamic)
        for (size_t i = 0; i < parts.size(); i++) {
            auto same = [&](size_t j) {
                return parts[i].seq == parts[j].seq && parts[i].head == parts[j].head
                       && parts[i].first_row == parts[j].first_row;
            };
            if (i > 0 && same(i - 1)) continue;
            size_t end = i + 1;
            while (end < parts.size() && same(end)) end++;
            merge(tile, parts, i, end, buffer.data(), part_size);
        }
    }
}

extern "C" void paged_attention(const Attention *args) {
    args->is_bf16 ? attention<Pairs, bf16>(*args) : attention<Floats, float>(*args);
}

// ---- Linear layers ----

// Weights [N, K] are kept as panels, each [K dwords, PANEL]: what `micro` reads in order.
static constexpr long CHUNK_ROWS = 120;   // of the input, for one panel: sums stay in L1
static constexpr long CHUNK_DEPTH = 512;  // dwords: a panel's part stays in L2

struct Linear {  // as in cpu.py
    const void *input;           // [rows, K]
    const int32_t *panels;       // int4: of Blocks
    const float *bias, *scales;  // [columns] or null; int8: of each column
    const int32_t *column_sums;  // int8: of each column's weights
    void *out;                   // [rows, columns], half of the columns if gated
    int64_t rows, columns, depth, out_stride, num_threads;  // depth in dwords; int4: in GROUPs
    int64_t gated;  // each panel has 32 columns x and then 32 y: the answer is silu(x) * y
};

// The tasks of a parallel loop. A thread takes those of its own share in order, because memory is
// read fastest in order, and then the last of others' that are behind.
class Shares {
    struct alignas(LINE) Share {
        std::atomic<uint64_t> left;  // the first, and in the upper half the end
    };
    std::vector<Share> shares;

  public:
    Shares(long num_threads, long num_tasks) : shares(num_threads) {
        for (long t = 0; t < num_threads; t++)
            shares[t].left = t * num_tasks / num_threads
                             | (t + 1) * num_tasks / num_threads << 32;
    }
    // A task nobody else has, or -1.
    long take(long thread) {
        for (size_t i = 0; i < shares.size(); i++) {
            std::atomic<uint64_t> &left = shares[(thread + i) % shares.size()].left;
            uint64_t before = left;
            for (uint64_t first, end; (first = before & 0xffffffff) < (end = before >> 32);) {
                uint64_t after = i == 0 ? before + 1 : before - (1ULL << 32);
                if (left.compare_exchange_weak(before, after)) return i == 0 ? first : end - 1;
            }
        }
        return -1;
    }
};

// A row of activations as x = (u8 - 128) * scale. Its scale.
template <class T> static float quantize(const T *row, long size, uint8_t *to) {
    F16 most = {};
    for (long i = 0; i < size; i += LANES) {
        F16 x = load(row + i);
        most = larger(larger(x, -x), most);
    }
    float scale = reduce(most, larger) / 127, factor = scale > 0 ? 1 / scale : 0;
    for (long i = 0; i < size; i += LANES) {
        // Adding 1.5 * 2^23 rounds, and leaves the integer in the low bits
        I16 rounded = (I16)(load(row + i) * factor + (12582912.0f + 128));
        typedef uint8_t U8 __attribute__((vector_size(16), aligned(1), may_alias));
        *(U8 *)(to + i) = __builtin_convertvector(rounded & 255, U8);
    }
    return scale;
}

// Sums of a chunk's row, as floats, then bias and gate.
template <class T> static void finish_row(const Linear &args, const F16 *sums, long row, long column) {
    F16 x[4];
    for (int i = 0; i < 4; i++) x[i] = sums[i];
    long width = args.gated ? PANEL / 2 : PANEL;
    if (args.bias)
        for (int i = 0; i < 4; i++) x[i] += load(args.bias + column + i * LANES);
    if (args.gated)
        for (int i = 0; i < 2; i++) {
            F16 minus = -x[i];
            x[i] = x[i] * x[i + 2] / (1 + exp16(minus > 80.0f ? F16{} + 80.0f : minus));
        }
    T *out = (T *)args.out + row * args.out_stride + column / PANEL * width;
    long left = args.out_stride - column / PANEL * width;
    for (int i = 0; i < width / LANES; i++)
        if ((i + 1) * LANES <= left) store(out + i * LANES, x[i]);
        else if (i * LANES < left) {
            T last[LANES];
            store(last, x[i]);
            memcpy(out + i * LANES, last, (left - i * LANES) * sizeof(T));
        }
}

template <class Op, class T, class Out, bool is_int8>
static void linear(const Linear &args) {
    if (args.rows == 0) return;
    long num_chunks = (args.rows + CHUNK_ROWS - 1) / CHUNK_ROWS;
    long chunk = round_up((args.rows + num_chunks - 1) / num_chunks, MR);
    long num_panels = (args.columns + PANEL - 1) / PANEL;
    int32_t *quantized = is_int8 ? scratch(ROWS, args.rows * (args.depth + 1)) : nullptr;
    float *scales = (float *)(quantized + args.rows * args.depth);
    const int32_t *input = is_int8 ? quantized : (const int32_t *)args.input;
    Shares shares(args.num_threads, num_panels * num_chunks);
#pragma omp parallel num_threads(args.num_threads)
    {
        if (is_int8) {
#pragma omp for schedule(static)
            for (long r = 0; r < args.rows; r++)
                scales[r] = quantize((const T *)args.input + r * args.depth * 4, args.depth * 4,
                                     (uint8_t *)(quantized + r * args.depth));
        }
        int32_t *sums = scratch(TILE, CHUNK_ROWS * PANEL);
        for (long i; (i = shares.take(omp_get_thread_num())) >= 0;) {
            long column = i / num_chunks * PANEL, first = i % num_chunks * chunk;
            long rows = std::min(chunk, args.rows - first);
            for (long d = 0; d < args.depth; d += CHUNK_DEPTH) {
                long depth = std::min(CHUNK_DEPTH, args.depth - d);
                const int32_t *panel = args.panels + column * args.depth + d * PANEL;
                multiply<Op>({input + first * args.depth + d, panel, sums, args.depth, PANEL, PANEL,
                              depth, d == 0, panel + depth * PANEL},
                             rows, PANEL);
            }
            for (long r = 0; r < rows; r++) {
                F16 *row = (F16 *)(sums + r * PANEL);
                if (is_int8)
                    for (long c = 0; c < PANEL / LANES; c++) {
                        I16 offset = *(const I16 *)(args.column_sums + column + c * LANES) * 128;
                        F16 scale = load(args.scales + column + c * LANES) * scales[first + r];
                        row[c] = __builtin_convertvector((I16)row[c] - offset, F16) * scale;
                    }
                finish_row<Out>(args, row, first + r, column);
            }
        }
    }
}

#ifdef __AVX512VNNI__
// ---- Linear layers of 4-bit weights ----

// Each GROUP of a column's weights has a scale of its own, and so has each GROUP of a row's inputs:
// sums of integers become floats after every group. Half a panel and MR rows fill the registers, so
// halves lie apart, as [K / GROUP] blocks.
static constexpr long GROUP = 32, HALF = PANEL / 2;

struct Block {  // GROUP weights of each column: (nibble - 8) * scale
    int32_t nibbles[GROUP / 8][HALF];  // of a dword's, the low ones are 4 weights, the high ones 4 more
    bf16 scales[HALF];
};

struct Inputs {  // quad * scale
    int32_t quads[GROUP / 4];
    float scale;
    int32_t offset;  // makes up for the 8 in each nibble
};

template <class T> static void quantize_group(const T *x, Inputs &to) {
    F16 low = load(x), high = load(x + LANES);
    float scale = reduce(larger(larger(low, -low), larger(high, -high)), larger) / 127;
    float factor = scale > 0 ? 1 / scale : 0;
    const F16 magic = F16{} + 12582912.0f;  // as in `quantize`
    I16 rounded[2] = {(I16)(low * factor + magic), (I16)(high * factor + magic)};
    typedef uint8_t U8 __attribute__((vector_size(16), aligned(1), may_alias));
    for (int i = 0; i < 2; i++)
        *(U8 *)(to.quads + 4 * i) = __builtin_convertvector(rounded[i] & 255, U8);
    F16 total = __builtin_convertvector(rounded[0] + rounded[1] - 2 * (I16)magic, F16);
    to.scale = scale, to.offset = -8 * (int32_t)reduce(total, sum);
}

// M rows by half a panel, all of their depth.
template <int M> static void micro4(const Inputs *rows, const Block *blocks, long depth, float *sums) {
    constexpr int N = HALF / LANES;
    F16 totals[M][N] = {};
    for (long g = 0; g < depth; g++) {
        const Block &block = blocks[g];
        // One line of a block leads the hardware's own prefetch over pages' ends, which is fastest
        // where nothing is computed meanwhile.
#pragma GCC unroll 16
        for (long line = 0; line < (M > 2 ? (long)sizeof(Block) : LINE); line += LINE)
            __builtin_prefetch((const char *)(blocks + g + 24) + line);
        I16 added[M][N];
#pragma GCC unroll 8
        for (int m = 0; m < M; m++)
#pragma GCC unroll 8
            for (int n = 0; n < N; n++) added[m][n] = I16{} + rows[m * depth + g].offset;
#pragma GCC unroll 8
        for (int k = 0; k < GROUP / 4; k++) {
            I16 columns[N];
#pragma GCC unroll 8
            for (int n = 0; n < N; n++) {
                I16 both = *(const I16 *)(block.nibbles[k / 2] + n * LANES);
                columns[n] = (k % 2 ? both >> 4 : both) & 0x0f0f0f0f;
            }
#pragma GCC unroll 8
            for (int m = 0; m < M; m++) {
                I16 row = I16{} + rows[m * depth + g].quads[k];
#pragma GCC unroll 8
                for (int n = 0; n < N; n++)
                    added[m][n] = Quads::add_product(added[m][n], columns[n], row);
            }
        }
#pragma GCC unroll 8
        for (int n = 0; n < N; n++) {
            F16 scale = load(block.scales + n * LANES);
#pragma GCC unroll 8
            for (int m = 0; m < M; m++)
                totals[m][n] += __builtin_convertvector(added[m][n], F16)
                                * (scale * rows[m * depth + g].scale);
        }
    }
    for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++) store(sums + m * PANEL + n * LANES, totals[m][n]);
}

template <int M = MR>
static void some_rows4(const Inputs *rows, long count, const Block *blocks, long depth, float *sums) {
    if constexpr (M > 0) {
        if (count >= M) return micro4<M>(rows, blocks, depth, sums);
        some_rows4<M - 1>(rows, count, blocks, depth, sums);
    }
}

template <class T> static void linear4(const Linear &args) {
    const long depth = args.depth, num_panels = args.columns / PANEL;
    const long num_chunks = (args.rows + CHUNK_ROWS - 1) / CHUNK_ROWS;
    if (num_chunks == 0) return;
    const long chunk = round_up((args.rows + num_chunks - 1) / num_chunks, MR);
    Inputs *inputs = (Inputs *)scratch(ROWS, args.rows * depth * sizeof(Inputs) / 4);
    Shares shares(args.num_threads, num_panels * num_chunks);
#pragma omp parallel num_threads(args.num_threads)
    {
#pragma omp for schedule(static)
        for (long g = 0; g < args.rows * depth; g++)
            quantize_group((const T *)args.input + g * GROUP, inputs[g]);
        float *sums = (float *)scratch(TILE, CHUNK_ROWS * PANEL);
        for (long i; (i = shares.take(omp_get_thread_num())) >= 0;) {
            const long panel = i / num_chunks, first = i % num_chunks * chunk;
            const long rows = std::min(chunk, args.rows - first), tiles = (rows + MR - 1) / MR;
            const long even = (rows + tiles - 1) / tiles;
            for (long half = 0; half < 2; half++)
                for (long r = 0; r < rows; r += even)
                    some_rows4(inputs + (first + r) * depth, std::min(even, rows - r),
                               (const Block *)args.panels + (2 * panel + half) * depth, depth,
                               sums + r * PANEL + half * HALF);
            for (long r = 0; r < rows; r++)
                finish_row<T>(args, (F16 *)(sums + r * PANEL), first + r, panel * PANEL);
        }
    }
}

extern "C" void linear_int4_f32_f32(const Linear *args) { linear4<float>(*args); }
extern "C" void linear_int4_bf16_bf16(const Linear *args) { linear4<bf16>(*args); }
#endif

// Named by weights, input and output.
#define LINEAR(name, Op, T, Out, is_int8) \
    extern "C" void name(const Linear *args) { linear<Op, T, Out, is_int8>(*args); }
LINEAR(linear_f32_f32_f32, Floats, float, float, false)
#ifdef __AVX512BF16__
LINEAR(linear_bf16_bf16_bf16, Pairs, bf16, bf16, false)
LINEAR(linear_bf16_bf16_f32, Pairs, bf16, float, false)
#endif
#ifdef __AVX512VNNI__
LINEAR(linear_int8_f32_f32, Quads, float, float, true)
LINEAR(linear_int8_bf16_bf16, Quads, bf16, bf16, true)
LINEAR(linear_int8_bf16_f32, Quads, bf16, float, true)
#endif

// ---- Normalization ----

struct RmsNorm {  // as in cpu.py; rows are [outer, inner], each of `size` dense elements
    const void *input, *weight;
    void *out;  // dense
    int64_t outer, inner, outer_stride, inner_stride, size, is_bf16, num_threads;
    double eps, offset;
};

// Rows divided by their root mean square, times weight + offset.
template <class T> static void rms_norm_rows(const RmsNorm &args) {
    const T *weight = (const T *)args.weight;
    const long size = args.size;
    const float offset = args.offset;
#pragma omp parallel for num_threads(args.num_threads) if (args.outer * args.inner * size > 1 << 16)
    for (long o = 0; o < args.outer; o++)
        for (long i = 0; i < args.inner; i++) {
            const T *row = (const T *)args.input + o * args.outer_stride + i * args.inner_stride;
            T *out = (T *)args.out + (o * args.inner + i) * size;
            F16 squares = {};
            for (long c = 0; c < size; c += LANES) squares += load(row + c) * load(row + c);
            float scale = 1 / std::sqrt(reduce(squares, sum) / size + (float)args.eps);
            for (long c = 0; c < size; c += LANES)
                store(out + c, load(row + c) * scale * (load(weight + c) + offset));
        }
}

extern "C" void rms_norm(const RmsNorm *args) {
    args->is_bf16 ? rms_norm_rows<bf16>(*args) : rms_norm_rows<float>(*args);
}

// ---- Rotary embedding ----

struct Rotary {  // as in cpu.py
    void *query, *key;      // [heads, T, dim] by strides, rotated in place
    const void *cos, *sin;  // [T, dim]
    int64_t num_tokens, num_heads, num_kv_heads, dim, query_token, query_head, key_token, key_head;
    int64_t is_bf16, num_threads;
};

// x * cos + (-second half of x, first half of x) * sin
template <class T>
static inline void rotate_token(T *query, T *key, const T *cos, const T *sin, long num_heads,
                                long num_kv_heads, long dim, long query_head, long key_head) {
    const long half = dim / 2;
    for (long h = 0; h < num_heads + num_kv_heads; h++) {
        T *row = h < num_heads ? query + h * query_head : key + (h - num_heads) * key_head;
        for (long i = 0; i < half; i += LANES) {
            F16 x = load(row + i), y = load(row + half + i);
            store(row + i, x * load(cos + i) - y * load(sin + i));
            store(row + half + i, y * load(cos + half + i) + x * load(sin + half + i));
        }
    }
}

template <class T> static void rotate_rows(const Rotary &args) {
#pragma omp parallel for num_threads(args.num_threads) if (args.num_tokens >= 16)
    for (long t = 0; t < args.num_tokens; t++)
        rotate_token((T *)args.query + t * args.query_token, (T *)args.key + t * args.key_token,
                     (const T *)args.cos + t * args.dim, (const T *)args.sin + t * args.dim,
                     args.num_heads, args.num_kv_heads, args.dim, args.query_head, args.key_head);
}

extern "C" void rotary(const Rotary *args) {
    args->is_bf16 ? rotate_rows<bf16>(*args) : rotate_rows<float>(*args);
}

// ---- A stack of decoder layers: everything above in one call, so that nothing is between ----

struct Decoder {  // as in cpu.py: one layer
    const Linear *qkv, *o, *gate_up, *down;
    const RmsNorm *input_norm, *post_norm, *q_norm, *k_norm;  // the last two may be null
    void *keys, *values;
    int64_t window;
    double scaling;
};

struct Stack {  // as in cpu.py
    const Decoder *layers;
    const Attention *run;    // what all layers have in common
    const void *cos, *sin;   // [T, dim]
    void *hidden;            // [T, hidden_size]: the input, and at the end the answer
    void *normed, *qkv, *attended, *gated;  // working memory
    const int64_t *wanted;   // rows, ascending, that are to be right at the end
    int64_t num_layers, num_tokens, num_wanted, hidden_size, num_heads, num_kv_heads, dim, is_bf16, bits;
    int64_t num_threads;  // bits: of a weight, 4 or 8, or else it is of the dtype
};

template <class T> static void project(const Stack &stack, const Linear *layer, const void *input,
                                       void *out) {
    Linear args = *layer;
    args.input = input, args.out = out;
    args.rows = stack.num_tokens, args.num_threads = stack.num_threads;
    if constexpr (sizeof(T) == 4) {
#ifdef __AVX512VNNI__
        if (stack.bits == 4) return linear4<float>(args);
        if (stack.bits == 8) return linear<Quads, float, float, true>(args);
#endif
        linear<Floats, float, float, false>(args);
    } else {
#ifdef __AVX512VNNI__
        if (stack.bits == 4) return linear4<bf16>(args);
        if (stack.bits == 8) return linear<Quads, bf16, bf16, true>(args);
#endif
#ifdef __AVX512BF16__
        linear<Pairs, bf16, bf16, false>(args);
#endif
    }
}

// Norm of `row` into `out`, after adding `more`, if there is any, to the row itself.
template <class T> static void norm_row(const RmsNorm &args, T *row, const T *more, T *out) {
    const T *weight = (const T *)args.weight;
    F16 squares = {};
    for (long c = 0; c < args.size; c += LANES) {
        if (more) store(row + c, load(row + c) + load(more + c));
        squares += load(row + c) * load(row + c);
    }
    float scale = 1 / std::sqrt(reduce(squares, sum) / args.size + (float)args.eps);
    for (long c = 0; c < args.size; c += LANES)
        store(out + c, load(row + c) * scale * (load(weight + c) + (float)args.offset));
}

template <class T> static void add_and_norm(const Stack &stack, const T *more, const RmsNorm *norm) {
    const long size = stack.hidden_size;
    T *hidden = (T *)stack.hidden, *normed = (T *)stack.normed;
#pragma omp parallel for num_threads(stack.num_threads) if (stack.num_tokens * size > 1 << 15)
    for (long t = 0; t < stack.num_tokens; t++) {
        const T *row = more ? more + t * size : nullptr;
        if (norm) {
            norm_row(*norm, hidden + t * size, row, normed + t * size);
            continue;
        }
        for (long c = 0; c < size; c += LANES)
            store(hidden + t * size + c, load(hidden + t * size + c) + load(row + c));
    }
}

// Heads of queries and keys: norm, if there is one, and rotation, in place.
template <class T> static void norm_and_rotate(const Stack &stack, const Decoder &layer) {
    const long heads = stack.num_heads, all = heads + stack.num_kv_heads, dim = stack.dim;
    const long width = (all + stack.num_kv_heads) * dim;
#pragma omp parallel for num_threads(stack.num_threads) if (stack.num_tokens >= 16)
    for (long t = 0; t < stack.num_tokens; t++) {
        T *row = (T *)stack.qkv + t * width;
        if (layer.q_norm)
            for (long h = 0; h < all; h++)
                norm_row<T>(h < heads ? *layer.q_norm : *layer.k_norm, row + h * dim, nullptr,
                            row + h * dim);
        rotate_token(row, row + heads * dim, (const T *)stack.cos + t * dim,
                     (const T *)stack.sin + t * dim, heads, stack.num_kv_heads, dim, dim, dim);
    }
}

template <class T> static void copy_row(void *rows, long to, long from, long size) {
    if (to != from) memcpy((T *)rows + to * size, (T *)rows + from * size, size * sizeof(T));
}

template <class Op, class T> static void run_stack(Stack stack) {
    const long heads = stack.num_heads, kv_heads = stack.num_kv_heads, dim = stack.dim;
    Attention attend = *stack.run;
    attend.query = stack.qkv;
    attend.key = (const T *)stack.qkv + heads * dim;
    attend.value = (const T *)stack.qkv + (heads + kv_heads) * dim;
    attend.query_token = attend.key_token = attend.value_token = (heads + 2 * kv_heads) * dim;
    attend.query_head = attend.key_head = attend.value_head = dim;
    attend.out = stack.attended;
    const T *more = nullptr;  // what still has to be added to the hidden states
    for (long i = 0; i < stack.num_layers; i++) {
        const Decoder &layer = stack.layers[i];
        add_and_norm<T>(stack, more, layer.input_norm);
        project<T>(stack, layer.qkv, stack.normed, stack.qkv);
        norm_and_rotate<T>(stack, layer);
        attend.keys = layer.keys, attend.values = layer.values;
        attend.window = layer.window, attend.scaling = layer.scaling;
        attention<Op, T>(attend);
        if (i == stack.num_layers - 1) {  // with all keys written, the other rows are of no use
            stack.num_tokens = stack.num_wanted;
            for (long t = 0; t < stack.num_tokens; t++) {
                copy_row<T>(stack.attended, t, stack.wanted[t], heads * dim);
                copy_row<T>(stack.hidden, t, stack.wanted[t], stack.hidden_size);
            }
        }
        if (!stack.num_tokens) return;
        project<T>(stack, layer.o, stack.attended, stack.qkv);  // free again, and wide enough
        add_and_norm<T>(stack, (const T *)stack.qkv, layer.post_norm);
        project<T>(stack, layer.gate_up, stack.normed, stack.gated);
        more = (const T *)stack.normed;
        project<T>(stack, layer.down, stack.gated, stack.normed);
    }
    add_and_norm<T>(stack, more, nullptr);
    for (long t = stack.num_tokens; t-- > 0;)
        copy_row<T>(stack.hidden, stack.wanted[t], t, stack.hidden_size);
}

extern "C" void decoder_stack(const Stack *stack) {
    stack->is_bf16 ? run_stack<Pairs, bf16>(*stack) : run_stack<Floats, float>(*stack);
}

// ---- Drawing a token from what top_k and top_p leave ----

struct Nucleus {  // as in cpu.py
    const float *scaled, *top_k, *top_p, *noise;  // [num_rows, size], 0 the best; [num_rows] each
    int64_t *tokens;                              // [num_rows]
    int64_t num_rows, size, num_threads;
};

// The tokens of a row from the likeliest on, without sorting a vocabulary: weights are added up in
// buckets of almost equal logits, and only the tokens of a bucket in which something ends are
// sorted. The bits of a positive float grow with it: a bucket is the upper half of them.
struct Descent {
    struct Place { double mass; long count, token; };  // of all tokens up to this one
    static constexpr long NUM_BUCKETS = 1 << 15, NOTHING = 0x7f80;  // where -inf falls

    const float *logits = nullptr;
    long size = 0;
    std::vector<double> mass = std::vector<double>(NUM_BUCKETS);
    std::vector<int32_t> counts = std::vector<int32_t>(NUM_BUCKETS);
    std::vector<std::pair<float, long>> members;

    static long bucket(float logit) {
        int32_t bits;
        memcpy(&bits, &logit, 4);
        return (bits & 0x7fffffff) >> 16;
    }

    void fill(const float *row, long count) {
        logits = row, size = count;
        std::fill(mass.begin(), mass.end(), 0.0);
        std::fill(counts.begin(), counts.end(), 0);
        double *mass = this->mass.data();
        int32_t *counts = this->counts.data();
        long i = 0;
        for (; i + LANES <= size; i += LANES) {
            float weights[LANES];
            int32_t places[LANES];
            store(weights, exp16(load(row + i)));
            *(I16 *)places = (*(const I16 *)(row + i) & 0x7fffffff) >> 16;
#pragma GCC unroll 16
            for (long k = 0; k < LANES; k++) mass[places[k]] += weights[k], counts[places[k]]++;
        }
        for (; i < size; i++) mass[bucket(row[i])] += std::exp(row[i]), counts[bucket(row[i])]++;
        mass[NOTHING] = counts[NOTHING] = 0;
    }

    void sort_members(long wanted) {
        members.clear();
        for (long i = 0; i < size; i += LANES) {
            long end = std::min(i + LANES, size);
            bool any = false;
            for (long k = i; k < end; k++) any |= bucket(logits[k]) == wanted;
            for (long k = i; any && k < end; k++)
                if (bucket(logits[k]) == wanted) members.push_back({-logits[k], k});
        }
        std::sort(members.begin(), members.end());
    }

    // The first token at which so much weight or so many tokens are reached; or the last there is.
    Place find(double wanted_mass, long wanted_count) {
        Place place{0, 0, 0};
        long last = 0;
        for (long b = 0; b < NUM_BUCKETS; b++) {
            if (!counts[b]) continue;
            last = b;
            bool ends = place.mass + mass[b] >= wanted_mass || place.count + counts[b] >= wanted_count;
            if (!ends) {
                place.mass += mass[b], place.count += counts[b];
                continue;
            }
            sort_members(b);
            for (auto [logit, token] : members) {
                place = {place.mass + std::exp(-logit), place.count + 1, token};
                if (place.mass >= wanted_mass || place.count >= wanted_count) return place;
            }
        }
        sort_members(last);
        if (members.size()) place.token = members.back().second;
        return place;
    }

    // top_p is a share of what top_k leaves, and reached by the token that completes it.
    long draw(float top_k, float top_p, float noise) {
        Place kept{0, size, 0};
        if (top_k < size)
            kept = find(INF, (long)top_k);
        else
            for (double part : mass) kept.mass += part;
        if (top_p < 1) kept = find(top_p * kept.mass, kept.count);
        return find(std::nextafter(noise * kept.mass, (double)INF), kept.count).token;
    }
};

extern "C" void draw_from_nucleus(const Nucleus *args) {
#pragma omp parallel num_threads(std::min(args->num_threads, args->num_rows))
    {
        static thread_local Descent own;
        Descent &descent = own;
#pragma omp for schedule(dynamic)
        for (long r = 0; r < args->num_rows; r++) {
            descent.fill(args->scaled + r * args->size, args->size);
            args->tokens[r] = descent.draw(args->top_k[r], args->top_p[r], args->noise[r]);
        }
    }
}
