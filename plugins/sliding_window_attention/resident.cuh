// A band of up to 80 keys for every 16 queries: all scores of a row in registers, one pass.
#pragma once

#include "tiles.cuh"

namespace vtn::swa {

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

}  // namespace vtn::swa
