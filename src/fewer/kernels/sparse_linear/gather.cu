// sparse_linear for few tokens: a warp owns a row, a lane takes eight survivors at a time, their inputs lie in shared memory.
//
// Compiled where it runs, with these defined: HALF (0: values and inputs are bfloat16, 1: float16), TOKENS (1, 2, 4 or 8),
// AHEAD (steps of a warp whose loads are in flight together), THREADS and BLOCKS (threads a block, blocks a multiprocessor), and for
// N:M the numbers N, M and BITS (of a place). Sums are float32.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

__device__ __forceinline__ float low(u32 pair) {
#if HALF
    float out;
    asm("{.reg .f16 a, b; mov.b32 {a, b}, %1; cvt.f32.f16 %0, a;}" : "=f"(out) : "r"(pair));
    return out;
#else
    return __uint_as_float(pair << 16);
#endif
}

__device__ __forceinline__ float high(u32 pair) {
#if HALF
    float out;
    asm("{.reg .f16 a, b; mov.b32 {a, b}, %1; cvt.f32.f16 %0, b;}" : "=f"(out) : "r"(pair));
    return out;
#else
    return __uint_as_float(pair & 0xffff0000u);
#endif
}

__device__ __forceinline__ u16 narrow(float x) {
    u16 out;
#if HALF
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out) : "f"(x));
#else
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out) : "f"(x));
#endif
    return out;
}

// What is read once must not push the inputs out of the cache.
__device__ __forceinline__ uint4 once(const uint4* p) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
    return v;
}

__device__ __forceinline__ u32 once(const u32* p) {
    u32 v;
    asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(v) : "l"(p));
    return v;
}

__device__ __forceinline__ u32 once(const u16* p) {
    u16 v;
    asm volatile("ld.global.nc.L1::no_allocate.u16 %0, [%1];" : "=h"(v) : "l"(p));
    return v;
}

// A column's inputs in shared memory: TOKENS numbers of 16 bits side by side, but for N:M and one token a float.
#if TOKENS == 1 && defined(GAPS)
#define BYTES 2
__device__ __forceinline__ void add(float* sum, float w, const char* at) { sum[0] += w * low(*(const u16*)at); }
#elif TOKENS == 1
#define BYTES 4
__device__ __forceinline__ void add(float* sum, float w, const char* at) { sum[0] += w * *(const float*)at; }
#else
#define BYTES (2 * TOKENS)
__device__ __forceinline__ void add(float* sum, float w, const char* at) {
    u32 pairs[TOKENS / 2];
#if TOKENS == 2
    pairs[0] = *(const u32*)at;
#elif TOKENS == 4
    *(u64*)pairs = *(const u64*)at;
#else
    *(uint4*)pairs = *(const uint4*)at;
#endif
#pragma unroll
    for (int b = 0; b < TOKENS / 2; b++) {
        sum[2 * b] += w * low(pairs[b]);
        sum[2 * b + 1] += w * high(pairs[b]);
    }
}
#endif

// Takes neighbouring columns in one load and puts them `apart` bytes from each other.
#ifdef GAPS
#define TAKEN 2
#else
#define TAKEN 8
#endif
__device__ __forceinline__ void put(char* at, int apart, const u16* x, int column, int columns) {
    u32 in[TOKENS][TAKEN / 2];
#pragma unroll
    for (int b = 0; b < TOKENS; b++) {
        const u16* from = x + (long long)b * columns + column;
#pragma unroll
        for (int i = 0; i < TAKEN / 2; i++) in[b][i] = 0;
        if (column >= columns) continue;
#ifdef GAPS
        in[b][0] = columns % 2 ? from[0] : *(const u32*)from;  // rows of an odd length are not aligned
        if (columns % 2 && column + 1 < columns) in[b][0] |= (u32)from[1] << 16;
#else
        const uint4 eight = *(const uint4*)from;
        in[b][0] = eight.x, in[b][1] = eight.y, in[b][2] = eight.z, in[b][3] = eight.w;
#endif
    }
#pragma unroll
    for (int i = 0; i < TAKEN; i++, at += apart) {
#if TOKENS == 1
        *(float*)at = i & 1 ? high(in[0][i / 2]) : low(in[0][i / 2]);
#else
        u32 pairs[TOKENS / 2];
#pragma unroll
        for (int b = 0; b < TOKENS / 2; b++) {
            pairs[b] = __byte_perm(in[2 * b][i / 2], in[2 * b + 1][i / 2], i & 1 ? 0x7632 : 0x5410);
        }
#if TOKENS == 2
        *(u32*)at = pairs[0];
#elif TOKENS == 4
        *(u64*)at = *(const u64*)pairs;
#else
        *(uint4*)at = *(const uint4*)pairs;
#endif
#endif
    }
}

