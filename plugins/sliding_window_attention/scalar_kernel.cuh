// float32 in float32: no tensor cores, whose TF32 keeps ten bits. Four queries a thread, eight lanes a
// query row; keys stream through shared memory as in the tensor-core kernel.
#pragma once

#include "tiles.cuh"

namespace vtn::swa {

template <int HeadDim>
__device__ __forceinline__ void scalar(const KernelParams& params) {
    using Shape = ScalarShape<HeadDim>;
    constexpr int kRowBytes = Shape::kPitch * 4;
    constexpr int kChunks = HeadDim / 4;
    constexpr int kLanes = Shape::kLanesPerRow;
    constexpr int kRows = Shape::kRowsPerThread;
    constexpr int kKeysPerThread = Shape::kKeysPerThread;
    constexpr int kValues = Shape::kKeys * kRowBytes;

    const KernelParams p = params;
    extern __shared__ __align__(128) unsigned char shared[];
    const uint32_t tid = threadIdx.x;
    const uint32_t lane = tid % kLanes;
    const uint32_t warp_first = shuffle_first(tid / kWarpSize) * kRowsPerWarp;

    const Sequence sequence = locate<HeadDim, 4, true>(p);
    const int block_first = blockIdx.y * Shape::kQueries;
    const int first = block_first + static_cast<int>(warp_first);
    if (block_first >= sequence.length) {
        store_zeros<HeadDim, 4, true>(p, sequence, first, tid);
        return;
    }

    const int last_row = sequence.length - 1;
    const int band_first = max(block_first - p.window, sequence.globals);
    const KeyRun band = band_of(p, sequence, block_first, Shape::kQueries, band_first);
    const KeyRun columns{sequence.sample + p.third_bytes, p.token_bytes, sequence.columns};
    const int lead_chunks = (sequence.columns + Shape::kKeys - 1) / Shape::kKeys;
    const int chunks = lead_chunks + (band.keys + Shape::kKeys - 1) / Shape::kKeys;

    const uint32_t queries = shared_address(shared);
    const uint32_t keys = queries + Shape::kQueries * kRowBytes;
    const auto place = [](uint32_t, uint32_t byte) { return byte; };

    // Queries once; rows beyond the length are zeros.
    for (uint32_t i = tid; i < Shape::kQueries * kChunks; i += Shape::kThreads) {
        const uint32_t row = i / kChunks;
        const uint32_t byte = i % kChunks * kChunkBytes;
        const bool inside = block_first + static_cast<int>(row) < sequence.length;
        const char* source = advance(advance_by<1>(sequence.queries, byte), block_first + row, sequence.row_bytes);
        copy_chunk<0>(queries + row * kRowBytes + byte, source, inside ? kChunkBytes : 0);
    }

    const uint32_t first_row = block_first + tid / kLanes * kRows;
    int low[kRows];
    int width[kRows];
    float maximum[kRows], sum[kRows];
    float2 output[kRows][Shape::kPairs];
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
        const int row = min(static_cast<int>(first_row) + i, last_row);
        const int start = max(row - p.window, sequence.globals);
        low[i] = start - band_first;
        width[i] = max(min(row + p.reach, sequence.length) - start, 0);
        maximum[i] = p.score_floor;
        sum[i] = 0.0f;
#pragma unroll
        for (int c = 0; c < Shape::kPairs; ++c) {
            output[i][c] = make_float2(0.0f, 0.0f);
        }
    }
    const int any_low = max(first - p.window, sequence.globals) - band_first;
    const int any_end = min(min(first + kRowsPerWarp - 1, last_row) + p.reach, sequence.length) - band_first;

#pragma unroll 1
    for (int chunk = 0; chunk < chunks; ++chunk) {
        const bool leads = chunk < lead_chunks;
        const int from = (leads ? chunk : chunk - lead_chunks) * Shape::kKeys;
        const KeyRun run{leads ? columns.first : band.first, leads ? columns.row_bytes : band.row_bytes,
                         leads ? columns.keys : band.keys};
        if (chunk > 0) {
            __syncthreads();  // everyone is done with the chunk before
        }
        stage<Shape::kKeys, kChunks, kChunks, kRowBytes, kValues, Shape::kThreads>(p, run, from, keys, place);
        commit_copies();
        wait_for_copies();
        __syncthreads();
        if (first > last_row || (!leads && (from >= any_end || from + Shape::kKeys <= any_low))) {
            continue;
        }

        float score[kRows][kKeysPerThread];
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
#pragma unroll
            for (int j = 0; j < kKeysPerThread; ++j) {
                score[i][j] = 0.0f;
            }
        }
        const uint32_t query_at = queries + tid / kLanes * kRows * kRowBytes;
        const uint32_t key_at = keys + lane * kRowBytes;
#pragma unroll 2
        for (uint32_t byte = 0; byte < HeadDim * 4; byte += kChunkBytes) {
            float4 k[kKeysPerThread];
            unroll<kKeysPerThread>([&](auto j) { k[j] = load_shared_float4<j * kLanes * kRowBytes>(key_at + byte); });
            unroll<kRows>([&](auto i) {
                const float4 q = load_shared_float4<i * kRowBytes>(query_at + byte);
#pragma unroll
                for (int j = 0; j < kKeysPerThread; ++j) {
                    float& s = score[i][j];
                    s = fmaf(q.x, k[j].x, s);
                    s = fmaf(q.y, k[j].y, s);
                    s = fmaf(q.z, k[j].z, s);
                    s = fmaf(q.w, k[j].w, s);
                }
            });
        }

#pragma unroll
        for (int i = 0; i < kRows; ++i) {
            const uint32_t start = from + lane - (leads ? 0 : low[i]);
            const uint32_t count = leads ? columns.keys : width[i];
            float m = maximum[i];
#pragma unroll
            for (int j = 0; j < kKeysPerThread; ++j) {
                const uint32_t bits = and_xor(__float_as_uint(score[i][j]), p.query_and, p.query_xor);
                score[i][j] = start + j * kLanes < count ? __uint_as_float(bits) : p.score_floor;
                m = fmaxf(m, score[i][j]);
            }
            m = fmaxf(m, shuffle_xor<1>(m));
            m = fmaxf(m, shuffle_xor<2>(m));
            m = fmaxf(m, shuffle_xor<4>(m));
            const float correction = expf((maximum[i] - m) * p.score_factor);
            maximum[i] = m;
            sum[i] *= correction;
#pragma unroll
            for (int j = 0; j < kKeysPerThread; ++j) {
                score[i][j] = expf((score[i][j] - m) * p.score_factor);
                sum[i] += score[i][j];
            }
#pragma unroll
            for (int c = 0; c < Shape::kPairs; ++c) {
                output[i][c].x *= correction;
                output[i][c].y *= correction;
            }
        }

