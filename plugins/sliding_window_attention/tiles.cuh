// What the kernels share: the sequence a block works on, tiles of queries, keys, values and output, and
// staging into shared memory. README.md beside this file has the picture; the numbers behind the tile sizes
// are in traits.h.
#pragma once

#include <utility>

#include "params.h"
#include "primitives.cuh"
#include "traits.h"

namespace vtn::swa {

__device__ __forceinline__ uint32_t divide(uint32_t x, const Divisor& divisor) {
    return (__umulhi(x, divisor.magic) + x) >> divisor.shift;
}

// The sequence a block works on: the tokens of one sample that are congruent modulo the dilation.
// Inside it the band is contiguous; positions below are positions in it.
struct Sequence {
    int rows;             // positions
    int length;           // valid ones
    int globals;          // leading positions that are global columns, and no part of the band
    int columns;          // valid global columns of the sample
    uint32_t row_bytes;   // of qkv, from one position to the next
    const char* queries;  // position 0, this head
    const char* sample;   // token 0 of the sample, this head
    uint32_t token;       // of position 0, counted over the batch
};

template <int HeadDim, int Bytes, bool Dilated>
__device__ __forceinline__ Sequence locate(const KernelParams& p) {
    Sequence sequence;
    uint32_t sample = blockIdx.x;
    uint32_t residue = 0;
    if constexpr (Dilated) {
        sample = divide(blockIdx.x, p.classes);
        residue = blockIdx.x - sample * p.classes.value;
    }
    const int length = min(max(__ldg(advance_by<sizeof(int32_t)>(p.lengths, sample)), 0), p.sequence);
    sequence.columns = min(p.globals, length);
    sequence.rows = p.sequence;
    sequence.length = length;
    sequence.globals = sequence.columns;
    sequence.row_bytes = p.token_bytes;
    sequence.token = sample * p.sequence;
    keep(sequence.token);
    sequence.sample = advance_by<HeadDim * Bytes>(
        advance(static_cast<const char*>(p.qkv), sequence.token, p.token_bytes), blockIdx.z);
    sequence.queries = sequence.sample;
    if constexpr (Dilated) {
        // ceil((x - residue) / dilation), never negative because residue < dilation
        const uint32_t up = p.dilation.value - 1 - residue;
        sequence.rows = static_cast<int>(divide(p.sequence + up, p.dilation));
        sequence.length = static_cast<int>(divide(length + up, p.dilation));
        sequence.globals = static_cast<int>(divide(sequence.columns + up, p.dilation));
        sequence.row_bytes = p.token_bytes * p.dilation.value;
        sequence.queries = advance(sequence.sample, residue, p.token_bytes);
    }
    sequence.token += residue;
    return sequence;
}

// The output row of a position, and the bytes from one position's row to the next.
template <int HeadDim, int Bytes, bool Dilated>
__device__ __forceinline__ char* output_row(const KernelParams& p, const Sequence& sequence, uint32_t position) {
    const uint32_t dilation = Dilated ? p.dilation.value : 1;
    const uint32_t token = sequence.token + position * dilation;
    return advance_by<HeadDim * Bytes>(advance(static_cast<char*>(p.output), token, p.output_bytes), blockIdx.z);
}

template <bool Dilated>
__device__ __forceinline__ uint32_t output_row_bytes(const KernelParams& p) {
    return p.output_bytes * (Dilated ? p.dilation.value : 1);
}

// Byte offset, inside row `row` of shared memory, of the chunk at byte chunk_byte of the global row.
template <int HeadDim>
__device__ __forceinline__ uint32_t swizzled(uint32_t row, uint32_t chunk_byte) {
    if constexpr (HeadDim == 64) {
        return ((row * 80) ^ chunk_byte) & 0x70;  // chunk ^ (5 * row mod 8), of eight chunks
    } else if constexpr (RowLayout<HeadDim>::kFullSwizzle) {
        return ((row * 80) & 0x70) ^ chunk_byte;
    } else if constexpr (HeadDim % 32 == 0) {
        return ((row * 8) & 0x30) ^ chunk_byte;  // chunk ^ (row / 2 mod 4)
    } else {
        return (((row & 6) * 24) & 0x30) ^ chunk_byte;  // chunk ^ (3 * (row / 2) mod 4)
    }
}

// Where chunk Even + odd of a row lies: a constant part, for the instruction's own offset, and a part
// in a register, made of the place of chunk `odd`: bits of Even and of odd do not overlap, and rows are
// aligned to the bytes that the swizzle permutes.
template <int HeadDim, int Even>
constexpr int kChunkConstant = (Even & ~RowLayout<HeadDim>::kSwizzleMask) * kChunkBytes;

template <int HeadDim, int Even>
__device__ __forceinline__ uint32_t chunk_register(uint32_t odd) {
    return odd ^ ((Even & RowLayout<HeadDim>::kSwizzleMask) * kChunkBytes);
}

template <int Value>
struct Constant {
    __host__ __device__ constexpr operator int() const { return Value; }
};

template <typename Body, int... Index>
__device__ __forceinline__ void unroll(Body&& body, std::integer_sequence<int, Index...>) {
    (body(Constant<Index>{}), ...);
}

// body(i) for i in [0, Count), each i a constant: the offsets of the instructions need them.
template <int Count, typename Body>
__device__ __forceinline__ void unroll(Body&& body) {
    unroll(body, std::make_integer_sequence<int, Count>{});
}

// What a product is added to: nothing the first time.
template <bool First>
__device__ __forceinline__ const float (&addend(const float (&sum)[4], const float (&zero)[4]))[4] {
    if constexpr (First) {
        return zero;
    } else {
        return sum;
    }
}

// 16 queries of a warp as A operands. The contraction runs over the head dimension, whose order is
// free as long as queries and keys agree: lane t of a quad takes the 16 bytes at 16 t of every 64.
// So both come by 128-bit loads, queries straight from global memory in whole sectors.
template <int HeadDim>
struct Queries {
    static constexpr int kWide = HeadDim / 32;
    static constexpr bool kHasHalf = HeadDim % 32 != 0;  // 80: the last 16 elements by 64-bit loads
    uint32_t a[HeadDim / 16][4];

