// Kernel entry points and the table that the planner chooses from. Entries have C names, so that profilers
// and tests call them what they are: vtn_swa_resident_fp16_d64_t5_w8.
#pragma once

#include "launch.h"
#include "resident.cuh"
#include "streaming.cuh"

namespace vtn::swa {

#define VTN_SWA_RESIDENT(SUFFIX, TYPE, D, TILES, WARPS, TAG, DILATED)                                              \
    extern "C" __global__ void __launch_bounds__(ResidentShape<D, TILES, WARPS>::kThreads,                         \
                                                 ResidentShape<D, TILES, WARPS>::min_blocks(DILATED))              \
        vtn_swa_resident_##SUFFIX##_d##D##_t##TILES##_w##WARPS##TAG(const __grid_constant__ KernelParams params) { \
        resident<TYPE, D, TILES, WARPS, DILATED>(params);                                                          \
    }
#define VTN_SWA_STREAMING(SUFFIX, TYPE, D)                                                                   \
    extern "C" __global__ void __launch_bounds__(StreamingShape<D>::kThreads, StreamingShape<D>::kMinBlocks) \
        vtn_swa_streaming_##SUFFIX##_d##D(const __grid_constant__ KernelParams params) {                     \
        streaming<TYPE, D>(params);                                                                          \
    }

#define VTN_SWA_RESIDENT_ROW(SUFFIX, ENUM, D, TILES, WARPS, TAG, DILATED)                               \
    Kernel {                                                                                            \
        "vtn_swa_resident_" #SUFFIX "_d" #D "_t" #TILES "_w" #WARPS #TAG,                               \
            reinterpret_cast<const void*>(vtn_swa_resident_##SUFFIX##_d##D##_t##TILES##_w##WARPS##TAG), \
            Family::kResident, ENUM, D, TILES, DILATED, ResidentShape<D, TILES, WARPS>::kThreads,       \
            ResidentShape<D, TILES, WARPS>::kQueries, ResidentShape<D, TILES, WARPS>::kSharedBytes      \
    }
#define VTN_SWA_STREAMING_ROW(SUFFIX, ENUM, D)                                                                  \
    Kernel {                                                                                                    \
        "vtn_swa_streaming_" #SUFFIX "_d" #D, reinterpret_cast<const void*>(vtn_swa_streaming_##SUFFIX##_d##D), \
            Family::kStreaming, ENUM, D, 0, true, StreamingShape<D>::kThreads, StreamingShape<D>::kQueries,     \
            StreamingShape<D>::kSharedBytes                                                                     \
    }

// ENTRY(head_dim, tiles, warps, name tag, takes dilations), in the order of preference.
#define VTN_SWA_RESIDENT_KERNELS(ENTRY) \
    ENTRY(32, 5, 8, , false)            \
    ENTRY(32, 5, 8, _dilated, true)     \
    ENTRY(32, 11, 12, , false)          \
    ENTRY(32, 11, 8, , false)           \
    ENTRY(32, 11, 8, _dilated, true)    \
    ENTRY(64, 5, 8, , false)            \
    ENTRY(64, 5, 8, _dilated, true)     \
    ENTRY(64, 11, 12, , false)          \
    ENTRY(64, 11, 8, , false)           \
    ENTRY(64, 11, 8, _dilated, true)    \
    ENTRY(80, 5, 8, , false)            \
    ENTRY(80, 5, 8, _dilated, true)     \
    ENTRY(80, 11, 8, _dilated, true)    \
    ENTRY(96, 5, 8, , false)            \
    ENTRY(96, 5, 8, _dilated, true)     \
    ENTRY(96, 11, 8, _dilated, true)    \
    ENTRY(128, 5, 8, , false)           \
    ENTRY(128, 5, 8, _dilated, true)    \
    ENTRY(128, 11, 8, _dilated, true)
#define VTN_SWA_STREAMING_KERNELS(ENTRY) ENTRY(32) ENTRY(64) ENTRY(80) ENTRY(96) ENTRY(128)

}  // namespace vtn::swa