        // Key k's probability is with lane k % 8 of the row's eight.
        const uint32_t value_at = keys + kValues + lane * 8;
#pragma unroll
        for (int j = 0; j < kKeysPerThread; ++j) {
            unroll<kLanes>([&](auto owner) {
                float weight[kRows];
#pragma unroll
                for (int i = 0; i < kRows; ++i) {
                    weight[i] = __shfl_sync(0xffffffffu, score[i][j], owner, kLanes);
                }
                const uint32_t row = value_at + j * kLanes * kRowBytes;
                unroll<Shape::kPairs>([&](auto c) {
                    const float2 v = load_shared_float2<owner * kRowBytes + c * kLanes * 8>(row);
#pragma unroll
                    for (int i = 0; i < kRows; ++i) {
                        output[i][c].x = fmaf(weight[i], v.x, output[i][c].x);
                        output[i][c].y = fmaf(weight[i], v.y, output[i][c].y);
                    }
                });
            });
        }
    }

#pragma unroll
    for (int i = 0; i < kRows; ++i) {
        float total = sum[i];
        total += shuffle_xor<1>(total);
        total += shuffle_xor<2>(total);
        total += shuffle_xor<4>(total);
        const int position = static_cast<int>(first_row) + i;
        const float inverse = position <= last_row ? 1.0f / total : 0.0f;
        if (position < sequence.rows) {
            char* row = advance_by<8>(output_row<HeadDim, 4, true>(p, sequence, position), lane);
            unroll<Shape::kPairs>([&](auto c) {
                store_global_64<c * kLanes * 8>(row, make_uint2(__float_as_uint(output[i][c].x * inverse),
                                                                __float_as_uint(output[i][c].y * inverse)));
            });
        }
    }
}

}  // namespace vtn::swa