    // Rows g and g + 8 from this lane's 16 bytes on. The sign of a negative scale, or a scale of 0, is
    // taken in here; that also moves the registers of two row-wise loads once into the order of the
    // operand, which the assembler otherwise does again for every key tile (120 of 790 instructions).
    __device__ __forceinline__ void load(const KernelParams& p, const char* low, const char* high, uint32_t quad_lane) {
        uint4 x[kWide], y[kWide];
        unroll<kWide>([&](auto i) {
            x[i] = load_global_128<i * 64>(low);
            y[i] = load_global_128<i * 64>(high);
        });
        uint2 x_half, y_half;
        if constexpr (kHasHalf) {
            x_half = load_global_64<kWide * 64>(low - quad_lane * 8);
            y_half = load_global_64<kWide * 64>(high - quad_lane * 8);
        }
#pragma unroll
        for (int i = 0; i < kWide; ++i) {
            set(p, 2 * i, x[i].x, y[i].x, x[i].y, y[i].y);
            set(p, 2 * i + 1, x[i].z, y[i].z, x[i].w, y[i].w);
        }
        if constexpr (kHasHalf) {
            set(p, 2 * kWide, x_half.x, y_half.x, x_half.y, y_half.y);
        }
    }

    __device__ __forceinline__ void set(const KernelParams& p, int step, uint32_t a0, uint32_t a1, uint32_t a2,
                                        uint32_t a3) {
        a[step][0] = and_xor(a0, p.query_and, p.query_xor);
        a[step][1] = and_xor(a1, p.query_and, p.query_xor);
        a[step][2] = and_xor(a2, p.query_and, p.query_xor);
        a[step][3] = and_xor(a3, p.query_and, p.query_xor);
    }
};

// score = queries * eight keys. address is this lane's 16 bytes of its key (lane / 4) at Offset, for
// 64-bit loads half_address.
template <typename Type, int HeadDim, int Offset>
__device__ __forceinline__ void multiply_keys(float (&score)[4], const Queries<HeadDim>& q, uint32_t address,
                                              uint32_t half_address) {
    constexpr int kWide = Queries<HeadDim>::kWide;
    const float zero[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    unroll<kWide>([&](auto i) {
        constexpr int kChunk = 4 * i;
        const uint4 k =
            load_shared_128<Offset + kChunkConstant<HeadDim, kChunk>>(chunk_register<HeadDim, kChunk>(address));
        Math<Type>::mma_k16(score, q.a[2 * i], k.x, k.y, addend < i == 0 > (score, zero));
        Math<Type>::mma_k16(score, q.a[2 * i + 1], k.z, k.w, score);
    });
    if constexpr (Queries<HeadDim>::kHasHalf) {
        constexpr int kChunk = 4 * kWide;
        const uint2 k =
            load_shared_64<Offset + kChunkConstant<HeadDim, kChunk>>(chunk_register<HeadDim, kChunk>(half_address));
        Math<Type>::mma_k16(score, q.a[2 * kWide], k.x, k.y, score);
    }
}

// The sums of probability rows come from the tensor cores too, as a product with ones: no additions, no
// shuffles, and the very numbers that weigh the values, after their rounding.
template <typename Type, int HeadDim>
struct Output {
    float column[HeadDim / 8][4];
    float sum[4];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
#pragma unroll
            for (int c = 0; c < HeadDim / 8; ++c) {
                column[c][e] = 0.0f;
            }
            sum[e] = 0.0f;
        }
    }

