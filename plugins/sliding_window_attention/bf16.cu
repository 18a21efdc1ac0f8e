#include "launch.cuh"

namespace vtn::swa {

#define VTN_ENTRY(D, TILES, WARPS, TAG, DILATED) VTN_SWA_RESIDENT(bf16, __nv_bfloat16, D, TILES, WARPS, TAG, DILATED)
VTN_SWA_RESIDENT_KERNELS(VTN_ENTRY)
#undef VTN_ENTRY
#define VTN_ENTRY(D) VTN_SWA_STREAMING(bf16, __nv_bfloat16, D)
VTN_SWA_STREAMING_KERNELS(VTN_ENTRY)
#undef VTN_ENTRY

const std::vector<Kernel>& kernels_bf16() {
#define VTN_ENTRY(D, TILES, WARPS, TAG, DILATED) \
    VTN_SWA_RESIDENT_ROW(bf16, DataType::kBFloat16, D, TILES, WARPS, TAG, DILATED),
#define VTN_STREAM(D) VTN_SWA_STREAMING_ROW(bf16, DataType::kBFloat16, D),
    static const std::vector<Kernel> kernels{VTN_SWA_RESIDENT_KERNELS(VTN_ENTRY) VTN_SWA_STREAMING_KERNELS(VTN_STREAM)};
#undef VTN_STREAM
#undef VTN_ENTRY
    return kernels;
}

}  // namespace vtn::swa
