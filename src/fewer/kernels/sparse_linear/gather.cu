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

// One column's inputs in shared memory: a float for one token, else TOKENS numbers of 16 bits side by side.
#if TOKENS == 1
#define BYTES 4
__device__ __forceinline__ void put(char* at, const u16* x, int column, int columns) {
    *(float*)at = column < columns ? low(x[column]) : 0.0f;
}
__device__ __forceinline__ void add(float* sum, float w, const char* at) { sum[0] += w * *(const float*)at; }
#else
#define BYTES (2 * TOKENS)
__device__ __forceinline__ void put(char* at, const u16* x, int column, int columns) {
#pragma unroll
    for (int b = 0; b < TOKENS; b++) ((u16*)at)[b] = column < columns ? x[(long long)b * columns + column] : 0;
}
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

__device__ __forceinline__ void finish(float* sum, int lane, int row, int rows, const u16* bias, u16* out) {
#pragma unroll
    for (int b = 0; b < TOKENS; b++) {
#pragma unroll
        for (int d = 16; d; d >>= 1) sum[b] += __shfl_xor_sync(~0u, sum[b], d);
        if (lane == 0) out[(long long)b * rows + row] = narrow(sum[b] + (bias ? low(bias[row]) : 0.0f));
    }
}

#ifdef GAPS
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
    extern __shared__ char inputs[];
    const int lane = threadIdx.x & 31, stride = gridDim.x * (THREADS / 32);
    int row = blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    int first = row < rows ? start[row] : 0, last = row < rows ? start[row + 1] : 0;
    Step now, next;
    fetch(now, value, gap, first + lane, last);  // on its way while the inputs are put in place
    for (int i = threadIdx.x; i < columns + 32; i += THREADS) put(inputs + i * BYTES, x, i, columns);
    __syncthreads();
    for (; row < rows; row += stride) {
        const bool more = row + stride < rows;
        const int first_after = more ? start[row + stride] : 0, last_after = more ? start[row + stride + 1] : 0;
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
                for (int a = 0; a < AHEAD; a++) {
                    const u32 n = __shfl_up_sync(~0u, upto[a], d);
                    upto[a] += lane >= d ? n : 0;
                }
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
    extern __shared__ char inputs[];
    const int chunks = columns / CHUNK, whole = (chunks + 31) / 32 * 32 * CHUNK;
    const int lane = threadIdx.x & 31, stride = gridDim.x * (THREADS / 32);
    int row = blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    Step now, next;
    fetch(now, value, place, (long long)row * chunks, lane, row < rows ? chunks : 0);  // on its way meanwhile
    for (int i = threadIdx.x; i < whole; i += THREADS) {
        const int column = ((i / (32 * CHUNK)) * 32 + (i & 31)) * CHUNK + (i / 32) % CHUNK;
        put(inputs + i * BYTES, x, column, columns);
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