    // Rows g and g + 8 by a factor each.
    __device__ __forceinline__ void scale(const float (&factor)[2]) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
#pragma unroll
            for (int c = 0; c < HeadDim / 8; ++c) {
                column[c][e] *= factor[e / 2];
            }
            sum[e] *= factor[e / 2];
        }
    }

    // (+)= probabilities (16 x 16) * 16 values. address is the row and chunk that this lane names for
    // ldmatrix, at Offset: key lane % 16, chunk lane / 16.
    template <int Offset, bool First>
    __device__ __forceinline__ void add_k16(const uint32_t (&probability)[4], uint32_t address) {
        const float zero[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        unroll<HeadDim / 16>([&](auto i) {
            constexpr int c = 2 * i;
            uint32_t v[4];
            load_transposed_x4<Offset + kChunkConstant<HeadDim, c>>(v, chunk_register<HeadDim, c>(address));
            Math<Type>::mma_k16(column[c], probability, v[0], v[1], addend<First>(column[c], zero));
            Math<Type>::mma_k16(column[c + 1], probability, v[2], v[3], addend<First>(column[c + 1], zero));
        });
        Math<Type>::mma_k16(sum, probability, Math<Type>::kOnes, Math<Type>::kOnes, addend<First>(sum, zero));
    }

    // The same for eight keys: key lane % 8, chunk lane / 8 of four (of two for pair_address).
    template <int Offset, bool First>
    __device__ __forceinline__ void add_k8(const uint32_t (&probability)[2], uint32_t address, uint32_t pair_address) {
        const float zero[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        unroll<HeadDim / 32>([&](auto i) {
            constexpr int c = 4 * i;
            uint32_t v[4];
            load_transposed_x4<Offset + kChunkConstant<HeadDim, c>>(v, chunk_register<HeadDim, c>(address));
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                Math<Type>::mma_k8(column[c + e], probability, v[e], addend<First>(column[c + e], zero));
            }
        });
        if constexpr (HeadDim % 32 != 0) {
            constexpr int c = HeadDim / 8 - 2;
            uint32_t v[2];
            load_transposed_x2<Offset + kChunkConstant<HeadDim, c>>(v, chunk_register<HeadDim, c>(pair_address));
            Math<Type>::mma_k8(column[c], probability, v[0], addend<First>(column[c], zero));
            Math<Type>::mma_k8(column[c + 1], probability, v[1], addend<First>(column[c + 1], zero));
        }
        Math<Type>::mma_k8(sum, probability, Math<Type>::kOnes, addend<First>(sum, zero));
    }

    // Rows g and g + 8 over their sums, or zeros where not valid. A lane holds two of eight columns in
    // every tile; it trades one tile's pair with its neighbour, so that each store instruction writes
    // whole 32-byte sectors, eight bytes a lane.
    __device__ __forceinline__ void store(char* row, uint32_t row_bytes, const bool (&inside)[2],
                                          const bool (&valid)[2], uint32_t lane) {
        const bool odd = lane % 2 != 0;
        row = advance_by<1>(row, __byte_perm(0x18081000, lane, lane % 4));  // 0, 16, 8 or 24
        uint2 words[2][HeadDim / 16];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float inverse = reciprocal_approx(sum[half * 2]);
            const float factor = valid[half] ? inverse : 0.0f;
#pragma unroll
            for (int i = 0; i < HeadDim / 16; ++i) {
                const float(&left)[4] = column[2 * i];
                const float(&right)[4] = column[2 * i + 1];
                const uint32_t a = Math<Type>::pack(left[half * 2] * factor, left[half * 2 + 1] * factor);
                const uint32_t b = Math<Type>::pack(right[half * 2] * factor, right[half * 2 + 1] * factor);
                const uint32_t received = shuffle_xor<1>(odd ? a : b);
                words[half][i] = make_uint2(odd ? received : a, odd ? b : received);
            }
        }
        char* high = advance_by<8>(row, row_bytes);
        if (inside[0]) {
            unroll<HeadDim / 16>([&](auto i) { store_global_64<i * 32>(row, words[0][i]); });
        }
        if (inside[1]) {
            unroll<HeadDim / 16>([&](auto i) { store_global_64<i * 32>(high, words[1][i]); });
        }
    }
};

__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, shuffle_xor<1>(x));
    return fmaxf(x, shuffle_xor<2>(x));
}

__device__ __forceinline__ float quad_sum(float x) {
    x += shuffle_xor<1>(x);
    return x + shuffle_xor<2>(x);
}