__device__ __forceinline__ void finish(float* sum, int lane, int row, int rows, const u16* bias, u16* out) {
#pragma unroll
    for (int b = 0; b < TOKENS; b++) {
#pragma unroll
        for (int d = 16; d; d >>= 1) sum[b] += __shfl_xor_sync(~0u, sum[b], d);
        if (lane == 0) out[(long long)b * rows + row] = narrow(sum[b] + (bias ? low(bias[row]) : 0.0f));
    }
}

#ifdef GAPS
__device__ __forceinline__ void stage(char* inputs, const u16* x, int columns) {
#if TOKENS == 1
    if (columns % 8 == 0) {
        for (int i = 8 * threadIdx.x; i < columns; i += 8 * THREADS) {
            const u32 to = (u32)__cvta_generic_to_shared(inputs + i * BYTES);
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(x + i) : "memory");
        }
        if (threadIdx.x < 32) ((u16*)inputs)[columns + threadIdx.x] = 0;
        asm volatile("cp.async.wait_all;" ::: "memory");
    } else {
        for (int i = threadIdx.x; i < columns + 32; i += THREADS) ((u16*)inputs)[i] = i < columns ? x[i] : 0;
    }
#else
    for (int i = 2 * threadIdx.x; i < columns + 32; i += 2 * THREADS) put(inputs + i * BYTES, BYTES, x, i, columns);
#endif
}

// Adds what the lane `d` below has, where there is one.
__device__ __forceinline__ void scan(u32& n, int d) {
    asm volatile("{.reg .u32 m; .reg .pred p; shfl.sync.up.b32 m|p, %0, %1, 0, -1; @p add.u32 %0, %0, m;}" : "+r"(n) : "r"(d));
}

// Gaps: how many columns to skip before each survivor, four bits each; a scan over the warp says where each lane begins.
struct Step {
    uint4 v[AHEAD];
    u32 g[AHEAD];
};

