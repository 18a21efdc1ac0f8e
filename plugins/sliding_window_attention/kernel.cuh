// The tensor-core kernels. README.md beside this file has the picture; the numbers behind the tile
// sizes are in traits.h.
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
    } else {
        return ((row * 8) & 0x30) ^ chunk_byte;  // chunk ^ (row / 2 mod 4)
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

// What rows g and g + 8 have seen so far: their maximum, and what it shifted exponents by.
struct Running {
    float maximum[2];
    float shift[2];

    __device__ __forceinline__ void clear(const KernelParams& p) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            maximum[half] = p.score_floor;
            shift[half] = p.score_floor * p.minus_factor;
        }
    }
};

// Probabilities against the maximum so far; correction is what earlier ones are to be multiplied with. Scores
// at the floor weigh nothing once a real score was seen, and what they weighed before is corrected to nothing
// then.
template <typename Type, int Tiles>
__device__ __forceinline__ void soften(const KernelParams& p, float (&score)[Tiles][4], Running& running,
                                       uint32_t (&probability)[Tiles][2], float (&correction)[2]) {
    float shift[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        float m = running.maximum[half];
#pragma unroll
        for (int i = 0; i < 2 * Tiles; ++i) {
            m = fmaxf(m, score[i / 2][half * 2 + i % 2]);
        }
        running.maximum[half] = quad_max(m);
        shift[half] = running.maximum[half] * p.minus_factor;
        correction[half] = exp2_approx(shift[half] - running.shift[half]);
        running.shift[half] = shift[half];
    }
    subtract_first<Tiles>(score, running.maximum, shift);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int j = 0; j < Tiles; ++j) {
            probability[j][half] =
                Math<Type>::pack(exp2_approx(fmaf(score[j][half * 2], p.score_factor, shift[half])),
                                 exp2_approx(fmaf(score[j][half * 2 + 1], p.score_factor, shift[half])));
        }
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