// One fused multiply-add takes a score to its exponent, score * factor + shift. The rounding of the shift is
// a factor that a row's probabilities share and its sum takes out again, unless it is large itself: from
// 2^27 on it could overflow them. There, far from any real score, the maximum is subtracted first.
template <int Tiles>
__device__ __forceinline__ void subtract_first(float (&score)[Tiles][4], const float (&maximum)[2], float (&shift)[2]) {
    if (shift[0] * shift[0] + shift[1] * shift[1] > 4294967296.0f) {
#pragma unroll
        for (int j = 0; j < Tiles; ++j) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                score[j][e] -= maximum[e / 2];
            }
        }
        shift[0] = 0.0f;
        shift[1] = 0.0f;
    }
}

// Zeros for the 16 rows of a warp that lies beyond its sample's length.
template <int HeadDim, int Bytes, bool Dilated>
__device__ __forceinline__ void store_zeros(const KernelParams& p, const Sequence& sequence, uint32_t first,
                                            uint32_t tid) {
    constexpr uint32_t kChunks = HeadDim * Bytes / kChunkBytes;
    char* start = output_row<HeadDim, Bytes, Dilated>(p, sequence, first);
#pragma unroll 1
    for (uint32_t i = tid % kWarpSize; i < kRowsPerWarp * kChunks; i += kWarpSize) {
        const uint32_t row = i / kChunks;
        if (first + row < sequence.rows) {
            char* target = advance(start, row, output_row_bytes<Dilated>(p));
            store_global_128(target + i % kChunks * kChunkBytes, make_uint4(0, 0, 0, 0));
        }
    }
}

// Keys that lie at a fixed distance in memory: the band of all queries of a block, or global columns.
struct KeyRun {
    const char* first;  // key 0
    uint32_t row_bytes;
    int keys;
};

// The band keys of the block, from position band_first on.
__device__ __forceinline__ KeyRun band_of(const KernelParams& p, const Sequence& sequence, int block_first, int queries,
                                          int band_first) {
    const int last_query = min(block_first + queries, sequence.length) - 1;
    KeyRun band;
    band.first = advance(sequence.queries + p.third_bytes, band_first, sequence.row_bytes);
    band.row_bytes = sequence.row_bytes;
    band.keys = max(min(last_query + p.reach, sequence.length) - band_first, 0);
    return band;
}

// Copies `Rows` keys of a run from number `from` on, and their values, to shared memory at `target`; zeros
// behind the run's end. swizzle: offset of a byte of the global row in the row of shared memory.
template <int Rows, int Chunks, int ChunkLanes, int RowBytes, int ValuesOffset, int Threads, typename Swizzle>
__device__ __forceinline__ void stage(const KernelParams& p, const KeyRun& run, int from, uint32_t target,
                                      Swizzle swizzle) {
    constexpr int kTotal = Rows * ChunkLanes;
    constexpr bool kAligned = Threads % (8 * ChunkLanes) == 0;
    constexpr int kStep = Threads / ChunkLanes;
    const int left = run.keys - from - static_cast<int>(threadIdx.x / ChunkLanes);
    const char* source = advance_by<kChunkBytes>(run.first, threadIdx.x % ChunkLanes);
    source = advance(source, from + threadIdx.x / ChunkLanes, run.row_bytes);
    if constexpr (kAligned) {
        target += threadIdx.x / ChunkLanes * RowBytes +
                  swizzle(threadIdx.x / ChunkLanes, threadIdx.x % ChunkLanes * kChunkBytes);
    }
    unroll<(kTotal + Threads - 1) / Threads>([&](auto i) {
        constexpr int kOffset = kAligned ? i * kStep * RowBytes : 0;
        const uint32_t index = threadIdx.x + i * Threads;
        const uint32_t row = index / ChunkLanes;
        const uint32_t byte = index % ChunkLanes * kChunkBytes;
        if (((i + 1) * Threads <= kTotal || row < Rows) && (Chunks == ChunkLanes || byte < Chunks * kChunkBytes)) {
            if constexpr (kAligned) {
                const uint32_t bytes = left > i * kStep ? kChunkBytes : 0;
                copy_chunk<kOffset>(target, source, bytes);
                copy_chunk<kOffset + ValuesOffset>(target, source + p.third_bytes, bytes);
                source = advance_by<kStep>(source, run.row_bytes);
            } else {
                const uint32_t bytes = from + static_cast<int>(row) < run.keys ? kChunkBytes : 0;
                const char* key = advance(advance_by<1>(run.first, byte), from + row, run.row_bytes);
                const uint32_t to = target + row * RowBytes + swizzle(row, byte);
                copy_chunk<0>(to, key, bytes);
                copy_chunk<ValuesOffset>(to, key + p.third_bytes, bytes);
            }
        }
    });
}

}  // namespace vtn::swa