__device__ __forceinline__ void fetch(Step& s, const uint4* value, const u32* gap, int t, int last) {
#pragma unroll
    for (int a = 0; a < AHEAD; a++, t += 32) {
        s.v[a] = t < last ? once(value + t) : make_uint4(0, 0, 0, 0);
        s.g[a] = t < last ? once(gap + t) : 0;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
run(const u16* x, const uint4* value, const u32* gap, const int* start, const u16* bias, u16* out, int rows, int columns) {
    extern __shared__ __align__(16) char inputs[];
    const int lane = threadIdx.x & 31, stride = gridDim.x * (THREADS / 32);
    int row = blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    // lane i knows where the i-th row of this warp begins and ends: no load of a row waits for another load
    int mine = row + lane * stride, turn = 0;
    int from = mine < rows ? start[mine] : 0, to = mine < rows ? start[mine + 1] : 0;
    int first = __shfl_sync(~0u, from, 0), last = __shfl_sync(~0u, to, 0);
    Step now, next;
    fetch(now, value, gap, first + lane, last);  // on its way while the inputs are put in place
    stage(inputs, x, columns);
    __syncthreads();
    for (; row < rows; row += stride) {
        if (++turn == 32) {
            mine += 32 * stride;
            turn = 0;
            from = mine < rows ? start[mine] : 0;
            to = mine < rows ? start[mine + 1] : 0;
        }
        const int first_after = __shfl_sync(~0u, from, turn), last_after = __shfl_sync(~0u, to, turn);
        float sum[TOKENS] = {};
        u32 before = 0;
        do {
            const bool ends = first + 32 * AHEAD >= last;
            fetch(next, value, gap, (ends ? first_after : first + 32 * AHEAD) + lane, ends ? last_after : last);
            u32 own[AHEAD], upto[AHEAD];
#pragma unroll
            for (int a = 0; a < AHEAD; a++) {
                const u32 nibbles = (now.g[a] & 0x0f0f0f0fu) + ((now.g[a] >> 4) & 0x0f0f0f0fu);
                own[a] = first + 32 * a + lane < last ? ((nibbles * 0x01010101u) >> 24) + 8 : 0;
                upto[a] = own[a];
            }
#pragma unroll
            for (int d = 1; d < 32; d <<= 1) {
#pragma unroll
                for (int a = 0; a < AHEAD; a++) scan(upto[a], d);
            }
#pragma unroll
            for (int a = 0; a < AHEAD; a++) {
                const char* at = inputs + (before + upto[a] - own[a]) * BYTES;
                before += __shfl_sync(~0u, upto[a], 31);
                const u32 pair[4] = {now.v[a].x, now.v[a].y, now.v[a].z, now.v[a].w};
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    at += ((now.g[a] >> (4 * i)) & 15) * BYTES;
                    add(sum, i & 1 ? high(pair[i / 2]) : low(pair[i / 2]), at + i * BYTES);
                }
            }
            now = next;
            first += 32 * AHEAD;
        } while (first < last);
        first = first_after;
        last = last_after;
        finish(sum, lane, row, rows, bias, out);
    }
}
#else
// N:M: eight survivors lie in CHUNK columns. Inputs are laid out so that column q of 32 neighbouring chunks are 32 neighbours:
// wherever the survivors of a chunk are, the lanes of a warp read from banks of their own.
#define CHUNK (8 * M / N)
struct Step {
    uint4 v[AHEAD];
    u32 p[AHEAD];
};

__device__ __forceinline__ void fetch(Step& s, const uint4* value, const u8* place, long long from, int t, int chunks) {
#pragma unroll
    for (int a = 0; a < AHEAD; a++, t += 32) {
        s.v[a] = make_uint4(0, 0, 0, 0);
        s.p[a] = 0;
        if (t < chunks) {
            s.v[a] = once(value + from + t);
#if BITS == 4
            s.p[a] = once((const u32*)place + from + t);
#elif BITS == 2
            s.p[a] = once((const u16*)place + from + t);
#else
#pragma unroll
            for (int i = 0; i < BITS; i++) s.p[a] |= (u32)place[(from + t) * BITS + i] << (8 * i);
#endif
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
run(const u16* x, const uint4* value, const u8* place, const u16* bias, u16* out, int rows, int columns) {
    extern __shared__ __align__(16) char inputs[];
    const int chunks = columns / CHUNK, whole = (chunks + 31) / 32 * 32 * CHUNK;
    const int lane = threadIdx.x & 31, stride = gridDim.x * (THREADS / 32);
    int row = blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    Step now, next;
    fetch(now, value, place, (long long)row * chunks, lane, row < rows ? chunks : 0);  // on its way meanwhile
    for (int i = threadIdx.x; i < whole / 8; i += THREADS) {  // lane by chunk: its eight go to neighbours of eight lines
        const int block = i / (4 * CHUNK) * 32, line = 8 * (i / 32 % (CHUNK / 8));
        put(inputs + (block * CHUNK + line * 32 + lane) * BYTES, 32 * BYTES, x, (block + lane) * CHUNK + line, columns);
    }
    __syncthreads();
    for (; row < rows; row += stride) {
        float sum[TOKENS] = {};
        for (int first = 0; first < chunks; first += 32 * AHEAD) {
            const bool ends = first + 32 * AHEAD >= chunks;
            const int soon = ends ? row + stride : row;
            fetch(next, value, place, (long long)soon * chunks, (ends ? 0 : first + 32 * AHEAD) + lane, soon < rows ? chunks : 0);
#pragma unroll
            for (int a = 0; a < AHEAD; a++) {
                // lanes beyond the last chunk have weights of zero: they may read anything that is there
                const int block = min(first + 32 * a, (chunks - 1) & ~31);
                const char* at = inputs + (block * CHUNK + lane) * BYTES;
                const u32 pair[4] = {now.v[a].x, now.v[a].y, now.v[a].z, now.v[a].w};
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    const u32 q = (now.p[a] >> (BITS * i)) & ((1 << BITS) - 1);
                    add(sum, i & 1 ? high(pair[i / 2]) : low(pair[i / 2]), at + (q + (i / N) * M) * 32 * BYTES);
                }
            }
            now = next;
        }
        finish(sum, lane, row, rows, bias, out);
    }
}
#endif
