// Any window, dilation and number of globals: keys in chunks, softmax with a running maximum.
#pragma once

#include "tiles.cuh"

namespace vtn::swa {

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