template <typename Type, int HeadDim, int Tiles, int Warps, bool Dilated>
__device__ __forceinline__ void resident(const KernelParams& params) {
    const KernelParams p = params;
    using Shape = ResidentShape<HeadDim, Tiles, Warps>;
    using Layout = RowLayout<HeadDim>;
    constexpr int kLast = Tiles - 1;
    constexpr int kMiddleEnd = Tiles > 5 ? Tiles - 3 : 2;
    constexpr int kTileBytes = kKeysPerTile * Layout::kRowBytes;
    static_assert(Tiles % 2 == 1, "tiles are multiplied with the values in pairs, the last one alone");

    extern __shared__ __align__(128) unsigned char shared[];
    uint32_t tid = threadIdx.x;
    keep(tid);
    const uint32_t warp_first = tid / kWarpSize * kRowsPerWarp;
    const uint32_t group = tid / 4 % 8;  // g: row of a C fragment, key of a B fragment

    Sequence sequence = locate<HeadDim, 2, Dilated>(p);
    keep(sequence.length);
    const int block_first = blockIdx.y * Shape::kQueries;
    if (block_first >= sequence.length) {
        store_zeros<HeadDim, 2, Dilated>(p, sequence, block_first + warp_first, tid);
        return;
    }

    uint32_t keys = shared_address(shared);
    keep(keys);
    constexpr int kValues = Shape::kRows * Layout::kRowBytes;  // values lie behind the keys

    // Row r < kBandRows of shared memory is position origin + r; the eight rows after it are the last
    // tile's, for its slots that hold globals. Zeros where there is no such key.
    const int origin = block_first - p.window;
    const uint32_t global_slot = Shape::kSharedLast ? p.global_slot : 0;
    {
        constexpr uint32_t kChunkLanes = Layout::kPitchChunks;
        constexpr uint32_t kTotal = Shape::kRows * kChunkLanes;
        constexpr int kSteps = (kTotal + Shape::kThreads - 1) / Shape::kThreads;
        // Steps by whole rows, eight or a multiple of it: row, chunk, swizzle and addresses are those
        // of step 0 plus constants.
        constexpr bool kAligned = Shape::kThreads % (8 * kChunkLanes) == 0;
        constexpr int kStep = Shape::kThreads / kChunkLanes;
        const int low = sequence.globals - origin;
        const int high = min(sequence.length - origin, Shape::kQueries + p.span);
        const uint32_t first_row = tid / kChunkLanes;
        const uint32_t first_byte = tid % kChunkLanes * kChunkBytes;
        const char* source = sequence.queries + p.third_bytes;
        source = advance_by<kChunkBytes>(source, tid % kChunkLanes);
        source = advance_signed(source, origin + static_cast<int>(first_row), sequence.row_bytes);
        const int rows_left = high - static_cast<int>(first_row);
        const int rows_before = low - static_cast<int>(first_row);
        uint32_t target = keys + first_row * Layout::kRowBytes + swizzled<HeadDim>(first_row, first_byte);
        unroll<kSteps>([&](auto i) {
            constexpr int kOffset = kAligned ? i * kStep * Layout::kRowBytes : 0;
            constexpr bool kFull = (i + 1) * Shape::kThreads <= kTotal && Layout::kChunks == kChunkLanes;
            constexpr bool kHasGlobals = (i + 1) * Shape::kThreads > Shape::kBandRows * kChunkLanes;
            const uint32_t index = tid + i * Shape::kThreads;
            const uint32_t row = kAligned ? first_row + i * kStep : index / kChunkLanes;
            const uint32_t byte = kAligned ? first_byte : index % kChunkLanes * kChunkBytes;
            if constexpr (!kAligned) {
                source = advance_by<1>(sequence.queries + p.third_bytes, byte);
                source = advance_signed(source, origin + static_cast<int>(row), sequence.row_bytes);
                target = keys + row * Layout::kRowBytes + swizzled<HeadDim>(row, byte);
            }
            if (kHasGlobals && row >= Shape::kBandRows) {
                if (kFull || (row < Shape::kRows && byte < HeadDim * 2)) {
                    const uint32_t column = row - Shape::kBandRows - global_slot;
                    const uint32_t bytes = column < static_cast<uint32_t>(sequence.columns) ? kChunkBytes : 0;
                    const char* from = advance_by<1>(sequence.sample + p.third_bytes, byte);
                    from = advance(from, column, p.token_bytes);
                    copy_chunk<kOffset>(target, from, bytes);
                    copy_chunk<kOffset + kValues>(target, from + p.third_bytes, bytes);
                }
            } else if (kFull || byte < HeadDim * 2) {
                // Only rows that the window and the globals reach can lie before the first key.
                constexpr bool kCheckLow = !kAligned || i * kStep < Shape::kReach;
                bool inside = kAligned ? rows_left > i * kStep : static_cast<int>(row) < high;
                if constexpr (kCheckLow) {
                    inside &= kAligned ? rows_before <= i * kStep : static_cast<int>(row) >= low;
                }
                const uint32_t bytes = inside ? kChunkBytes : 0;
                copy_chunk<kOffset>(target, source, bytes);
                copy_chunk<kOffset + kValues>(target, source + p.third_bytes, bytes);
            }
            if constexpr (kAligned) {
                source = advance_by<kStep>(source, sequence.row_bytes);
            }
        });
    }
    commit_copies();

    // Rows beyond the length repeat the last valid one: no sector more, and always finite.
    int first_row = block_first + static_cast<int>(warp_first + group);
    keep(first_row);
    const int last_row = sequence.length - 1;
    const int rows[2] = {min(first_row, last_row), min(first_row + 8, last_row)};
    const uint32_t quad_byte = tid % 4 * kChunkBytes;
    Queries<HeadDim> q;
    {
        const char* start = advance_by<kChunkBytes>(sequence.queries, tid % 4);
        q.load(p, advance(start, rows[0], sequence.row_bytes), advance(start, rows[1], sequence.row_bytes), tid % 4);
    }

    wait_for_copies();
    __syncthreads();

    // Slot s of a warp is shared row first_slot + s, but in the last tile the slots from global_slot on
    // are the global rows. At the start of a sequence the slots skip keys that do not exist, by eights so
    // that each keeps its place in its eight banks; the first real key is then in the first tile.
    const uint32_t skipped = max(sequence.globals - origin - static_cast<int>(warp_first), 0) & ~7;
    const uint32_t first_slot = warp_first + skipped;

    float score[Tiles][4];
    {
        const uint32_t in_row = swizzled<HeadDim>(group, quad_byte);
        const uint32_t in_row_half = swizzled<HeadDim>(group, tid % 4 / 2 * kChunkBytes) + tid % 2 * 8;
        const uint32_t row = first_slot + group;
        const bool in_band = Shape::kSharedLast && group < global_slot;
        const uint32_t last = in_band ? row + kLast * kKeysPerTile : Shape::kBandRows + group;
        const uint32_t band_at = keys + row * Layout::kRowBytes;
        const uint32_t last_at = keys + last * Layout::kRowBytes;
        unroll<Tiles>([&](auto j) {
            const uint32_t at = j == kLast ? last_at : band_at;
            multiply_keys<Type, HeadDim, j == kLast ? 0 : j * kTileBytes>(score[j], q, at + in_row, at + in_row_half);
        });
    }

    // What a row does not see scores the lowest float instead of -inf, so that a row of a warp beyond the
    // length, which may see nothing, stays finite. Row i sees the slots from max(i - window, globals) to min(i + ahead,
    // length - 1).
    uint32_t probability[Tiles][2];
    {
        const uint32_t quad_column = tid % 4 * 2;
        const int slot_zero = origin + static_cast<int>(first_slot + quad_column);
        const uint32_t column = quad_column - global_slot;
        const bool global[2] = {column < static_cast<uint32_t>(sequence.columns),
                                column + 1 < static_cast<uint32_t>(sequence.columns)};
        int offset[2], end[2];
        uint32_t count[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            offset[half] = slot_zero - max(rows[half] - p.window, sequence.globals);
            end[half] = min(rows[half] + p.reach, sequence.length) - slot_zero;
            if constexpr (Tiles > 5) {
                keep(end[half]);
            }
            count[half] = max(end[half] + offset[half], 0);
        }
        const auto hide = [&](auto j) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    const int slot = j * kKeysPerTile + e;
                    bool visible = slot < end[half];
                    if (j < 2) {  // a row's first slot is at most 7, or its number in the warp
                        visible = static_cast<uint32_t>(slot + offset[half]) < count[half];
                    }
                    if (j == kLast) {
                        visible = global[e] || (Shape::kSharedLast && visible);
                    }
                    score[j][half * 2 + e] = visible ? score[j][half * 2 + e] : p.score_floor;
                }
            }
        };
        hide(Constant<0>{});
        hide(Constant<1>{});
        unroll<Tiles - kMiddleEnd>([&](auto j) { hide(Constant<kMiddleEnd + j>{}); });
        // Away from the ends of a sequence all rows see all keys of the tiles between (for w = 32, six of
        // eleven): one test spares 48 instructions.
        if constexpr (kMiddleEnd > 2) {
            if (end[0] <= kMiddleEnd * kKeysPerTile - 7) {  // the other row's end is no lower
                unroll<kMiddleEnd - 2>([&](auto j) { hide(Constant<2 + j>{}); });
            }
        }
        float maximum[2], shift[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float m = score[0][half * 2];
#pragma unroll
            for (int i = 1; i < 2 * Tiles; ++i) {
                m = fmaxf(m, score[i / 2][half * 2 + i % 2]);
            }
            maximum[half] = quad_max(m);
            shift[half] = maximum[half] * p.minus_factor;
        }
        subtract_first<Tiles>(score, maximum, shift);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
            for (int j = 0; j < Tiles; ++j) {
                probability[j][half] =
                    Math<Type>::pack(exp2_approx(fmaf(score[j][half * 2], p.score_factor, shift[half])),
                                     exp2_approx(fmaf(score[j][half * 2 + 1], p.score_factor, shift[half])));
            }
        }
    }

    Output<Type, HeadDim> output;
    {
        const uint32_t band =
            keys + (first_slot + tid % 16) * Layout::kRowBytes + swizzled<HeadDim>(tid, tid / 16 % 2 * kChunkBytes);
        unroll<Tiles / 2>([&](auto i) {
            const uint32_t pair[4] = {probability[2 * i][0], probability[2 * i][1], probability[2 * i + 1][0],
                                      probability[2 * i + 1][1]};
            output.template add_k16<kValues + 2 * i * kTileBytes, i == 0>(pair, band);
        });
        const uint32_t key = tid % 8;
        const bool in_band = Shape::kSharedLast && key < global_slot;
        const uint32_t row = in_band ? first_slot + kLast * kKeysPerTile : Shape::kBandRows;
        const uint32_t last = keys + (row + key) * Layout::kRowBytes;
        output.template add_k8<kValues, false>(probability[kLast],
                                               last + swizzled<HeadDim>(tid, tid / 8 % 4 * kChunkBytes),
                                               last + swizzled<HeadDim>(tid, tid / 8 % 2 * kChunkBytes));
    }

    const bool inside[2] = {first_row < sequence.rows, first_row + 8 < sequence.rows};
    const bool valid[2] = {first_row <= last_row, first_row + 8 <= last_row};
    output.store(output_row<HeadDim, 2, Dilated>(p, sequence, first_row), output_row_bytes<Dilated>(p), inside, valid,
                 tid);
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

// Any window, dilation and number of globals: softmax with a running maximum.
template <typename Type, int HeadDim>
__device__ __forceinline__ void streaming(const KernelParams& params) {
    using Shape = StreamingShape<HeadDim>;
    using Layout = RowLayout<HeadDim>;
    constexpr int kTileBytes = kKeysPerTile * Layout::kRowBytes;
    constexpr int kValues = Shape::kRows * Layout::kRowBytes;
    constexpr int kBufferBytes = Shape::kKeys * Layout::kRowBytes;

    const KernelParams p = params;
    extern __shared__ __align__(128) unsigned char shared[];
    const uint32_t tid = threadIdx.x;
    // Through a shuffle, so that the compiler knows branches on it to be the same for a whole warp.
    const uint32_t warp_first = shuffle_first(tid / kWarpSize) * kRowsPerWarp;
    const uint32_t group = tid / 4 % 8;

    const Sequence sequence = locate<HeadDim, 2, true>(p);
    const int block_first = blockIdx.y * Shape::kQueries;
    const int first = block_first + static_cast<int>(warp_first);
    if (block_first >= sequence.length) {
        store_zeros<HeadDim, 2, true>(p, sequence, first, tid);
        return;
    }

    // Up to eight global columns are a tile of their own; more of them lead the chunks of the band.
    const int last_row = sequence.length - 1;
    const int tile_globals = sequence.columns <= Shape::kGlobalRows ? sequence.columns : 0;
    const int band_first = max(block_first - p.window, sequence.globals);
    const KeyRun band = band_of(p, sequence, block_first, Shape::kQueries, band_first);
    const KeyRun columns{sequence.sample + p.third_bytes, p.token_bytes, sequence.columns};
    const int lead_chunks = (sequence.columns - tile_globals + Shape::kKeys - 1) / Shape::kKeys;
    const int chunks = max(lead_chunks + (band.keys + Shape::kKeys - 1) / Shape::kKeys, 1);

    const uint32_t keys = shared_address(shared);
    const uint32_t global_tile = keys + Shape::kStages * kBufferBytes;
    const auto place = [](uint32_t row, uint32_t byte) { return swizzled<HeadDim>(row, byte); };
    const auto stage_keys = [&](int chunk) {
        const bool leads = chunk < lead_chunks;
        const KeyRun run{leads ? columns.first : band.first, leads ? columns.row_bytes : band.row_bytes,
                         leads ? columns.keys : band.keys};
        stage<Shape::kKeys, Layout::kChunks, Layout::kPitchChunks, Layout::kRowBytes, kValues, Shape::kThreads>(
            p, run, (leads ? chunk : chunk - lead_chunks) * Shape::kKeys, keys + chunk % Shape::kStages * kBufferBytes,
            place);
    };
    if (tile_globals > 0) {
        stage<Shape::kGlobalRows, Layout::kChunks, Layout::kPitchChunks, Layout::kRowBytes, kValues, Shape::kThreads>(
            p, columns, 0, global_tile, place);
    }
    stage_keys(0);
    commit_copies();

    // Rows beyond the length repeat the last valid one.
    const int first_row = first + static_cast<int>(group);
    const int rows[2] = {min(first_row, last_row), min(first_row + 8, last_row)};
    Queries<HeadDim> q;
    {
        const char* start = advance_by<kChunkBytes>(sequence.queries, tid % 4);
        q.load(p, advance(start, rows[0], sequence.row_bytes), advance(start, rows[1], sequence.row_bytes), tid % 4);
    }

    const uint32_t key_row = group * Layout::kRowBytes;
    const uint32_t key_at = key_row + swizzled<HeadDim>(group, tid % 4 * kChunkBytes);
    const uint32_t key_half_at = key_row + swizzled<HeadDim>(group, tid % 4 / 2 * kChunkBytes) + tid % 2 * 8;
    const uint32_t value_at = tid % 16 * Layout::kRowBytes + swizzled<HeadDim>(tid, tid / 16 % 2 * kChunkBytes);
    const int column = static_cast<int>(tid % 4 * 2);

    // Band keys, counted from band_first, that the rows of the warp see: any of them, and all of them.
    const int warp_last = min(first + kRowsPerWarp - 1, last_row);
    const int any_low = max(first - p.window, sequence.globals) - band_first;
    const int any_end = min(warp_last + p.reach, sequence.length) - band_first;
    const int all_low = max(warp_last - p.window, sequence.globals) - band_first;
    const int all_end = min(first + p.reach, sequence.length) - band_first;
    int offset[2];
    int width[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int low = max(rows[half] - p.window, sequence.globals);
        offset[half] = column + band_first - low;
        width[half] = max(min(rows[half] + p.reach, sequence.length) - low, 0);
    }

    Output<Type, HeadDim> output;
    output.clear();
    Running running;
    running.clear(p);
#pragma unroll 1
    for (int chunk = 0; chunk < chunks; ++chunk) {
        wait_for_copies();
        __syncthreads();
        // Behind the barrier nobody reads the other buffer any more.
        if (chunk + 1 < chunks) {
            stage_keys(chunk + 1);
            commit_copies();
        }
        if (first > last_row) {
            continue;
        }

        if (chunk == 0 && tile_globals > 0) {
            float score[1][4];
            multiply_keys<Type, HeadDim, 0>(score[0], q, global_tile + key_at, global_tile + key_half_at);
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                score[0][e] = column + e % 2 < tile_globals ? score[0][e] : p.score_floor;
            }
            uint32_t probability[1][2];
            float correction[2];  // of nothing: the tile comes first
            soften<Type>(p, score, running, probability, correction);
            const uint32_t row = global_tile + tid % 8 * Layout::kRowBytes;
            output.template add_k8<kValues, false>(probability[0],
                                                   row + swizzled<HeadDim>(tid, tid / 8 % 4 * kChunkBytes),
                                                   row + swizzled<HeadDim>(tid, tid / 8 % 2 * kChunkBytes));
        }

        const bool leads = chunk < lead_chunks;
        const int from = (leads ? chunk : chunk - lead_chunks) * Shape::kKeys;
        const int to = from + Shape::kKeys;
        if (leads | ((from < any_end) & (to > any_low))) {
            const uint32_t buffer = keys + chunk % Shape::kStages * kBufferBytes;
            float score[Shape::kTiles][4];
            unroll<Shape::kTiles>([&](auto j) {
                multiply_keys<Type, HeadDim, j * kTileBytes>(score[j], q, buffer + key_at, buffer + key_half_at);
            });
            if ((from < all_low) | (to > all_end) | leads) {
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const uint32_t start = from + (leads ? column : offset[half]);
                    const uint32_t count = leads ? columns.keys : width[half];
#pragma unroll
                    for (int i = 0; i < 2 * Shape::kTiles; ++i) {
                        float& s = score[i / 2][half * 2 + i % 2];
                        s = start + (i / 2 * kKeysPerTile + i % 2) < count ? s : p.score_floor;
                    }
                }
            }
            uint32_t probability[Shape::kTiles][2];
            float correction[2];
            soften<Type>(p, score, running, probability, correction);
            output.scale(correction);
            unroll<Shape::kTiles / 2>([&](auto i) {
                const uint32_t pair[4] = {probability[2 * i][0], probability[2 * i][1], probability[2 * i + 1][0],
                                          probability[2 * i + 1][1]};
                output.template add_k16<kValues + 2 * i * kTileBytes, false>(pair, buffer + value_at);
            });
        }
    }

    const bool inside[2] = {first_row < sequence.rows, first_row + 8 < sequence.rows};
    const bool valid[2] = {first_row <= last_row, first_row + 8 <= last_row};
    output.store(output_row<HeadDim, 2, true>(p, sequence, first_row), output_row_bytes<true>(p), inside, valid, tid);
}

}  // namespace vtn::swa
